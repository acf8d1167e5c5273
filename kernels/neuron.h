// The layers of a SimpleNeuron, forward, as neuron.metal and flow_step.metal compute them: a SIMD-group has 8 flows.
// A lane has 4 of them, from 4 (lane % 2), and of each layer's outputs i = lane / 2, lane / 2 + 16, ..: products in registers of 4 flows
// by some outputs, and two lanes side by side read the same weights, every second the same activations.
// Activations in threadgroup memory: [output][8 flows].

// Where the parameters lie in `weights`.
template <int HIDDEN, int F>
struct Packed {
    static constexpr CONSTANT uint coord = 0, coord_bias = 9;
    static constexpr CONSTANT uint first = 12, first_bias = first + 4 * HIDDEN, second = first_bias + 3 * HIDDEN;  // gamma and beta follow the bias
    static constexpr CONSTANT uint second_bias = second + HIDDEN * HIDDEN, last = second_bias + 3 * HIDDEN;
    static constexpr CONSTANT uint last_bias = last + F * HIDDEN, count = last_bias + F;
};

// Position and energy of a flow, or of the last where there are fewer.
template <typename P, typename Q>
FUNCTION void read_flow(P position, Q energy, uint flow, uint flows, thread float (&p)[3], thread float& e) {
    uint i = metal::min(flow, flows - 1);
    for (uint m = 0; m < 3; ++m) p[m] = position[3 * i + m];
    e = energy[i];
}

// What the first Linear is given: lane 8 k + f has input k of flow f.
template <typename P>
FUNCTION float encode(P w, thread const float (&p)[3], float energy, uint k) {
    return k == 3 ? energy : w[9 + k] + w[3 * k] * p[0] + w[3 * k + 1] * p[1] + w[3 * k + 2] * p[2];
}

// Linear: output[o][f] of rows from + lane / 2 + 16 o (the last row where there are fewer), flows 4 (lane % 2) + f.
template <int OUT, int ROWS, int INNER, int ROW, typename P, typename Q>
FUNCTION void linear(P w, P bias, Q value, uint lane, uint from, thread float (&output)[OUT][4]) {
    uint row[OUT];
    for (uint o = 0; o < OUT; ++o) {
        row[o] = metal::min(from + lane / 2 + 16 * o, uint(ROWS - 1));
        for (uint f = 0; f < 4; ++f) output[o][f] = bias[row[o]];
    }
    SHORT for (uint j = 0; j + 4 <= INNER; j += 4) {
        float a[4][4], b[4];
        for (uint k = 0; k < 4; ++k) load_packed(value, 2 * (j + k) + lane % 2, a[k]);
        for (uint o = 0; o < OUT; ++o) {
            load_packed(w, (row[o] * ROW + j) / 4, b);
            for (uint k = 0; k < 4; ++k) {
                for (uint f = 0; f < 4; ++f) output[o][f] += b[k] * a[k][f];
            }
        }
    }
    SHORT for (uint j = INNER / 4 * 4; j < INNER; ++j) {
        float a[4];
        load_packed(value, 2 * j + lane % 2, a);
        for (uint o = 0; o < OUT; ++o) {
            for (uint f = 0; f < 4; ++f) output[o][f] += w[row[o] * ROW + j] * a[f];
        }
    }
}

// Whether output o of a lane is one of HIDDEN, rather than beyond the last.
template <int HIDDEN>
FUNCTION bool owned(uint lane, uint o) { return lane / 2 + 16 * o < HIDDEN; }

// Sums over the outputs of a SIMD-group, for each flow.
FUNCTION void over_outputs(thread float (&sum)[4]) {
    for (uint f = 0; f < 4; ++f) {
        for (uint mask = 2; mask < 32; mask *= 2) sum[f] += simd_shuffle_xor(sum[f], mask);
    }
}

// x -> (x - mean) / deviation; scale: 1 / deviation.
template <int HIDDEN, int OUT>
FUNCTION void normalise(thread float (&x)[OUT][4], uint lane, thread float (&scale)[4]) {
    float mean[4] = {0.0f, 0.0f, 0.0f, 0.0f}, square[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (uint o = 0; o < OUT; ++o) {
        for (uint f = 0; f < 4; ++f) mean[f] += owned<HIDDEN>(lane, o) ? x[o][f] : 0.0f;
    }
    over_outputs(mean);
    for (uint o = 0; o < OUT; ++o) {
        for (uint f = 0; f < 4; ++f) {
            x[o][f] -= mean[f] * (1.0f / HIDDEN);
            square[f] += owned<HIDDEN>(lane, o) ? x[o][f] * x[o][f] : 0.0f;
        }
    }
    over_outputs(square);
    for (uint f = 0; f < 4; ++f) scale[f] = metal::rsqrt(square[f] * (1.0f / HIDDEN) + 1e-5f);
    for (uint o = 0; o < OUT; ++o) {
        for (uint f = 0; f < 4; ++f) x[o][f] *= scale[f];
    }
}

// GELU of normalised numbers times gamma plus beta, into threadgroup memory; slope: its derivative.
template <int HIDDEN, int OUT, typename P, typename Q>
FUNCTION void activate(thread const float (&normal)[OUT][4], P gamma, P beta, uint lane, Q value, thread float (&slope)[OUT][4]) {
    for (uint o = 0; o < OUT; ++o) {
        if (!owned<HIDDEN>(lane, o)) continue;
        uint i = lane / 2 + 16 * o;
        float v[4];
        for (uint f = 0; f < 4; ++f) {
            float x = normal[o][f] * gamma[i] + beta[i];
            float integral = normal_integral(x);
            v[f] = x * integral;
            slope[o][f] = integral + x * normal_density(x);
        }
        store_packed(value, 2 * i + lane % 2, v);
    }
}
