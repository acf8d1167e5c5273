// bias_gelu_norm: what follows a matrix product: bias, GELU and LayerNorm, in one pass.
// Specification: bias_gelu_norm_reference in energy_flow_mlx/ops/bias_gelu_norm.py.
//
//   x [N, D] T; bias, gamma, beta [D] float; settings [1] float: epsilon
//   forward:  y [N, D] T = gamma normalised(gelu(x + bias)) + beta, or gelu(gamma normalised(x + bias) + beta) where NORM_FIRST;
//             statistics [N, 2] float: mean and 1 / deviation of each row
//   backward: cotangent [N, D] T, statistics -> d_x [N, D] T,
//             d_parameters [ceil(N / ROWS), 3, D] float: sums over ROWS rows of the gradients of bias, gamma and beta
//
// A threadgroup of GROUP threads (a multiple of 32, at most 1024) has one row (forward) or ROWS rows, one after another (backward); a
// thread keeps the columns thread, thread + GROUP, ... of a row in registers, so that x is read once. Grid: N threadgroups forward,
// ceil(N / ROWS) backward. All arithmetic is float; the sums keep their order, so every run gives the same bits.
// Templates: T, D, GROUP, ROWS, NORM_FIRST.

//// forward
    constexpr uint PER = (D + GROUP - 1) / GROUP;
    constexpr uint SIMDGROUPS = GROUP / 32;
    threadgroup float sums[32];
    uint me = thread_index_in_threadgroup, lane = thread_index_in_simdgroup;
    uint row = threadgroup_position_in_grid.x;
    float value[PER];
    for (uint k = 0; k < PER; ++k) {
        uint column = me + k * GROUP;
        if (column >= D) continue;
        value[k] = float(x[row * D + column]) + bias[column];
        if (!NORM_FIRST) value[k] = gelu(value[k]);
    }
    // The variance of the differences from the mean: the mean of the squares less the square of the mean would cancel.
    float mean = 0.0f, moment = 0.0f;
    for (int pass = 0; pass < 2; ++pass) {
        float sum = 0.0f;
        for (uint k = 0; k < PER; ++k) {
            if (me + k * GROUP >= D) continue;
            float difference = value[k] - mean;
            sum += pass == 0 ? difference : difference * difference;
        }
        sum = simd_sum(sum);
        if (lane == 0) sums[simdgroup_index_in_threadgroup] = sum;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        moment = simd_sum(lane < SIMDGROUPS ? sums[lane] : 0.0f) / float(D);
        if (pass == 0) mean = moment;
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    float scale = metal::rsqrt(moment + settings[0]);
    for (uint k = 0; k < PER; ++k) {
        uint column = me + k * GROUP;
        if (column >= D) continue;
        float result = (value[k] - mean) * scale * gamma[column] + beta[column];
        y[row * D + column] = T(NORM_FIRST ? gelu(result) : result);
    }
    if (me == 0) {
        statistics[2 * row] = mean;
        statistics[2 * row + 1] = scale;
    }

//// backward
    constexpr uint PER = (D + GROUP - 1) / GROUP;
    constexpr uint SIMDGROUPS = GROUP / 32;
    threadgroup float sums[32], products[32];
    uint me = thread_index_in_threadgroup, lane = thread_index_in_simdgroup;
    uint block = threadgroup_position_in_grid.x;
    uint end = metal::min((block + 1) * uint(ROWS), uint(x_shape[0]));
    float d_bias[PER], d_gamma[PER], d_beta[PER];
    for (uint k = 0; k < PER; ++k) d_bias[k] = d_gamma[k] = d_beta[k] = 0.0f;
    for (uint row = block * ROWS; row < end; ++row) {
        float mean = statistics[2 * row], scale = statistics[2 * row + 1];
        // Gradient of the normalised value, and that value; the sums over the row of the first and of their product.
        float d[PER], normal[PER], sum = 0.0f, product = 0.0f;
        for (uint k = 0; k < PER; ++k) {
            uint column = me + k * GROUP;
            if (column >= D) continue;
            float value = float(x[row * D + column]) + bias[column];
            if (!NORM_FIRST) value = gelu(value);
            normal[k] = (value - mean) * scale;
            float from = float(cotangent[row * D + column]);
            if (NORM_FIRST) from *= gelu_derivative(normal[k] * gamma[column] + beta[column]);
            d_gamma[k] += from * normal[k];
            d_beta[k] += from;
            d[k] = from * gamma[column];
            sum += d[k];
            product += d[k] * normal[k];
        }
        sum = simd_sum(sum);
        product = simd_sum(product);
        if (lane == 0) {
            sums[simdgroup_index_in_threadgroup] = sum;
            products[simdgroup_index_in_threadgroup] = product;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
        sum = simd_sum(lane < SIMDGROUPS ? sums[lane] : 0.0f) / float(D);
        product = simd_sum(lane < SIMDGROUPS ? products[lane] : 0.0f) / float(D);
        for (uint k = 0; k < PER; ++k) {
            uint column = me + k * GROUP;
            if (column >= D) continue;
            float gradient = scale * (d[k] - sum - normal[k] * product);
            if (!NORM_FIRST) gradient *= gelu_derivative(float(x[row * D + column]) + bias[column]);
            d_bias[k] += gradient;
            d_x[row * D + column] = T(gradient);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    for (uint k = 0; k < PER; ++k) {
        uint column = me + k * GROUP;
        if (column >= D) continue;
        d_parameters[(block * 3) * D + column] = d_bias[k];
        d_parameters[(block * 3 + 1) * D + column] = d_gamma[k];
        d_parameters[(block * 3 + 2) * D + column] = d_beta[k];
    }
