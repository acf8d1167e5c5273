// neuron: the whole SimpleNeuron for a tile of flows, its weights in threadgroup memory.
// Specification: neuron_reference in energy_flow_mlx/ops/neuron.py.
//
//   position [N, 3] float, energy [N] float
//   weights [Packed::count] float   all parameters in the order of neuron_reference, each flattened; aligned to 16 bytes
//   settings [1] float              bound of the output, read if BOUNDED
//   forward:  features [N, PADDED] T: F features, then, if PADDED > F, the energy, then zeros; sanitised if BOUNDED
//   backward: cotangent [N, PADDED] T; running: sums of another step to add to, read if RUNNING -> d_position [N, 3] float,
//             d_energy [N] float, d_weights [groups, Packed::count] float: one row of sums a threadgroup
//
// GROUP threads, whole SIMD-groups, have a tile of GROUP / 4 flows; a backward group takes `tiles` [1] int tiles one after the other.
// The forward pass is computed anew in backward; if SPARING, what the first layer and the slopes of GELU need, twice, and fewer features at
// a time: some 35 registers less of a thread. Templates: T, HIDDEN, F, PADDED, BOUNDED, GROUP; backward RUNNING, SPARING.
//
// A SIMD-group has 8 flows of the tile from their position to their features, so that layers and LayerNorms wait for no other.
// neuron.h says what a lane has of them. Activations in threadgroup memory: [SIMD-group][output][8 flows]. Sums over all flows of a tile, the gradients of weights, are
// blocks of a few rows by a few columns in the registers of one thread until the kernel ends.

#include "neuron.h"

// Where in threadgroup memory. Rows of the two large matrices are aligned for load_packed, and lie an odd number of fours apart, so that
// 8 lanes that read 8 rows meet different banks. The gaps are never read.
template <int HIDDEN, int F>
struct Layout {
    static constexpr CONSTANT uint row = (HIDDEN + 3) / 4 % 2 ? (HIDDEN + 3) / 4 * 4 : (HIDDEN + 3) / 4 * 4 + 4;
    static constexpr CONSTANT uint coord = 0, coord_bias = 9;
    static constexpr CONSTANT uint first = 12, first_bias = first + 4 * HIDDEN, second = (first_bias + 3 * HIDDEN + 3) / 4 * 4;
    static constexpr CONSTANT uint second_bias = second + HIDDEN * row, last = (second_bias + 3 * HIDDEN + 3) / 4 * 4;
    static constexpr CONSTANT uint last_bias = last + F * row, size = last_bias + F;

    // The place of element k of `weights`.
    static FUNCTION uint place(uint k) {
        typedef Packed<HIDDEN, F> from;
        if (k < from::second) return k;
        bool is_last = k >= from::last;
        uint i = k - (is_last ? from::last : from::second);
        return (is_last ? last : second) + i + metal::min(i / HIDDEN, uint(is_last ? F : HIDDEN)) * (row - HIDDEN);
    }
};

// Element i of WIDE, 1 or 4, floats each: from weights, and to its place in threadgroup memory.
template <uint WIDE, typename P>
FUNCTION void take(P weights, uint i, thread float (&value)[4]) {
    if (WIDE == 4) load_packed(weights, i, value);
    else value[0] = weights[i];
}

template <int HIDDEN, int F, uint WIDE, typename P>
FUNCTION void put(P w, uint i, thread const float (&value)[4]) {
    uint place = Layout<HIDDEN, F>::place(WIDE * i);
    if (WIDE == 4) store_packed(w, place / 4, value);
    else w[place] = value[0];
}

// All weights into threadgroup memory. Loads stand under no condition, so that several are in flight at a time.
template <int HIDDEN, int F, int GROUP, typename P, typename Q>
FUNCTION void fetch(P weights, Q w, uint t) {
    constexpr uint WIDE = HIDDEN % 4 == 0 && F % 4 == 0 ? 4 : 1;  // then four never lie across the end of a row
    constexpr uint count = Packed<HIDDEN, F>::count / WIDE, whole = count / GROUP * GROUP;
    float last[4], value[4];
    take<WIDE>(weights, metal::min(whole + t, count - 1), last);
    UNROLLED for (uint from = 0; from < whole; from += GROUP) {
        take<WIDE>(weights, from + t, value);
        put<HIDDEN, F, WIDE>(w, from + t, value);
    }
    if (whole + t < count) put<HIDDEN, F, WIDE>(w, whole + t, last);
}

// The gradient of what a Linear was given: d[o][f] = sum over k of w[k][lane / 2 + 16 o] times output gradient k of the flow.
template <int OUT, int ROWS, int INNER, int ROW, typename P>
FUNCTION void linear_back(P w, P d_output, uint lane, thread float (&d)[OUT][4]) {
    uint column[OUT];
    for (uint o = 0; o < OUT; ++o) {
        column[o] = metal::min(lane / 2 + 16 * o, uint(INNER - 1));
        for (uint f = 0; f < 4; ++f) d[o][f] = 0.0f;
    }
    UNROLLED for (uint k = 0; k < ROWS; ++k) {
        float a[4];
        load_packed(d_output, 2 * k + lane % 2, a);
        for (uint o = 0; o < OUT; ++o) {
            float b = w[k * ROW + column[o]];
            for (uint f = 0; f < 4; ++f) d[o][f] += b * a[f];
        }
    }
}

// The slopes of activate alone; where a lane has no output, of another.
template <int HIDDEN, int OUT, typename P>
FUNCTION void slopes(thread const float (&normal)[OUT][4], P gamma, P beta, uint lane, thread float (&slope)[OUT][4]) {
    for (uint o = 0; o < OUT; ++o) {
        uint i = metal::min(lane / 2 + 16 * o, uint(HIDDEN - 1));
        for (uint f = 0; f < 4; ++f) slope[o][f] = gelu_derivative(normal[o][f] * gamma[i] + beta[i]);
    }
}

// Back through GELU and LayerNorm: d, the gradient of an activation, becomes that of the Linear before, in threadgroup memory too.
// To sums, over the lane's flows: the gradients of bias, gamma and beta.
template <int HIDDEN, int OUT, typename P>
FUNCTION void activate_back(
    thread float (&d)[OUT][4], thread const float (&normal)[OUT][4], thread const float (&slope)[OUT][4],
    thread const float (&scale)[4], P gamma, uint lane, P d_linear, thread float (&sums)[3][OUT]) {
    float mean[4] = {0.0f, 0.0f, 0.0f, 0.0f}, product[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (uint o = 0; o < OUT; ++o) {
        if (!owned<HIDDEN>(lane, o)) continue;
        float g = gamma[lane / 2 + 16 * o];
        for (uint f = 0; f < 4; ++f) {
            float of_beta = d[o][f] * slope[o][f];
            sums[1][o] += of_beta * normal[o][f];
            sums[2][o] += of_beta;
            d[o][f] = of_beta * g;
            mean[f] += d[o][f];
            product[f] += d[o][f] * normal[o][f];
        }
    }
    over_outputs(mean);
    over_outputs(product);
    for (uint o = 0; o < OUT; ++o) {
        if (!owned<HIDDEN>(lane, o)) continue;
        for (uint f = 0; f < 4; ++f) {
            d[o][f] = scale[f] * (d[o][f] - (mean[f] + normal[o][f] * product[f]) * (1.0f / HIDDEN));
            sums[0][o] += d[o][f];
        }
        store_packed(d_linear, 2 * (lane / 2 + 16 * o) + lane % 2, d[o]);
    }
}

// A block of the gradient of a matrix, A rows by B columns: that of output i and input j is the sum over the flows of a tile of
// output gradient i times input j. Block b has rows b / across + down r, columns b % across + across c (the last where fewer).
template <int R, int C, int A, int B>
struct Block {
    static constexpr CONSTANT uint across = (B + C - 1) / C, down = (A + R - 1) / R, count = across * down;
    static FUNCTION uint row(uint b, uint r) { return b / across + down * r; }
    static FUNCTION uint column(uint b, uint c) { return b % across + across * c; }
};

// d_output [SIMD-group][A_ROWS][8 flows], input [SIMD-group][B][8 flows].
template <int R, int C, int A, int B, int A_ROWS, int SIMDS, typename P>
FUNCTION void over_flows(P d_output, P input, uint b, thread float (&sum)[R][C]) {
    typedef Block<R, C, A, B> block;
    uint row[R], column[C];
    for (uint r = 0; r < R; ++r) row[r] = metal::min(block::row(b, r), uint(A - 1));
    for (uint c = 0; c < C; ++c) column[c] = metal::min(block::column(b, c), uint(B - 1));
    uint turn = b % block::across / 4 % 2;  // rows 4 apart share their banks: every other four lanes start with the other flows
    SHORT for (uint s = 0; s < 2 * SIMDS; ++s) {
        uint fours = s % 2 ^ turn;
        float x[4], y[C][4];
        for (uint c = 0; c < C; ++c) load_packed(input, 2 * (s / 2 * B + column[c]) + fours, y[c]);
        for (uint r = 0; r < R; ++r) {
            load_packed(d_output, 2 * (s / 2 * A_ROWS + row[r]) + fours, x);
            for (uint c = 0; c < C; ++c) {
                for (uint f = 0; f < 4; ++f) sum[r][c] += x[f] * y[c][f];
            }
        }
    }
}

// A block from and to its places in a row-major matrix.
template <int R, int C, int A, int B, typename P>
FUNCTION void read_block(P matrix, uint b, thread float (&sum)[R][C]) {
    typedef Block<R, C, A, B> block;
    for (uint r = 0; r < R; ++r) {
        uint i = metal::min(block::row(b, r), uint(A - 1));
        for (uint c = 0; c < C; ++c) sum[r][c] = matrix[i * B + metal::min(block::column(b, c), uint(B - 1))];
    }
}

template <int R, int C, int A, int B, typename P>
FUNCTION void write_block(P matrix, uint b, thread const float (&sum)[R][C]) {
    typedef Block<R, C, A, B> block;
    if (b >= block::count) return;
    for (uint r = 0; r < R; ++r) {
        for (uint c = 0; c < C; ++c) {
            uint i = block::row(b, r), j = block::column(b, c);
            if (i < A && j < B) matrix[i * B + j] = sum[r][c];
        }
    }
}

//// forward
    typedef Layout<HIDDEN, F> at;
    constexpr uint OUT = (HIDDEN + 15) / 16, LAST = F < 64 ? (F + 15) / 16 : 4;
    threadgroup float w[at::size];
    threadgroup float inputs[GROUP];
    threadgroup float values[GROUP / 4 * HIDDEN];
    uint t = thread_position_in_threadgroup.x, lane = t % 32, simd = t / 32;
    uint flows = uint(position_shape[0]), start = 8 * (threadgroup_position_in_grid.x * (GROUP / 32) + simd);
    float bound = BOUNDED ? settings[0] : 0.0f, p[3], e;
    read_flow(position, energy, start + lane % 8, flows, p, e);
    fetch<HIDDEN, F, GROUP>(weights, &w[0], t);
    threadgroup_barrier(mem_flags::mem_threadgroup);  // weights
    if (start >= flows) return;  // whole SIMD-groups, and from here on each is alone
    inputs[t] = encode(&w[0], p, e, lane / 8);
    auto value = &values[8 * HIDDEN * simd];
    simdgroup_barrier(mem_flags::mem_threadgroup);  // inputs

    float x[OUT][4], unused[OUT][4], scale[4];
    linear<OUT, HIDDEN, 4, 4>(&w[at::first], &w[at::first_bias], &inputs[32 * simd], lane, 0, x);
    normalise<HIDDEN>(x, lane, scale);
    activate<HIDDEN>(x, &w[at::first_bias + HIDDEN], &w[at::first_bias + 2 * HIDDEN], lane, value, unused);
    simdgroup_barrier(mem_flags::mem_threadgroup);  // first activations
    linear<OUT, HIDDEN, HIDDEN, at::row>(&w[at::second], &w[at::second_bias], value, lane, 0, x);
    normalise<HIDDEN>(x, lane, scale);
    simdgroup_barrier(mem_flags::mem_threadgroup);  // before the second activations take their place
    activate<HIDDEN>(x, &w[at::second_bias + HIDDEN], &w[at::second_bias + 2 * HIDDEN], lane, value, unused);
    simdgroup_barrier(mem_flags::mem_threadgroup);  // second activations
    SHORT for (uint from = 0; from < F; from += 16 * LAST) {
        float y[LAST][4];
        linear<LAST, F, HIDDEN, at::row>(&w[at::last], &w[at::last_bias], value, lane, from, y);
        UNROLLED for (uint f = 0; f < 4; ++f) {
            uint own = start + 4 * (lane % 2) + f;
            UNROLLED for (uint o = 0; o < LAST; ++o) {
                uint i = from + lane / 2 + 16 * o;
                if (own < flows && i < F) features[own * PADDED + i] = T(BOUNDED ? sanitise(y[o][f], bound) : y[o][f]);
            }
        }
    }
    constexpr uint rest = PADDED - F;  // columns behind the features
    SHORT for (uint k = lane; k < 8 * rest; k += 32) {
        uint own = start + k / metal::max(rest, 1u), column = k % metal::max(rest, 1u);
        if (own >= flows) continue;
        float y = column == 0 ? inputs[32 * simd + 24 + own % 8] : 0.0f;
        features[own * PADDED + F + column] = T(BOUNDED ? sanitise(y, bound) : y);
    }

//// backward
    typedef Layout<HIDDEN, F> at;
    typedef Packed<HIDDEN, F> packed;
    constexpr uint MOST = SPARING ? 2 : 4, OUT = (HIDDEN + 15) / 16, LAST = F < 16 * MOST ? (F + 15) / 16 : MOST, SIMDS = GROUP / 32;
    constexpr uint ROWS = F > HIDDEN ? F : HIDDEN;
    threadgroup float w[at::size];
    threadgroup float inputs[GROUP];
    threadgroup float values_one[GROUP / 4 * HIDDEN];  // first activations
    threadgroup float values_two[GROUP / 4 * HIDDEN];  // second activations, then gradients of the second Linear
    threadgroup float gradients[GROUP / 4 * ROWS];     // of features, then of the first Linear
    uint t = thread_position_in_threadgroup.x, lane = t % 32, simd = t / 32;
    uint flows = uint(position_shape[0]), group = threadgroup_position_in_grid.x, sums = group * packed::count;
    auto input = &inputs[32 * simd];  // those of this SIMD-group
    auto value_one = &values_one[8 * HIDDEN * simd];
    auto value_two = &values_two[8 * HIDDEN * simd];
    auto gradient = &gradients[8 * ROWS * simd];

    // Sums over all tiles: blocks of the matrices, the bias of the last layer, the vectors of the others, and the coordinates.
    typedef Block<4, 4, F, HIDDEN> last_block;
    typedef Block<2, 4, HIDDEN, HIDDEN> second_block;
    typedef Block<1, 1, HIDDEN, 4> first_block;
    constexpr uint LASTS = (last_block::count + GROUP - 1) / GROUP, SECONDS = (second_block::count + GROUP - 1) / GROUP;
    constexpr uint FIRSTS = (first_block::count + GROUP - 1) / GROUP, BIASES = (F + GROUP - 1) / GROUP;
    float of_last[LASTS][4][4] = {}, of_second[SECONDS][2][4] = {}, of_first[FIRSTS][1][1] = {}, of_bias[BIASES] = {};
    float of_vectors[2][3][OUT] = {}, of_coord[4] = {};
    if (RUNNING) {  // where they start; here and not at the end, so that nothing waits for these loads
        auto from = &running[sums];
        for (uint b = 0; b < LASTS; ++b) read_block<4, 4, F, HIDDEN>(&from[packed::last], t + b * GROUP, of_last[b]);
        for (uint b = 0; b < SECONDS; ++b) read_block<2, 4, HIDDEN, HIDDEN>(&from[packed::second], t + b * GROUP, of_second[b]);
        for (uint b = 0; b < FIRSTS; ++b) read_block<1, 1, HIDDEN, 4>(&from[packed::first], t + b * GROUP, of_first[b]);
        for (uint b = 0; b < BIASES; ++b) of_bias[b] = from[packed::last_bias + metal::min(t + b * GROUP, uint(F - 1))];
        // Sums of vectors are spread over lanes and SIMD-groups: one of them starts from these.
        for (uint o = 0; o < OUT; ++o) {
            if (simd > 0 || lane % 2 > 0 || !owned<HIDDEN>(lane, o)) continue;
            for (uint s = 0; s < 3; ++s) {
                of_vectors[0][s][o] = from[packed::first_bias + s * HIDDEN + lane / 2 + 16 * o];
                of_vectors[1][s][o] = from[packed::second_bias + s * HIDDEN + lane / 2 + 16 * o];
            }
        }
        if (simd == 0 && lane % 8 == 0 && lane < 24) {
            of_coord[0] = from[packed::coord_bias + lane / 8];
            for (uint m = 0; m < 3; ++m) of_coord[m + 1] = from[packed::coord + 3 * (lane / 8) + m];
        }
    }

    // Flows beyond the last repeat it, with gradients of 0, so that they add nothing.
    float bound = BOUNDED ? settings[0] : 0.0f, p[3], e;
    read_flow(position, energy, group * uint(tiles[0]) * (GROUP / 4) + 8 * simd + lane % 8, flows, p, e);
    fetch<HIDDEN, F, GROUP>(weights, &w[0], t);
    threadgroup_barrier(mem_flags::mem_threadgroup);  // weights
    SHORT for (uint tile = 0; tile < uint(tiles[0]); ++tile) {
        uint tile_start = (group * uint(tiles[0]) + tile) * (GROUP / 4);
        if (tile_start >= flows) break;  // the same for the whole group
        uint start = tile_start + 8 * simd, flow = start + lane % 8;
        input[lane] = encode(&w[0], p, e, lane / 8);
        simdgroup_barrier(mem_flags::mem_threadgroup);  // inputs
        float normal_one[OUT][4], slope_one[OUT][4], scale_one[4], normal_two[OUT][4], slope_two[OUT][4], scale_two[4], d[OUT][4];
        linear<OUT, HIDDEN, 4, 4>(&w[at::first], &w[at::first_bias], input, lane, 0, normal_one);
        normalise<HIDDEN>(normal_one, lane, scale_one);
        activate<HIDDEN>(normal_one, &w[at::first_bias + HIDDEN], &w[at::first_bias + 2 * HIDDEN], lane, value_one, slope_one);
        simdgroup_barrier(mem_flags::mem_threadgroup);  // first activations
        linear<OUT, HIDDEN, HIDDEN, at::row>(&w[at::second], &w[at::second_bias], value_one, lane, 0, normal_two);
        normalise<HIDDEN>(normal_two, lane, scale_two);
        activate<HIDDEN>(normal_two, &w[at::second_bias + HIDDEN], &w[at::second_bias + 2 * HIDDEN], lane, value_two, slope_two);
        simdgroup_barrier(mem_flags::mem_threadgroup);  // second activations

        SHORT for (uint from = 0; from < F; from += 16 * LAST) {
            float y[LAST][4], c[LAST][4];
            if (BOUNDED) linear<LAST, F, HIDDEN, at::row>(&w[at::last], &w[at::last_bias], value_two, lane, from, y);
            UNROLLED for (uint o = 0; o < LAST; ++o) {
                uint i = metal::min(from + lane / 2 + 16 * o, uint(F - 1));
                for (uint f = 0; f < 4; ++f) {
                    uint own = start + 4 * (lane % 2) + f;
                    c[o][f] = own < flows ? float(cotangent[own * PADDED + i]) : 0.0f;
                }
            }
            UNROLLED for (uint o = 0; o < LAST; ++o) {
                uint i = from + lane / 2 + 16 * o;
                for (uint f = 0; f < 4; ++f) {
                    if (BOUNDED && replaced(y[o][f], bound)) c[o][f] = 0.0f;
                }
                if (i < F) store_packed(gradient, 2 * i + lane % 2, c[o]);
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);  // gradients of features and second activations of all flows
        linear_back<OUT, F, HIDDEN, at::row>(&w[at::last], gradient, lane, d);
        for (uint b = 0; b < LASTS; ++b) {
            if (t + b * GROUP < last_block::count) {
                over_flows<4, 4, F, HIDDEN, ROWS, SIMDS>(&gradients[0], &values_two[0], t + b * GROUP, of_last[b]);
            }
        }
        for (uint b = 0; b < BIASES; ++b) {
            uint i = t + b * GROUP;
            if (i >= F) continue;
            UNROLLED for (uint s = 0; s < 2 * SIMDS; ++s) {
                float x[4];
                load_packed(&gradients[0], 2 * (s / 2 * ROWS + i) + (s % 2 ^ i / 4 % 2), x);  // in turns, as over_flows
                of_bias[b] += x[0] + x[1] + x[2] + x[3];
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);  // before other gradients take their places
        if (SPARING) slopes<HIDDEN>(normal_two, &w[at::second_bias + HIDDEN], &w[at::second_bias + 2 * HIDDEN], lane, slope_two);
        activate_back<HIDDEN>(d, normal_two, slope_two, scale_two, &w[at::second_bias + HIDDEN], lane, value_two, of_vectors[1]);
        simdgroup_barrier(mem_flags::mem_threadgroup);  // gradients of the second Linear
        linear_back<OUT, HIDDEN, HIDDEN, at::row>(&w[at::second], value_two, lane, d);
        if (SPARING) {
            linear<OUT, HIDDEN, 4, 4>(&w[at::first], &w[at::first_bias], input, lane, 0, normal_one);
            normalise<HIDDEN>(normal_one, lane, scale_one);
            slopes<HIDDEN>(normal_one, &w[at::first_bias + HIDDEN], &w[at::first_bias + 2 * HIDDEN], lane, slope_one);
        }
        activate_back<HIDDEN>(d, normal_one, slope_one, scale_one, &w[at::first_bias + HIDDEN], lane, gradient, of_vectors[0]);
        threadgroup_barrier(mem_flags::mem_threadgroup);  // gradients of both Linears of all flows
        for (uint b = 0; b < SECONDS; ++b) {
            if (t + b * GROUP < second_block::count) {
                over_flows<2, 4, HIDDEN, HIDDEN, HIDDEN, SIMDS>(&values_two[0], &values_one[0], t + b * GROUP, of_second[b]);
            }
        }
        for (uint b = 0; b < FIRSTS; ++b) {
            if (t + b * GROUP < first_block::count) {
                over_flows<1, 1, HIDDEN, 4, ROWS, SIMDS>(&gradients[0], &inputs[0], t + b * GROUP, of_first[b]);
            }
        }

        // The gradient of input k of flow f, and what the coordinates make of it.
        uint k = lane / 8;
        float d_input = 0.0f;
        UNROLLED for (uint i = 0; i < HIDDEN; ++i) d_input += gradient[8 * i + lane % 8] * w[at::first + 4 * i + k];
        of_coord[0] += d_input;
        for (uint m = 0; m < 3; ++m) {
            of_coord[m + 1] += d_input * p[m];
            float x = k < 3 ? d_input * w[at::coord + 3 * k + m] : 0.0f;
            x += simd_shuffle_xor(x, 8);
            x += simd_shuffle_xor(x, 16);
            if (k == m && flow < flows) d_position[3 * flow + m] = x;
        }
        if (k == 3 && flow < flows) {
            if (PADDED > F && !(BOUNDED && replaced(e, bound))) d_input += float(cotangent[flow * PADDED + F]);
            d_energy[flow] = d_input;
        }
        read_flow(position, energy, flow + GROUP / 4, flows, p, e);
        threadgroup_barrier(mem_flags::mem_threadgroup);  // before the next tile overwrites
    }

    // The matrices are whole; the vectors are sums over a lane's flows, to be added up through threadgroup memory.
    for (uint o = 0; o < OUT; ++o) {
        for (uint s = 0; s < 6; ++s) {
            float x = of_vectors[s / 3][s % 3][o];
            x += simd_shuffle_xor(x, 1);
            if (lane % 2 == 0 && owned<HIDDEN>(lane, o)) value_one[8 * (lane / 2 + 16 * o) + s] = x;
        }
    }
    for (uint m = 0; m < 4; ++m) {
        float x = of_coord[m];
        for (uint mask = 1; mask < 8; mask *= 2) x += simd_shuffle_xor(x, mask);
        if (lane % 8 == 0) input[lane + m] = x;
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // sums of each SIMD-group
    auto to = &d_weights[sums];
    SHORT for (uint i = t; i < 6 * HIDDEN; i += GROUP) {
        uint s = i / HIDDEN;
        float x = 0.0f;
        for (uint g = 0; g < SIMDS; ++g) x += values_one[8 * (g * HIDDEN + i % HIDDEN) + s];
        to[s < 3 ? packed::first_bias + i : packed::second_bias + i - 3 * HIDDEN] = x;
    }
    if (t < 12) {
        uint k = t / 4, m = t % 4;
        float x = 0.0f;
        for (uint g = 0; g < SIMDS; ++g) x += inputs[32 * g + 8 * k + m];
        to[m == 0 ? packed::coord_bias + k : packed::coord + 3 * k + m - 1] = x;
    }
    for (uint b = 0; b < LASTS; ++b) write_block<4, 4, F, HIDDEN>(&to[packed::last], t + b * GROUP, of_last[b]);
    for (uint b = 0; b < SECONDS; ++b) write_block<2, 4, HIDDEN, HIDDEN>(&to[packed::second], t + b * GROUP, of_second[b]);
    for (uint b = 0; b < FIRSTS; ++b) write_block<1, 1, HIDDEN, 4>(&to[packed::first], t + b * GROUP, of_first[b]);
    for (uint b = 0; b < BIASES; ++b) {
        if (t + b * GROUP < F) to[packed::last_bias + t + b * GROUP] = of_bias[b];
    }
