// Products on the matrix units: mma.sync on CUDA, simdgroup_matrix on Metal. All threads of a SIMD-group take part in each function.
//
//   Left<T>    a block: 16 rows of an array by 16 columns, 256 elements, of which `in_block` says where they lie
//   Right<T>   a tile of weights: 8 outputs of 16 inputs, row after row, 128 elements
//   Sum        16 rows by 8 outputs, float: of each lane four, numbers e = 0..3 are in row `own_row` + 8 (e / 2) and column
//              `own_column` + e % 2, where two lie side by side
//
// Four lanes have numbers of the same rows; over_columns adds theirs up. An array of such blocks is one block after the other: for each
// 16 rows all columns in order, as `in_blocks` says. So a SIMD-group's load is of neighbouring bytes, whatever the number of columns, and
// two columns side by side, an even one first, are neighbours in memory too.

#ifdef __CUDACC__

// Lane 4 r + q has columns 4 q .. 4 q + 3 of rows r and r + 8, and the same inputs of output r. The unit counts a lane's columns
// otherwise, but alike on both sides, and a sum is a sum: so what a lane has of a tile are 4 elements in a row. Of a block they are 8, as
// the unit's registers want them: two columns of row r, the same of r + 8, then the other two of each. A load fills them, and nothing moves.
template <typename T>
struct Left {
    uint part[4];  // pairs of 16-bit numbers
};
template <typename T>
struct Right {
    uint part[2];
};
template <> struct Left<float> { float part[2][4]; };
template <> struct Right<float> { float part[4]; };
struct Sum {
    float part[4];
};

FUNCTION uint own_row(uint lane) { return lane / 4; }
FUNCTION uint own_column(uint lane) { return 2 * (lane % 4); }
FUNCTION float number(const Sum& sum, int e) { return sum.part[e]; }
FUNCTION void set_number(Sum& sum, int e, float x) { sum.part[e] = x; }
FUNCTION float over_columns(float x) {
    x += simd_shuffle_xor(x, 1);
    return x + simd_shuffle_xor(x, 2);
}

FUNCTION uint in_block(uint row, uint column) { return 32 * (row % 8) + 4 * (column / 2) + 2 * (row / 8) + column % 2; }

template <typename T>
FUNCTION void load_left(Left<T>& left, const T* block, uint lane) {
    uint4 own = reinterpret_cast<const uint4*>(block)[lane];
    left.part[0] = own.x, left.part[1] = own.y, left.part[2] = own.z, left.part[3] = own.w;
}

FUNCTION void load_left(Left<float>& left, const float* block, uint lane) {
    load_packed(block, 2 * lane, left.part[0]);
    load_packed(block, 2 * lane + 1, left.part[1]);
}

template <typename T>
FUNCTION void load_right(Right<T>& right, const T* tile, uint lane) {
    uint2 own = reinterpret_cast<const uint2*>(tile)[lane];
    right.part[0] = own.x, right.part[1] = own.y;
}

FUNCTION void load_right(Right<float>& right, const float* tile, uint lane) { load_packed(tile, lane, right.part); }

FUNCTION void multiply(Sum& sum, const Left<half>& a, const Right<half>& b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum.part[0]), "+f"(sum.part[1]), "+f"(sum.part[2]), "+f"(sum.part[3])
        : "r"(a.part[0]), "r"(a.part[1]), "r"(a.part[2]), "r"(a.part[3]), "r"(b.part[0]), "r"(b.part[1]));
}

FUNCTION void multiply(Sum& sum, const Left<bfloat>& a, const Right<bfloat>& b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum.part[0]), "+f"(sum.part[1]), "+f"(sum.part[2]), "+f"(sum.part[3])
        : "r"(a.part[0]), "r"(a.part[1]), "r"(a.part[2]), "r"(a.part[3]), "r"(b.part[0]), "r"(b.part[1]));
}

// A float in two TF32 numbers, 11 bits each: what the product of two rests leaves out is below a float's own rounding.
FUNCTION void split(float x, uint& large, uint& rest) {
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(large) : "f"(x));
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(rest) : "f"(x - __uint_as_float(large)));
}

FUNCTION void multiply_tf32(Sum& sum, const uint (&a)[4], const uint (&b)[2]) {
    asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sum.part[0]), "+f"(sum.part[1]), "+f"(sum.part[2]), "+f"(sum.part[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

FUNCTION void multiply(Sum& sum, const Left<float>& a, const Right<float>& b) {
    for (int half_of = 0; half_of < 2; ++half_of) {
        uint large_a[4], rest_a[4], large_b[2], rest_b[2];
        for (int k = 0; k < 2; ++k) {
            split(a.part[half_of][k], large_a[2 * k], rest_a[2 * k]);
            split(a.part[half_of][2 + k], large_a[2 * k + 1], rest_a[2 * k + 1]);
            split(b.part[2 * half_of + k], large_b[k], rest_b[k]);
        }
        multiply_tf32(sum, rest_a, large_b);
        multiply_tf32(sum, large_a, rest_b);
        multiply_tf32(sum, large_a, large_b);
    }
}

#else

template <typename T>
struct Left {
    simdgroup_matrix<T, 8, 8> part[2][2];
};
template <typename T>
struct Right {
    simdgroup_matrix<T, 8, 8> part[2];
};
struct Sum {
    simdgroup_matrix<float, 8, 8> part[2];
};

// Where Apple GPUs have a lane's two elements of a matrix. Their order is no promise of Metal's; MLX's own products rely on it.
FUNCTION uint own_row(uint lane) { return lane / 16 * 4 + lane / 2 % 4; }
FUNCTION uint own_column(uint lane) { return lane / 8 % 2 * 4 + lane % 2 * 2; }
FUNCTION float number(thread Sum& sum, int e) { return sum.part[e / 2].thread_elements()[e % 2]; }
FUNCTION void set_number(thread Sum& sum, int e, float x) { sum.part[e / 2].thread_elements()[e % 2] = x; }
FUNCTION float over_columns(float x) {
    x += simd_shuffle_xor(x, 1);
    return x + simd_shuffle_xor(x, 8);
}

FUNCTION uint in_block(uint row, uint column) { return 16 * row + column; }

template <typename T, typename P>
FUNCTION void load_left(thread Left<T>& left, P block, uint lane) {
    for (uint i = 0; i < 2; ++i) {
        for (uint j = 0; j < 2; ++j) simdgroup_load(left.part[i][j], block + 128 * i + 8 * j, 16);
    }
}

template <typename T, typename P>
FUNCTION void load_right(thread Right<T>& right, P tile, uint lane) {
    for (uint j = 0; j < 2; ++j) simdgroup_load(right.part[j], tile + 8 * j, 16, 0, true);
}

template <typename T>
FUNCTION void multiply(thread Sum& sum, thread Left<T>& left, thread Right<T>& right) {
    for (uint i = 0; i < 2; ++i) {
        for (uint j = 0; j < 2; ++j) simdgroup_multiply_accumulate(sum.part[i], left.part[i][j], right.part[j], sum.part[i]);
    }
}

#endif

// Where an element of an array in blocks lies that has so many columns.
FUNCTION uint in_blocks(uint row, uint column, uint columns) {
    return row / 16 * 16 * columns + column / 16 * 256 + in_block(row % 16, column % 16);
}
