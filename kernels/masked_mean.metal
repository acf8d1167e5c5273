// masked_mean: the mean over the tokens of a text that are not padding.
// Specification: masked_mean_reference in energy_flow_mlx/ops/masked_mean.py.
//
//   x [B, TOKENS, D] T
//   mask [B, TOKENS] bool     true: a token
//   forward:  mean [B, D] T, count [B] float: tokens of a row, at least 1
//   backward: cotangent [B, D] T, count -> d_x [B, TOKENS, D] T
//
// Forward: a threadgroup of 256 for 32 columns of one row; each of its 8 SIMD-groups adds every 8th token, one column a lane, and the
// first adds up the eight. Grid: B * ceil(D / 32) threadgroups. Backward: a thread for an element of d_x. Sums are float and keep
// their order, so every run gives the same bits.
// Templates: T, D. TOKENS comes from the shape, so that texts of another length compile nothing anew.

//// forward
    constexpr uint PARTS = 8;
    constexpr uint BLOCKS = (D + 31) / 32;
    threadgroup float sums[PARTS * 32];
    threadgroup uint counts[PARTS];
    uint lane = thread_index_in_simdgroup;
    uint part = simdgroup_index_in_threadgroup;
    uint row = threadgroup_position_in_grid.x / BLOCKS;
    uint column = threadgroup_position_in_grid.x % BLOCKS * 32 + lane;
    uint tokens = uint(x_shape[1]);
    float sum = 0.0f;
    uint found = 0;
    for (uint token = row * tokens + part; token < (row + 1) * tokens; token += PARTS) {
        if (!mask[token]) continue;
        found += 1;
        if (column < D) sum += float(x[token * D + column]);
    }
    sums[part * 32 + lane] = sum;
    if (lane == 0) counts[part] = found;
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (part != 0) return;
    for (uint other = 1; other < PARTS; ++other) {
        sum += sums[other * 32 + lane];
        found += counts[other];
    }
    float divisor = float(metal::max(found, 1u));
    if (column < D) mean[row * D + column] = T(sum / divisor);
    if (column == 0) count[row] = divisor;

//// backward
    uint i = thread_position_in_grid.x;
    uint token = i / D;
    uint tokens = uint(mask_shape[1]);
    if (token >= uint(mask_shape[0]) * tokens) return;
    uint row = token / tokens;
    d_x[i] = mask[token] ? T(float(cotangent[row * D + i % D]) / count[row]) : T(0.0f);
