// bias_gelu_norm: what follows a matrix product: bias, GELU and LayerNorm.
// Specification: bias_gelu_norm_reference in energy_flow_mlx/ops/bias_gelu_norm.py.
//
//   x [N, D] T; bias, gamma, beta [D] float; settings [1] float: epsilon
//   y [N, D] T = gamma normalised(gelu(x + bias)) + beta; statistics [N, 2] float: mean and 1 / deviation of each row
//   cotangent [N, D] T -> d_x [N, D] T,
//   d_parameters [ceil(N / ROWS), 3, D] float: sums over ROWS rows of the gradients of bias, gamma and beta
//
// A row that PER registers of each of GROUP threads can hold is read once, in one launch:
//   forward:  -> y, statistics; a threadgroup of GROUP has one row
//   backward: statistics, cotangent -> d_x, d_parameters; a threadgroup has ROWS rows, one after another
// A wider one is cut into PARTS parts of GROUP PER columns, and read again once the sums over the row are known:
//   moments:  -> parts [N, PARTS, 2] float: of each part the mean, and the sum of the squares of the differences from it
//   apply:    parts -> y, statistics; like moments, a threadgroup of GROUP for a part
//   products: statistics, cotangent -> parts [N, PARTS, 2] float: of each part the sums of the gradient of the normalised value, and of
//             its product with that value; a threadgroup for a part
//   columns:  statistics, cotangent, parts -> d_x, d_parameters; a threadgroup of GROUP for as many columns of ROWS rows
//
// GROUP is a multiple of 32, at most 512 (CUDA: 1024); a thread has the columns thread, thread + GROUP, ... All arithmetic is float; the
// sums keep their order, so every run gives the same bits. Templates: T, D, GROUP; where they are named PER, PARTS, ROWS.

// The sum over a threadgroup, in every thread; `sums` has a place for each of its SIMD-groups.
template <uint SIMDGROUPS, typename P>
FUNCTION float over_group(float x, P sums, uint lane, uint simdgroup) {
    x = simd_sum(x);
    if (lane == 0) sums[simdgroup] = x;
    threadgroup_barrier(mem_flags::mem_threadgroup);  // sums of SIMD-groups
    x = simd_sum(lane < SIMDGROUPS ? sums[lane] : 0.0f);
    threadgroup_barrier(mem_flags::mem_threadgroup);  // before other sums take their places
    return x;
}

// The sum over the parts of a row of the first or second (k = 0, 1) of their numbers.
template <uint PARTS, typename P>
FUNCTION float over_parts(P parts, uint row, uint k) {
    float sum = 0.0f;
    for (uint part = 0; part < PARTS; ++part) sum += parts[2 * (row * PARTS + part) + k];
    return sum;
}

//// forward
    threadgroup float sums[GROUP / 32];
    uint me = thread_index_in_threadgroup, lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
    uint row = threadgroup_position_in_grid.x;
    float value[PER], sum = 0.0f, square = 0.0f;
    for (uint k = 0; k < PER; ++k) {
        uint column = me + k * GROUP;
        if (column >= D) continue;
        value[k] = gelu(float(x[row * D + column]) + bias[column]);
        sum += value[k];
    }
    float mean = over_group<GROUP / 32>(sum, &sums[0], lane, simdgroup) / float(D);
    // The variance of the differences from the mean: the mean of the squares less the square of the mean would cancel.
    for (uint k = 0; k < PER; ++k) {
        if (me + k * GROUP < D) square += (value[k] - mean) * (value[k] - mean);
    }
    float scale = metal::rsqrt(over_group<GROUP / 32>(square, &sums[0], lane, simdgroup) / float(D) + settings[0]);
    for (uint k = 0; k < PER; ++k) {
        uint column = me + k * GROUP;
        if (column < D) y[row * D + column] = T((value[k] - mean) * scale * gamma[column] + beta[column]);
    }
    if (me == 0) {
        statistics[2 * row] = mean;
        statistics[2 * row + 1] = scale;
    }

//// backward
    threadgroup float sums[GROUP / 32], products[GROUP / 32];
    uint me = thread_index_in_threadgroup, lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
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
            normal[k] = (gelu(float(x[row * D + column]) + bias[column]) - mean) * scale;
            float from = float(cotangent[row * D + column]);
            d_gamma[k] += from * normal[k];
            d_beta[k] += from;
            d[k] = from * gamma[column];
            sum += d[k];
            product += d[k] * normal[k];
        }
        sum = simd_sum(sum);
        product = simd_sum(product);
        if (lane == 0) {
            sums[simdgroup] = sum;
            products[simdgroup] = product;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);  // sums of SIMD-groups
        sum = simd_sum(lane < GROUP / 32 ? sums[lane] : 0.0f) / float(D);
        product = simd_sum(lane < GROUP / 32 ? products[lane] : 0.0f) / float(D);
        for (uint k = 0; k < PER; ++k) {
            uint column = me + k * GROUP;
            if (column >= D) continue;
            float gradient = scale * (d[k] - sum - normal[k] * product);
            gradient *= gelu_derivative(float(x[row * D + column]) + bias[column]);
            d_bias[k] += gradient;
            d_x[row * D + column] = T(gradient);
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);  // before the next row's sums take their places
    }
    for (uint k = 0; k < PER; ++k) {
        uint column = me + k * GROUP;
        if (column >= D) continue;
        d_parameters[(block * 3) * D + column] = d_bias[k];
        d_parameters[(block * 3 + 1) * D + column] = d_gamma[k];
        d_parameters[(block * 3 + 2) * D + column] = d_beta[k];
    }

//// moments
    threadgroup float sums[GROUP / 32];
    uint me = thread_index_in_threadgroup, lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
    uint row = threadgroup_position_in_grid.x / PARTS, begin = threadgroup_position_in_grid.x % PARTS * (GROUP * PER);
    float value[PER], sum = 0.0f, square = 0.0f;
    for (uint k = 0; k < PER; ++k) {
        uint column = begin + me + k * GROUP;
        if (column >= D) continue;
        value[k] = gelu(float(x[row * D + column]) + bias[column]);
        sum += value[k];
    }
    float count = float(metal::min(uint(GROUP * PER), D - begin));
    float mean = over_group<GROUP / 32>(sum, &sums[0], lane, simdgroup) / count;
    for (uint k = 0; k < PER; ++k) {
        if (begin + me + k * GROUP < D) square += (value[k] - mean) * (value[k] - mean);
    }
    square = over_group<GROUP / 32>(square, &sums[0], lane, simdgroup);
    if (me == 0) {
        parts[2 * threadgroup_position_in_grid.x] = mean;
        parts[2 * threadgroup_position_in_grid.x + 1] = square;
    }

//// apply
    uint me = thread_index_in_threadgroup;
    uint row = threadgroup_position_in_grid.x / PARTS, begin = threadgroup_position_in_grid.x % PARTS * (GROUP * PER);
    // Moments of parts make those of the whole (Chan, Golub and LeVeque, 1979). As differences from the first: of large means the sum
    // would lose what tells them apart.
    float origin = parts[2 * row * PARTS], mean = 0.0f, square = 0.0f;
    for (uint part = 0; part < PARTS; ++part) {
        float count = float(metal::min(uint(GROUP * PER), D - part * (GROUP * PER)));
        mean += count / float(D) * (parts[2 * (row * PARTS + part)] - origin);
    }
    for (uint part = 0; part < PARTS; ++part) {
        float count = float(metal::min(uint(GROUP * PER), D - part * (GROUP * PER)));
        float difference = parts[2 * (row * PARTS + part)] - origin - mean;
        square += parts[2 * (row * PARTS + part) + 1] + count * difference * difference;
    }
    mean += origin;
    float scale = metal::rsqrt(square / float(D) + settings[0]);
    for (uint k = 0; k < PER; ++k) {
        uint column = begin + me + k * GROUP;
        if (column >= D) continue;
        float value = gelu(float(x[row * D + column]) + bias[column]);
        y[row * D + column] = T((value - mean) * scale * gamma[column] + beta[column]);
    }
    if (begin == 0 && me == 0) {
        statistics[2 * row] = mean;
        statistics[2 * row + 1] = scale;
    }

//// products
    threadgroup float sums[GROUP / 32];
    uint me = thread_index_in_threadgroup, lane = thread_index_in_simdgroup, simdgroup = simdgroup_index_in_threadgroup;
    uint row = threadgroup_position_in_grid.x / PARTS, begin = threadgroup_position_in_grid.x % PARTS * (GROUP * PER);
    float mean = statistics[2 * row], scale = statistics[2 * row + 1], sum = 0.0f, product = 0.0f;
    for (uint k = 0; k < PER; ++k) {
        uint column = begin + me + k * GROUP;
        if (column >= D) continue;
        float d = float(cotangent[row * D + column]) * gamma[column];
        sum += d;
        product += d * (gelu(float(x[row * D + column]) + bias[column]) - mean) * scale;
    }
    sum = over_group<GROUP / 32>(sum, &sums[0], lane, simdgroup);
    product = over_group<GROUP / 32>(product, &sums[0], lane, simdgroup);
    if (me == 0) {
        parts[2 * threadgroup_position_in_grid.x] = sum;
        parts[2 * threadgroup_position_in_grid.x + 1] = product;
    }

//// columns
    constexpr uint BLOCKS = (D + GROUP - 1) / GROUP;
    threadgroup float sums[ROWS], products[ROWS];
    uint me = thread_index_in_threadgroup;
    uint block = threadgroup_position_in_grid.x / BLOCKS, column = threadgroup_position_in_grid.x % BLOCKS * GROUP + me;
    uint first = block * ROWS, rows = metal::min(uint(ROWS), uint(x_shape[0]) - first);
    if (me < rows) {
        sums[me] = over_parts<PARTS>(parts, first + me, 0) / float(D);
        products[me] = over_parts<PARTS>(parts, first + me, 1) / float(D);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // sums over rows
    if (column >= D) return;
    float d_bias = 0.0f, d_gamma = 0.0f, d_beta = 0.0f;
    for (uint r = 0; r < rows; ++r) {
        uint at = (first + r) * D + column;
        float scale = statistics[2 * (first + r) + 1];
        float value = float(x[at]) + bias[column], from = float(cotangent[at]);
        float integral = normal_integral(value);  // of which GELU and its derivative are made
        float normal = (value * integral - statistics[2 * (first + r)]) * scale;
        float gradient = scale * (from * gamma[column] - sums[r] - normal * products[r]);
        gradient *= integral + value * normal_density(value);
        d_bias += gradient;
        d_gamma += from * normal;
        d_beta += from;
        d_x[at] = T(gradient);
    }
    d_parameters[(block * 3) * D + column] = d_bias;
    d_parameters[(block * 3 + 1) * D + column] = d_gamma;
    d_parameters[(block * 3 + 2) * D + column] = d_beta;
