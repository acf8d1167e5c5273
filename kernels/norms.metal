// norms: the sums of squares of up to 28 tensors in one launch.
// Specification: l2_norms_reference in energy_flow_mlx/ops/norms.py, which is the root of the whole sum.
//
//   x0 .. x27 [size]         tensors of any shape, float, half or bfloat; those that are missing have size 0 below
//   sizes [28] int           elements of each
//   sums [28, GROUPS] float  sums of parts of a tensor, to be added up
//
// GROUPS threadgroups of 256 for a tensor: they walk it side by side, so that neighbouring threads read neighbouring elements. What
// each thread takes depends on the size alone and sums keep their order, so every run gives the same bits. Grid: 28 * GROUPS
// threadgroups. Template: GROUPS.

// The sum of the squares of elements first, first + stride, ...
template <typename P>
FUNCTION float squares(P x, uint size, uint first, uint stride) {
    float sum = 0.0f;
    for (uint i = first; i < size; i += stride) sum += float(x[i]) * float(x[i]);
    return sum;
}

// Whether a pointer is to `device` or `constant` memory differs from tensor to tensor: no array can hold them.
#define TENSOR(k) case k: sum = squares(x##k, size, first, GROUPS * 256); break;

//// squares
    threadgroup float parts[8];
    uint tensor = threadgroup_position_in_grid.x / GROUPS;
    uint first = threadgroup_position_in_grid.x % GROUPS * 256 + thread_index_in_threadgroup;
    uint size = uint(sizes[tensor]);
    float sum = 0.0f;
    switch (tensor) {
        TENSOR(0) TENSOR(1) TENSOR(2) TENSOR(3) TENSOR(4) TENSOR(5) TENSOR(6)
        TENSOR(7) TENSOR(8) TENSOR(9) TENSOR(10) TENSOR(11) TENSOR(12) TENSOR(13)
        TENSOR(14) TENSOR(15) TENSOR(16) TENSOR(17) TENSOR(18) TENSOR(19) TENSOR(20)
        TENSOR(21) TENSOR(22) TENSOR(23) TENSOR(24) TENSOR(25) TENSOR(26) TENSOR(27)
    }
    sum = simd_sum(sum);
    if (thread_index_in_simdgroup == 0) parts[simdgroup_index_in_threadgroup] = sum;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (thread_index_in_threadgroup != 0) return;
    for (uint part = 1; part < 8; ++part) sum += parts[part];
    sums[threadgroup_position_in_grid.x] = sum;
