// neuron: the whole SimpleNeuron for each flow, its weights in threadgroup memory.
// Specification: neuron_reference in energy_flow_mlx/ops/neuron.py.
//
//   position [N, 3] float, energy [N] float
//   weights [COUNT] float   all parameters in the order of neuron_reference, each flattened
//   settings [1] float      bound of the output, read if BOUNDED
//   forward:  features [N, PADDED] T: F features, then, if PADDED > F, the energy, then zeros; sanitised if BOUNDED
//   backward: cotangent [N, PADDED] T -> d_position [N, 3] float, d_energy [N] float,
//             d_weights [groups, COUNT] float: one row of sums a threadgroup
//
// A thread has one flow at a time. Its activations lie in a column of threadgroup memory, so that no array of registers needs an index.
// Forward: GROUP threads a group, grid N. Backward: 32 threads a group; a group takes `tiles` [1] int tiles of 32 flows, one after the other.
// The forward pass is computed anew. Templates: T, HIDDEN, F, PADDED, GROUP, BOUNDED.

template <int HIDDEN, int F>
struct Layout {
    static constexpr int coord = 0, coord_bias = 9;
    static constexpr int first = 12, first_bias = first + 4 * HIDDEN, first_gamma = first_bias + HIDDEN, first_beta = first_gamma + HIDDEN;
    static constexpr int second = first_beta + HIDDEN, second_bias = second + HIDDEN * HIDDEN;
    static constexpr int second_gamma = second_bias + HIDDEN, second_beta = second_gamma + HIDDEN;
    static constexpr int last = second_beta + HIDDEN, last_bias = last + F * HIDDEN, count = last_bias + F;
};

//// forward
    typedef Layout<HIDDEN, F> at;
    threadgroup float w[at::count];
    threadgroup float one[HIDDEN * GROUP];
    threadgroup float two[HIDDEN * GROUP];
    uint t = thread_position_in_threadgroup.x;
    SHORT for (uint k = t; k < at::count; k += GROUP) w[k] = weights[k];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    uint flow = thread_position_in_grid.x;
    if (flow >= uint(position_shape[0])) return;

    float input[4], p[3];
    for (int m = 0; m < 3; ++m) p[m] = position[3 * flow + m];
    for (int k = 0; k < 3; ++k) {
        input[k] = w[at::coord_bias + k] + w[at::coord + 3 * k] * p[0] + w[at::coord + 3 * k + 1] * p[1] + w[at::coord + 3 * k + 2] * p[2];
    }
    input[3] = energy[flow];
    float mean = 0.0f, square = 0.0f;
    SHORT for (uint i = 0; i < HIDDEN; ++i) {
        float u = w[at::first_bias + i];
        SHORT for (uint k = 0; k < 4; ++k) u += w[at::first + 4 * i + k] * input[k];
        one[i * GROUP + t] = u;
        mean += u / HIDDEN;
    }
    SHORT for (uint i = 0; i < HIDDEN; ++i) square += (one[i * GROUP + t] - mean) * (one[i * GROUP + t] - mean);
    float scale = metal::rsqrt(square / HIDDEN + 1e-5f);
    SHORT for (uint i = 0; i < HIDDEN; ++i) {
        one[i * GROUP + t] = gelu((one[i * GROUP + t] - mean) * scale * w[at::first_gamma + i] + w[at::first_beta + i]);
    }
    mean = square = 0.0f;
    SHORT for (uint i = 0; i < HIDDEN; ++i) {
        float u = w[at::second_bias + i];
        SHORT for (uint j = 0; j < HIDDEN; ++j) u += w[at::second + i * HIDDEN + j] * one[j * GROUP + t];
        two[i * GROUP + t] = u;
        mean += u / HIDDEN;
    }
    SHORT for (uint i = 0; i < HIDDEN; ++i) square += (two[i * GROUP + t] - mean) * (two[i * GROUP + t] - mean);
    scale = metal::rsqrt(square / HIDDEN + 1e-5f);
    SHORT for (uint i = 0; i < HIDDEN; ++i) {
        two[i * GROUP + t] = gelu((two[i * GROUP + t] - mean) * scale * w[at::second_gamma + i] + w[at::second_beta + i]);
    }
    SHORT for (uint i = 0; i < F; ++i) {
        float y = w[at::last_bias + i];
        SHORT for (uint j = 0; j < HIDDEN; ++j) y += w[at::last + i * HIDDEN + j] * two[j * GROUP + t];
        features[flow * PADDED + i] = T(BOUNDED ? sanitise(y, settings[0]) : y);
    }
    SHORT for (uint i = F; i < PADDED; ++i) {
        float e = BOUNDED ? sanitise(input[3], settings[0]) : input[3];
        features[flow * PADDED + i] = T(i == F ? e : 0.0f);
    }

//// backward
    typedef Layout<HIDDEN, F> at;
    constexpr uint ROW = 33;  // 32 flows and a gap: threads that read down a column then meet different banks
    threadgroup float w[at::count];
    threadgroup float normal_one[HIDDEN * ROW];  // normalised, before gamma and beta
    threadgroup float normal_two[(HIDDEN < 4 ? 4 : HIDDEN) * ROW];  // later gradients, and at the end the four inputs
    threadgroup float delta[HIDDEN * ROW];
    threadgroup float value[HIDDEN * ROW];       // activations
    threadgroup uint passes[((F + 31) / 32) * 32];
    uint t = thread_position_in_threadgroup.x;
    uint sums = threadgroup_position_in_grid.x * at::count;
    uint flows = uint(position_shape[0]);
    SHORT for (uint k = t; k < at::count; k += 32) {
        w[k] = weights[k];
        d_weights[sums + k] = 0.0f;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);  // weights are there, sums are 0

    SHORT for (uint tile = 0; tile < uint(tiles[0]); ++tile) {
        uint start = (threadgroup_position_in_grid.x * uint(tiles[0]) + tile) * 32;
        if (start >= flows) break;  // the same for the whole group
        uint flow = start + t;
        uint end = metal::min(32u, flows - start);
        bool there = flow < flows;

        // The forward pass, up to what the backward pass needs.
        float input[4], p[3];
        for (int m = 0; m < 3; ++m) p[m] = there ? position[3 * flow + m] : 0.0f;
        for (int k = 0; k < 3; ++k) {
            input[k] = w[at::coord_bias + k] + w[at::coord + 3 * k] * p[0] + w[at::coord + 3 * k + 1] * p[1] + w[at::coord + 3 * k + 2] * p[2];
        }
        input[3] = there ? energy[flow] : 0.0f;
        float mean = 0.0f, square = 0.0f;
        SHORT for (uint i = 0; i < HIDDEN; ++i) {
            float u = w[at::first_bias + i];
            SHORT for (uint k = 0; k < 4; ++k) u += w[at::first + 4 * i + k] * input[k];
            normal_one[i * ROW + t] = u;
            mean += u / HIDDEN;
        }
        SHORT for (uint i = 0; i < HIDDEN; ++i) square += (normal_one[i * ROW + t] - mean) * (normal_one[i * ROW + t] - mean);
        float scale_one = metal::rsqrt(square / HIDDEN + 1e-5f);
        SHORT for (uint i = 0; i < HIDDEN; ++i) {
            float n = (normal_one[i * ROW + t] - mean) * scale_one;
            normal_one[i * ROW + t] = n;
            value[i * ROW + t] = gelu(n * w[at::first_gamma + i] + w[at::first_beta + i]);
        }
        mean = square = 0.0f;
        SHORT for (uint i = 0; i < HIDDEN; ++i) {
            float u = w[at::second_bias + i];
            SHORT for (uint j = 0; j < HIDDEN; ++j) u += w[at::second + i * HIDDEN + j] * value[j * ROW + t];
            normal_two[i * ROW + t] = u;
            mean += u / HIDDEN;
        }
        SHORT for (uint i = 0; i < HIDDEN; ++i) square += (normal_two[i * ROW + t] - mean) * (normal_two[i * ROW + t] - mean);
        float scale_two = metal::rsqrt(square / HIDDEN + 1e-5f);
        SHORT for (uint i = 0; i < HIDDEN; ++i) {
            float n = (normal_two[i * ROW + t] - mean) * scale_two;
            normal_two[i * ROW + t] = n;
            value[i * ROW + t] = gelu(n * w[at::second_gamma + i] + w[at::second_beta + i]);
            delta[i * ROW + t] = 0.0f;
        }

        // The last layer: which features pass a gradient, and what reaches the second activation.
        SHORT for (uint i = 0; i < F; i += 32) {
            uint bits = 0;
            SHORT for (uint k = i; k < metal::min(i + 32u, uint(F)); ++k) {
                if (BOUNDED) {
                    float y = w[at::last_bias + k];
                    SHORT for (uint j = 0; j < HIDDEN; ++j) y += w[at::last + k * HIDDEN + j] * value[j * ROW + t];
                    if (replaced(y, settings[0])) continue;
                }
                bits |= 1u << (k - i);
                float d = there ? float(cotangent[flow * PADDED + k]) : 0.0f;
                SHORT for (uint j = 0; j < HIDDEN; ++j) delta[j * ROW + t] += d * w[at::last + k * HIDDEN + j];
            }
            passes[i + t] = bits;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);  // activations of all flows, before their sums
        SHORT for (uint i = 0; i < F; ++i) {
            SHORT for (uint j = t; j < HIDDEN; j += 32) {
                float sum = 0.0f;
                SHORT for (uint f = 0; f < end; ++f) {
                    bool pass = passes[i / 32 * 32 + f] >> (i % 32) & 1u;
                    sum += pass ? float(cotangent[(start + f) * PADDED + i]) * value[j * ROW + f] : 0.0f;
                }
                d_weights[sums + at::last + i * HIDDEN + j] += sum;
            }
        }
        SHORT for (uint i = t; i < F; i += 32) {
            float sum = 0.0f;
            SHORT for (uint f = 0; f < end; ++f) {
                bool pass = passes[i / 32 * 32 + f] >> (i % 32) & 1u;
                sum += pass ? float(cotangent[(start + f) * PADDED + i]) : 0.0f;
            }
            d_weights[sums + at::last_bias + i] += sum;
        }

        // The second GELU and LayerNorm.
        float of_delta = 0.0f, of_product = 0.0f;
        SHORT for (uint i = 0; i < HIDDEN; ++i) {
            float n = normal_two[i * ROW + t];
            float d = delta[i * ROW + t] * gelu_derivative(n * w[at::second_gamma + i] + w[at::second_beta + i]);
            delta[i * ROW + t] = d;
            of_delta += d * w[at::second_gamma + i] / HIDDEN;
            of_product += d * w[at::second_gamma + i] * n / HIDDEN;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);  // gradients behind the second LayerNorm
        SHORT for (uint i = t; i < HIDDEN; i += 32) {
            float gamma = 0.0f, beta = 0.0f;
            SHORT for (uint f = 0; f < end; ++f) {
                gamma += delta[i * ROW + f] * normal_two[i * ROW + f];
                beta += delta[i * ROW + f];
            }
            d_weights[sums + at::second_gamma + i] += gamma;
            d_weights[sums + at::second_beta + i] += beta;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);  // before delta changes its meaning
        SHORT for (uint i = 0; i < HIDDEN; ++i) {
            delta[i * ROW + t] = scale_two * (delta[i * ROW + t] * w[at::second_gamma + i] - of_delta - normal_two[i * ROW + t] * of_product);
            value[i * ROW + t] = gelu(normal_one[i * ROW + t] * w[at::first_gamma + i] + w[at::first_beta + i]);
        }

        // The second layer; from here on normal_two holds gradients of the first activation.
        SHORT for (uint j = 0; j < HIDDEN; ++j) normal_two[j * ROW + t] = 0.0f;
        SHORT for (uint i = 0; i < HIDDEN; ++i) {
            float d = delta[i * ROW + t];
            SHORT for (uint j = 0; j < HIDDEN; ++j) normal_two[j * ROW + t] += d * w[at::second + i * HIDDEN + j];
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);  // gradients before the second LayerNorm, first activations
        SHORT for (uint j = t; j < HIDDEN; j += 32) {
            float bias = 0.0f;
            SHORT for (uint f = 0; f < end; ++f) bias += delta[j * ROW + f];
            d_weights[sums + at::second_bias + j] += bias;
            SHORT for (uint i = 0; i < HIDDEN; ++i) {
                float sum = 0.0f;
                SHORT for (uint f = 0; f < end; ++f) sum += delta[i * ROW + f] * value[j * ROW + f];
                d_weights[sums + at::second + i * HIDDEN + j] += sum;
            }
        }

        // The first GELU and LayerNorm.
        of_delta = of_product = 0.0f;
        SHORT for (uint i = 0; i < HIDDEN; ++i) {
            float n = normal_one[i * ROW + t];
            float d = normal_two[i * ROW + t] * gelu_derivative(n * w[at::first_gamma + i] + w[at::first_beta + i]);
            normal_two[i * ROW + t] = d;
            of_delta += d * w[at::first_gamma + i] / HIDDEN;
            of_product += d * w[at::first_gamma + i] * n / HIDDEN;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);  // gradients behind the first LayerNorm
        SHORT for (uint i = t; i < HIDDEN; i += 32) {
            float gamma = 0.0f, beta = 0.0f;
            SHORT for (uint f = 0; f < end; ++f) {
                gamma += normal_two[i * ROW + f] * normal_one[i * ROW + f];
                beta += normal_two[i * ROW + f];
            }
            d_weights[sums + at::first_gamma + i] += gamma;
            d_weights[sums + at::first_beta + i] += beta;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);  // before normal_two changes its meaning
        float d_input[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        SHORT for (uint i = 0; i < HIDDEN; ++i) {
            float d = scale_one * (normal_two[i * ROW + t] * w[at::first_gamma + i] - of_delta - normal_one[i * ROW + t] * of_product);
            delta[i * ROW + t] = d;
            for (int k = 0; k < 4; ++k) d_input[k] += d * w[at::first + 4 * i + k];
        }
        for (int k = 0; k < 4; ++k) normal_two[k * ROW + t] = input[k];

        // The first layer and the coordinates.
        threadgroup_barrier(mem_flags::mem_threadgroup);  // gradients before the first LayerNorm, inputs
        SHORT for (uint i = t; i < HIDDEN; i += 32) {
            float bias = 0.0f;
            SHORT for (uint f = 0; f < end; ++f) bias += delta[i * ROW + f];
            d_weights[sums + at::first_bias + i] += bias;
            SHORT for (uint k = 0; k < 4; ++k) {
                float sum = 0.0f;
                SHORT for (uint f = 0; f < end; ++f) sum += delta[i * ROW + f] * normal_two[k * ROW + f];
                d_weights[sums + at::first + 4 * i + k] += sum;
            }
        }
        for (int k = 0; k < 3; ++k) {
            float d = there ? d_input[k] : 0.0f;
            float bias = simd_sum(d), x = simd_sum(d * p[0]), y = simd_sum(d * p[1]), z = simd_sum(d * p[2]);
            if (t == 0) {
                d_weights[sums + at::coord_bias + k] += bias;
                d_weights[sums + at::coord + 3 * k] += x;
                d_weights[sums + at::coord + 3 * k + 1] += y;
                d_weights[sums + at::coord + 3 * k + 2] += z;
            }
        }
        if (there) {
            for (int m = 0; m < 3; ++m) {
                d_position[3 * flow + m] = d_input[0] * w[at::coord + m] + d_input[1] * w[at::coord + 3 + m] + d_input[2] * w[at::coord + 6 + m];
            }
            float d = d_input[3];
            if (PADDED > F && !(BOUNDED && replaced(input[3], settings[0]))) d += float(cotangent[flow * PADDED + F]);
            d_energy[flow] = d;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);  // before the next tile overwrites
    }
