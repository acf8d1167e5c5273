// cast: up to 14 tensors in another dtype, in one launch.
// Specification: cast_reference in energy_flow_mlx/ops/cast.py.
//
//   x0 .. x13 [size]      tensors of any shape, of one floating-point dtype
//   sizes [14] int        elements of each
//   y0 .. y13 [size] T    the same numbers
//
// A thread has four neighbouring elements of one tensor, those of the first tensor first. Grid: the sum of ceil(size / 4). Template: T.

// Elements 4 i .. 4 i + 3, as far as there are any.
template <typename P, typename T>
FUNCTION void four(P x, DEVICE T* y, uint i, uint size) {
    if (4 * i + 4 <= size) {
        float value[4];
        load4(x, i, value);
        store4(y, i, value);
        return;
    }
    for (uint k = 4 * i; k < size; ++k) y[k] = T(float(x[k]));
}

// Whether a pointer is to `device` or `constant` memory differs from tensor to tensor: no array can hold them.
#define TENSOR(k) \
    if (i < (uint(sizes[k]) + 3) / 4) { \
        four(x##k, y##k, i, uint(sizes[k])); \
        return; \
    } \
    i -= (uint(sizes[k]) + 3) / 4;

//// cast
    uint i = thread_position_in_grid.x;
    TENSOR(0) TENSOR(1) TENSOR(2) TENSOR(3) TENSOR(4) TENSOR(5) TENSOR(6)
    TENSOR(7) TENSOR(8) TENSOR(9) TENSOR(10) TENSOR(11) TENSOR(12) TENSOR(13)
