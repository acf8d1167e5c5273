// heads: what follows the first product of the carrier's two heads: bias, GELU, the second products, tanh and scale.
// Specification: heads_reference in energy_flow_mlx/ops/heads.py.
//
//   inner [N, A + M] T            the first product of both heads side by side: A columns of energy, M of displacement
//   bias [A + M] float
//   energy_weight [A] float, displacement_weight [3, M] float, out_bias [4] float (energy, x, y, z)
//   scale [1] float               factor on displacements
//   forward:  energy [N] float = tanh(GELU(inner + bias) . energy_weight + out_bias[0])
//             displacement [N, 3] float = scale (GELU(inner + bias) . displacement_weight + out_bias[1..3])
//   backward: energy, d_energy [N] float, d_displacement [N, 3] float; running, running_out: sums of another step to add to,
//             read if RUNNING -> d_inner [N, A + M] T,
//             sums [ceil(N / ROWS), 4, A + M] float: over ROWS rows, the gradients of bias, and of energy_weight or the three rows
//             of displacement_weight; out_sums [ceil(N / ROWS), 4] float: that of out_bias
//
// Forward: a SIMD-group has ROWS rows; grid 32 ceil(N / ROWS). Backward: a thread has one column of ROWS rows, which are others; grid
// (A + M) ceil(N / ROWS). Templates: T, A, M, ROWS; backward RUNNING.

//// forward
    uint first = thread_position_in_grid.x / 32 * ROWS, rows = uint(inner_shape[0]);
    uint lane = thread_index_in_simdgroup;
    float e[ROWS] = {}, x[ROWS] = {}, y[ROWS] = {}, z[ROWS] = {}, a[ROWS];
    for (uint j = lane; j < A + M; j += 32) {
        for (uint r = 0; r < ROWS; ++r) {
            uint row = metal::min(first + r, rows - 1);  // beyond the last it again: whole SIMD-groups
            a[r] = gelu(float(inner[row * (A + M) + j]) + bias[j]);
        }
        if (j < A) {
            for (uint r = 0; r < ROWS; ++r) e[r] += a[r] * energy_weight[j];
        } else {
            uint k = j - A;
            for (uint r = 0; r < ROWS; ++r) {
                x[r] += a[r] * displacement_weight[k];
                y[r] += a[r] * displacement_weight[M + k];
                z[r] += a[r] * displacement_weight[2 * M + k];
            }
        }
    }
    for (uint r = 0; r < ROWS; ++r) {
        e[r] = simd_sum(e[r]), x[r] = simd_sum(x[r]), y[r] = simd_sum(y[r]), z[r] = simd_sum(z[r]);
        uint row = first + r;
        if (lane > 0 || row >= rows) continue;
        energy[row] = metal::tanh(e[r] + out_bias[0]);
        displacement[3 * row] = scale[0] * (x[r] + out_bias[1]);
        displacement[3 * row + 1] = scale[0] * (y[r] + out_bias[2]);
        displacement[3 * row + 2] = scale[0] * (z[r] + out_bias[3]);
    }

//// backward
    uint block = thread_position_in_grid.x / (A + M);
    uint j = thread_position_in_grid.x % (A + M);
    uint rows = uint(inner_shape[0]);
    if (block * ROWS >= rows) return;
    uint end = metal::min((block + 1) * uint(ROWS), rows);
    bool of_energy = j < A;
    float first = of_energy ? energy_weight[j] : displacement_weight[j - A];
    float second = of_energy ? 0.0f : displacement_weight[M + j - A];
    float third = of_energy ? 0.0f : displacement_weight[2 * M + j - A];
    float sum_bias = 0.0f, sum_first = 0.0f, sum_second = 0.0f, sum_third = 0.0f, sum_out = 0.0f;
    if (RUNNING) {
        sum_bias = running[(block * 4) * (A + M) + j];
        sum_first = running[(block * 4 + 1) * (A + M) + j];
        sum_second = running[(block * 4 + 2) * (A + M) + j];
        sum_third = running[(block * 4 + 3) * (A + M) + j];
        if (j < 4) sum_out = running_out[block * 4 + j];
    }
    for (uint row = block * ROWS; row < end; ++row) {
        float e = energy[row];
        float of_e = d_energy[row] * (1.0f - e * e);
        float of_x = d_displacement[3 * row] * scale[0];
        float of_y = d_displacement[3 * row + 1] * scale[0];
        float of_z = d_displacement[3 * row + 2] * scale[0];
        float x = float(inner[row * (A + M) + j]) + bias[j];
        float integral = normal_integral(x);  // of which GELU and its derivative are made
        float a = x * integral;
        float d = (of_energy ? of_e * first : of_x * first + of_y * second + of_z * third) * (integral + x * normal_density(x));
        d_inner[row * (A + M) + j] = T(d);
        sum_bias += d;
        sum_first += a * (of_energy ? of_e : of_x);
        sum_second += a * of_y;
        sum_third += a * of_z;
        if (j < 4) sum_out += j == 0 ? of_e : j == 1 ? of_x : j == 2 ? of_y : of_z;
    }
    sums[(block * 4) * (A + M) + j] = sum_bias;
    sums[(block * 4 + 1) * (A + M) + j] = sum_first;
    sums[(block * 4 + 2) * (A + M) + j] = sum_second;
    sums[(block * 4 + 3) * (A + M) + j] = sum_third;
    if (j < 4) out_sums[block * 4 + j] = sum_out;
