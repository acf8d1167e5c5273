// neuron: the whole SimpleNeuron for each flow, its weights in threadgroup memory.
// Specification: neuron_reference in energy_flow_mlx/ops/neuron.py.
//
//   position [N, 3] float, energy [N] float
//   weights [COUNT] float   all parameters in the order of neuron_reference, each flattened
//   settings [1] float      bound of the output, read if BOUNDED
//   forward:  features [N, PADDED] T: F features, then, if PADDED > F, the energy, then zeros; sanitised if BOUNDED
//   backward: cotangent [N, PADDED] T; running: sums of another step to add to, read if RUNNING -> d_position [N, 3] float,
//             d_energy [N] float, d_weights [groups, COUNT] float: one row of sums a threadgroup
//
// A thread has one flow at a time. Its activations lie in a column of threadgroup memory, so that no array of registers needs an index.
// Forward: GROUP threads a group, grid N. Backward: 32 threads a group; a group takes `tiles` [1] int tiles of 32 flows, one after the other.
// The forward pass is computed anew. Templates: T, HIDDEN, F, PADDED, BOUNDED; forward GROUP; backward RUNNING.

template <int HIDDEN, int F>
struct Layout {
    static constexpr int coord = 0, coord_bias = 9;
    static constexpr int first = 12, first_bias = first + 4 * HIDDEN, first_gamma = first_bias + HIDDEN, first_beta = first_gamma + HIDDEN;
    static constexpr int second = first_beta + HIDDEN, second_bias = second + HIDDEN * HIDDEN;
    static constexpr int second_gamma = second_bias + HIDDEN, second_beta = second_gamma + HIDDEN;
    static constexpr int last = second_beta + HIDDEN, last_bias = last + F * HIDDEN, count = last_bias + F;
};

// P is a pointer to threadgroup memory: w to all weights, the others to a thread's column, whose elements lie STRIDE apart.

// Column -> (column - mean) / deviation; returns 1 / deviation.
template <int HIDDEN, int STRIDE, typename P>
FUNCTION float normalise(P x) {
    float mean = 0.0f, square = 0.0f;
    UNROLLED for (uint i = 0; i < HIDDEN; ++i) mean += x[i * STRIDE] / HIDDEN;
    UNROLLED for (uint i = 0; i < HIDDEN; ++i) square += (x[i * STRIDE] - mean) * (x[i * STRIDE] - mean);
    float scale = metal::rsqrt(square / HIDDEN + 1e-5f);
    UNROLLED for (uint i = 0; i < HIDDEN; ++i) x[i * STRIDE] = (x[i * STRIDE] - mean) * scale;
    return scale;
}

// The first Linear and its LayerNorm before gamma and beta.
template <int HIDDEN, int F, int STRIDE, typename P>
FUNCTION float first_normal(P w, thread const float (&input)[4], P out) {
    typedef Layout<HIDDEN, F> at;
    SHORT for (uint i = 0; i < HIDDEN; ++i) {
        float u = w[at::first_bias + i];
        for (uint k = 0; k < 4; ++k) u += w[at::first + 4 * i + k] * input[k];
        out[i * STRIDE] = u;
    }
    return normalise<HIDDEN, STRIDE>(out);
}

// The same of the second.
template <int HIDDEN, int F, int STRIDE, typename P>
FUNCTION float second_normal(P w, P value, P out) {
    typedef Layout<HIDDEN, F> at;
    SHORT for (uint i = 0; i < HIDDEN; ++i) {
        float u = w[at::second_bias + i];
        UNROLLED for (uint j = 0; j < HIDDEN; ++j) u += w[at::second + i * HIDDEN + j] * value[j * STRIDE];
        out[i * STRIDE] = u;
    }
    return normalise<HIDDEN, STRIDE>(out);
}

// GELU of a normalised column times gamma plus beta.
template <int HIDDEN, int STRIDE, typename P>
FUNCTION void activate(P normal, P gamma, P beta, P value) {
    SHORT for (uint i = 0; i < HIDDEN; ++i) value[i * STRIDE] = gelu(normal[i * STRIDE] * gamma[i] + beta[i]);
}

// What the first Linear is given.
template <typename P>
FUNCTION void coordinates(P w, thread const float (&p)[3], float energy, thread float (&input)[4]) {
    for (int k = 0; k < 3; ++k) input[k] = w[9 + k] + w[3 * k] * p[0] + w[3 * k + 1] * p[1] + w[3 * k + 2] * p[2];
    input[3] = energy;
}

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
    coordinates(&w[0], p, energy[flow], input);
    first_normal<HIDDEN, F, GROUP>(&w[0], input, &one[t]);
    activate<HIDDEN, GROUP>(&one[t], &w[at::first_gamma], &w[at::first_beta], &one[t]);
    second_normal<HIDDEN, F, GROUP>(&w[0], &one[t], &two[t]);
    activate<HIDDEN, GROUP>(&two[t], &w[at::second_gamma], &w[at::second_beta], &two[t]);
    SHORT for (uint i = 0; i < F; ++i) {
        float y = w[at::last_bias + i];
        UNROLLED for (uint j = 0; j < HIDDEN; ++j) y += w[at::last + i * HIDDEN + j] * two[j * GROUP + t];
        features[flow * PADDED + i] = T(BOUNDED ? sanitise(y, settings[0]) : y);
    }
    SHORT for (uint i = F; i < PADDED; ++i) {
        float e = BOUNDED ? sanitise(input[3], settings[0]) : input[3];
        features[flow * PADDED + i] = T(i == F ? e : 0.0f);
    }

//// backward
    typedef Layout<HIDDEN, F> at;
    constexpr uint ROW = 33;  // 32 flows and a gap: threads that read down a column then meet different banks
    constexpr uint CHUNK = HIDDEN < 32 ? HIDDEN : 32;
    threadgroup float w[at::count];
    threadgroup float normal_one[HIDDEN * ROW];  // normalised, before gamma and beta; at first gradients of CHUNK features
    threadgroup float normal_two[(HIDDEN < 4 ? 4 : HIDDEN) * ROW];  // later gradients, and at the end the four inputs
    threadgroup float delta[HIDDEN * ROW];
    threadgroup float value[HIDDEN * ROW];  // activations
    uint t = thread_position_in_threadgroup.x;
    uint sums = threadgroup_position_in_grid.x * at::count;
    uint flows = uint(position_shape[0]);
    SHORT for (uint k = t; k < at::count; k += 32) {
        w[k] = weights[k];
        d_weights[sums + k] = RUNNING ? running[sums + k] : 0.0f;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup | mem_flags::mem_device);  // weights are there, sums are 0

    SHORT for (uint tile = 0; tile < uint(tiles[0]); ++tile) {
        uint start = (threadgroup_position_in_grid.x * uint(tiles[0]) + tile) * 32;
        if (start >= flows) break;  // the same for the whole group
        uint flow = start + t;
        bool there = flow < flows;  // where not, gradients are 0 and add nothing

        float input[4], p[3];
        for (int m = 0; m < 3; ++m) p[m] = there ? position[3 * flow + m] : 0.0f;
        coordinates(&w[0], p, there ? energy[flow] : 0.0f, input);
        first_normal<HIDDEN, F, ROW>(&w[0], input, &normal_one[t]);
        activate<HIDDEN, ROW>(&normal_one[t], &w[at::first_gamma], &w[at::first_beta], &value[t]);
        float scale_two = second_normal<HIDDEN, F, ROW>(&w[0], &value[t], &normal_two[t]);
        activate<HIDDEN, ROW>(&normal_two[t], &w[at::second_gamma], &w[at::second_beta], &value[t]);
        UNROLLED for (uint j = 0; j < HIDDEN; ++j) delta[j * ROW + t] = 0.0f;

        // The last layer, CHUNK features at a time: their gradients take the place of normal_one, which is computed again below.
        SHORT for (uint from = 0; from < F; from += CHUNK) {
            uint chunk = metal::min(CHUNK, F - from);
            SHORT for (uint k = 0; k < chunk; ++k) {
                float d = there ? float(cotangent[flow * PADDED + from + k]) : 0.0f;
                if (BOUNDED) {
                    float y = w[at::last_bias + from + k];
                    UNROLLED for (uint j = 0; j < HIDDEN; ++j) y += w[at::last + (from + k) * HIDDEN + j] * value[j * ROW + t];
                    if (replaced(y, settings[0])) d = 0.0f;
                }
                normal_one[k * ROW + t] = d;
                UNROLLED for (uint j = 0; j < HIDDEN; ++j) delta[j * ROW + t] += d * w[at::last + (from + k) * HIDDEN + j];
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);  // gradients of the chunk and activations of all flows
            SHORT for (uint k = 0; k < chunk; ++k) {
                SHORT for (uint j = t; j < HIDDEN; j += 32) {
                    float sum = 0.0f;
                    UNROLLED for (uint f = 0; f < 32; ++f) sum += normal_one[k * ROW + f] * value[j * ROW + f];
                    d_weights[sums + at::last + (from + k) * HIDDEN + j] += sum;
                }
            }
            if (t < chunk) {
                float sum = 0.0f;
                UNROLLED for (uint f = 0; f < 32; ++f) sum += normal_one[t * ROW + f];
                d_weights[sums + at::last_bias + from + t] += sum;
            }
            threadgroup_barrier(mem_flags::mem_threadgroup);  // before the next chunk takes their place
        }
        float scale_one = first_normal<HIDDEN, F, ROW>(&w[0], input, &normal_one[t]);

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
            UNROLLED for (uint f = 0; f < 32; ++f) {
                gamma += delta[i * ROW + f] * normal_two[i * ROW + f];
                beta += delta[i * ROW + f];
            }
            d_weights[sums + at::second_gamma + i] += gamma;
            d_weights[sums + at::second_beta + i] += beta;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);  // before delta changes its meaning
        UNROLLED for (uint i = 0; i < HIDDEN; ++i) {
            delta[i * ROW + t] = scale_two * (delta[i * ROW + t] * w[at::second_gamma + i] - of_delta - normal_two[i * ROW + t] * of_product);
        }
        activate<HIDDEN, ROW>(&normal_one[t], &w[at::first_gamma], &w[at::first_beta], &value[t]);

        // The second layer; from here on normal_two holds gradients of the first activation.
        UNROLLED for (uint j = 0; j < HIDDEN; ++j) normal_two[j * ROW + t] = 0.0f;
        SHORT for (uint i = 0; i < HIDDEN; ++i) {
            float d = delta[i * ROW + t];
            UNROLLED for (uint j = 0; j < HIDDEN; ++j) normal_two[j * ROW + t] += d * w[at::second + i * HIDDEN + j];
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);  // gradients before the second LayerNorm, first activations
        SHORT for (uint j = t; j < HIDDEN; j += 32) {
            float bias = 0.0f;
            UNROLLED for (uint f = 0; f < 32; ++f) bias += delta[j * ROW + f];
            d_weights[sums + at::second_bias + j] += bias;
            SHORT for (uint i = 0; i < HIDDEN; ++i) {
                float sum = 0.0f;
                UNROLLED for (uint f = 0; f < 32; ++f) sum += delta[i * ROW + f] * value[j * ROW + f];
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
            UNROLLED for (uint f = 0; f < 32; ++f) {
                gamma += normal_two[i * ROW + f] * normal_one[i * ROW + f];
                beta += normal_two[i * ROW + f];
            }
            d_weights[sums + at::first_gamma + i] += gamma;
            d_weights[sums + at::first_beta + i] += beta;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);  // before normal_two changes its meaning
        float d_input[4] = {0.0f, 0.0f, 0.0f, 0.0f};
        UNROLLED for (uint i = 0; i < HIDDEN; ++i) {
            float d = scale_one * (normal_two[i * ROW + t] * w[at::first_gamma + i] - of_delta - normal_one[i * ROW + t] * of_product);
            delta[i * ROW + t] = d;
            for (int k = 0; k < 4; ++k) d_input[k] += d * w[at::first + 4 * i + k];
        }
        for (int k = 0; k < 4; ++k) normal_two[k * ROW + t] = input[k];

        // The first layer and the coordinates.
        threadgroup_barrier(mem_flags::mem_threadgroup);  // gradients before the first LayerNorm, inputs
        SHORT for (uint i = t; i < HIDDEN; i += 32) {
            float bias = 0.0f;
            UNROLLED for (uint f = 0; f < 32; ++f) bias += delta[i * ROW + f];
            d_weights[sums + at::first_bias + i] += bias;
            SHORT for (uint k = 0; k < 4; ++k) {
                float sum = 0.0f;
                UNROLLED for (uint f = 0; f < 32; ++f) sum += delta[i * ROW + f] * normal_two[k * ROW + f];
                d_weights[sums + at::first + 4 * i + k] += sum;
            }
        }
        for (int k = 0; k < 3; ++k) {
            float d = d_input[k];
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
