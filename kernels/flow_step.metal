// flow_step: whole steps of flows, forward alone: neuron, GRU, heads and move, for a tile of flows that share the weights they read.
// Specification: flow_step_reference and flow_life_reference in energy_flow_mlx/ops/flow_step.py.
//
//   position [N, 3] float, energy [N] float, active [N] bool, age [N] int
//   hidden [L, tiles ROWS, HD] T    hidden states of L layers, of each in blocks of 16 flows by 16 columns, as matrix.h has them; read by
//                                   forward; rows from N on belong to no flow
//   neuron [Packed::count] float    the neuron's parameters, as neuron.metal has them
//   matrices T                      tiles of 8 outputs by 16 inputs, row after row, for each 8 outputs all inputs in order: of each layer
//                                   the input's [3 HD, WIDTH] (HD beyond the first) and the hidden state's [3 HD, HD], and the heads' [A + M, HD]
//   vectors float                   of each layer bias [3 HD] and hidden_bias [HD]; the heads' bias [A + M], energy_weight [A],
//                                   displacement_weight [3, M], out_bias [4]
//   scale [1] float                 factor on displacements
//   settings [3] float              bounds of features and of hidden states, and the shortest move, read if FEATURES_BOUNDED, BOUNDED, FILTERED
//   steps [1] int                   of a life
//   forward: a step -> next_position [N, 3] float, next_energy [N] float, terminated [N] bool, moving [N] bool, next_age [N] int,
//            length [N] float, next_hidden [L, tiles ROWS, HD] T in blocks
//   life:    all steps, from hidden states of 0 -> next_position, next_energy, moving, next_age; arrived [N] bool, dropped [N] bool, after
//            a move shorter than the shortest; even_hidden, odd_hidden [L, tiles ROWS, HD] T, of no use afterwards
//
// A group of GROUP threads has ROWS flows, a multiple of 16 PARTS. Of each product a SIMD-group has one of PARTS equal parts of the rows
// and 8 columns of every gate at a time: it reads each of its weights once, PARTS SIMD-groups read the same ones at about the same time,
// and the gates need no other SIMD-group's sums. Features are in threadgroup memory, in blocks too; hidden states go through device memory,
// where the next layer and the next step read them. A is HD / 2, WIDTH F + 1 up to a multiple of 16.
// HD is a multiple of 16, M of 8 and HIDDEN, the neuron's width, of 4.
// Templates: T, L, HD, M, HIDDEN, F, ROWS, GROUP, PARTS, FEATURES_BOUNDED, BOUNDED, REFLECT; life FILTERED.

#include "advance.h"
#include "gru.h"
#include "matrix.h"
#include "neuron.h"

// Features of 8 flows, and behind them their energy and zeros: to 8 rows, from `row`, of WIDTH columns in blocks. start: the flow of row 0.
template <typename T, int HIDDEN, int F, int WIDTH, bool BOUNDED, typename P, typename Q, typename W, typename R, typename S>
FUNCTION void feel(P position, Q energy, W w, uint start, uint row, uint flows, float bound, uint lane, R input, R value, S features) {
    typedef Packed<HIDDEN, F> at;
    constexpr uint OUT = (HIDDEN + 15) / 16, LAST = F < 64 ? (F + 15) / 16 : 4;
    float p[3], e, x[OUT][4], unused[OUT][4], scale[4];
    read_flow(position, energy, start + row + lane % 8, flows, p, e);
    input[lane] = encode(w, p, e, lane / 8);
    simdgroup_barrier(mem_flags::mem_threadgroup);  // inputs
    linear<OUT, HIDDEN, 4, 4>(w + at::first, w + at::first_bias, input, lane, 0, x);
    normalise<HIDDEN>(x, lane, scale);
    activate<HIDDEN>(x, w + at::first_bias + HIDDEN, w + at::first_bias + 2 * HIDDEN, lane, value, unused);
    simdgroup_barrier(mem_flags::mem_threadgroup);  // first activations
    linear<OUT, HIDDEN, HIDDEN, HIDDEN>(w + at::second, w + at::second_bias, value, lane, 0, x);
    normalise<HIDDEN>(x, lane, scale);
    simdgroup_barrier(mem_flags::mem_threadgroup);  // before the second activations take their place
    activate<HIDDEN>(x, w + at::second_bias + HIDDEN, w + at::second_bias + 2 * HIDDEN, lane, value, unused);
    simdgroup_barrier(mem_flags::mem_threadgroup);  // second activations
    SHORT for (uint from = 0; from < F; from += 16 * LAST) {
        float y[LAST][4];
        linear<LAST, F, HIDDEN, HIDDEN>(w + at::last, w + at::last_bias, value, lane, from, y);
        for (uint o = 0; o < LAST; ++o) {
            uint i = from + lane / 2 + 16 * o;
            if (i >= F) continue;
            for (uint f = 0; f < 4; ++f) {
                features[in_blocks(row + 4 * (lane % 2) + f, i, WIDTH)] = T(BOUNDED ? sanitise(y[o][f], bound) : y[o][f]);
            }
        }
    }
    constexpr uint rest = WIDTH - F;
    SHORT for (uint k = lane; k < 8 * rest; k += 32) {
        float y = k % rest == 0 ? input[24 + k / rest] : 0.0f;
        features[in_blocks(row + k / rest, F + k % rest, WIDTH)] = T(BOUNDED ? sanitise(y, bound) : y);
    }
    simdgroup_barrier(mem_flags::mem_threadgroup);  // before the next flows' inputs and activations
}

// Sums of BLOCKS times 16 rows, with a bias a column to begin with.
template <int BLOCKS, typename P>
FUNCTION void begin(thread Sum (&sums)[BLOCKS], P bias, uint lane) {
    float own[2] = {bias[own_column(lane)], bias[own_column(lane) + 1]};
    for (int b = 0; b < BLOCKS; ++b) {
        for (int e = 0; e < 4; ++e) set_number(sums[b], e, own[e % 2]);
    }
}

// Weights of 8 outputs and 16 inputs of three gates, which lie `gate` apart.
template <typename T, typename W>
FUNCTION void load_gates(thread Right<T>& r, thread Right<T>& z, thread Right<T>& n, W weights, uint gate, uint lane) {
    load_right(r, weights, lane);
    load_right(z, weights + gate, lane);
    load_right(n, weights + 2 * gate, lane);
}

// Adds to three gates their products with rows of INPUTS columns in blocks; weights: of the first gate, which lie GATE apart. Weights come
// from the cache that all groups share, far away: they are loaded some steps before they are used.
template <typename T, int BLOCKS, int INPUTS, uint GATE, typename P, typename W>
FUNCTION void add_products(P rows, W weights, uint lane, thread Sum (&r)[BLOCKS], thread Sum (&z)[BLOCKS], thread Sum (&n)[BLOCKS]) {
    constexpr uint STEPS = INPUTS / 16, WANTED = STEPS_AHEAD * 2 / sizeof(T), AHEAD = STEPS % WANTED == 0 ? WANTED : 1;
    Right<T> of_r[AHEAD], of_z[AHEAD], of_n[AHEAD];
    UNROLLED for (uint a = 0; a < AHEAD; ++a) load_gates(of_r[a], of_z[a], of_n[a], weights + 128 * a, GATE, lane);
    SHORT for (uint done = 0; done < STEPS; done += AHEAD) {
        UNROLLED for (uint a = 0; a < AHEAD; ++a) {
            for (uint b = 0; b < BLOCKS; ++b) {
                Left<T> left;
                load_left(left, rows + in_blocks(16 * b, 16 * (done + a), INPUTS), lane);
                multiply(r[b], left, of_r[a]);
                multiply(z[b], left, of_z[a]);
                multiply(n[b], left, of_n[a]);
            }
            load_gates(of_r[a], of_z[a], of_n[a], weights + 128 * metal::min(done + AHEAD + a, STEPS - 1), GATE, lane);
        }
    }
}

// One layer of the GRU. below: the tile's rows of INPUTS columns; before, after: its rows of the layer's hidden state; all in blocks.
template <typename T, int HD, int INPUTS, int ROWS, int SIMDS, int PARTS, bool BOUNDED, typename P, typename Q, typename R, typename W, typename V, typename A>
FUNCTION void remember(P below, Q before, R after, W weights, V biases, A active, uint start, uint flows, float bound, uint simd, uint lane) {
    constexpr int BLOCKS = ROWS / 16 / PARTS, SIDE_BY_SIDE = SIMDS / PARTS;
    auto of_hidden = weights + 3 * HD * INPUTS;
    constexpr uint AT_ONCE = 8 * SIDE_BY_SIDE, TURNS = (HD + AT_ONCE - 1) / AT_ONCE;
    uint first = simd / SIDE_BY_SIDE * 16 * BLOCKS;
    SHORT for (uint turn = 0; turn < TURNS; ++turn) {
        // Each group begins elsewhere: all would read the same few lines of weights at the same time, and wait for the same part of the cache.
        uint column = (turn + start / ROWS) % TURNS * AT_ONCE + simd % SIDE_BY_SIDE * 8;
        if (column >= HD) continue;
        Sum r[BLOCKS], z[BLOCKS], n[BLOCKS], inner[BLOCKS];
        begin(r, biases + column, lane);
        begin(z, biases + HD + column, lane);
        begin(n, biases + 2 * HD + column, lane);
        begin(inner, biases + 3 * HD + column, lane);
        add_products<T, BLOCKS, INPUTS, HD * INPUTS>(below + first * INPUTS, weights + column * INPUTS, lane, r, z, n);
        add_products<T, BLOCKS, HD, HD * HD>(before + first * HD, of_hidden + column * HD, lane, r, z, inner);
        float h[2 * BLOCKS][2];
        uint place = in_blocks(first + own_row(lane), column + own_column(lane), HD) / 2;
        for (uint i = 0; i < 2 * BLOCKS; ++i) load_packed(before, place + in_blocks(8 * i, 0, HD) / 2, h[i]);
        for (uint i = 0; i < 2 * BLOCKS; ++i) {
            uint b = i / 2, flow = start + first + 8 * i + own_row(lane);
            bool on = flow < flows && active[metal::min(flow, flows - 1)];
            for (uint k = 0; k < 2; ++k) {
                int e = 2 * (i % 2) + k;
                if (on) h[i][k] = new_state(number(r[b], e), number(z[b], e), number(n[b], e), number(inner[b], e), h[i][k]);
                if (BOUNDED) h[i][k] = sanitise(h[i][k], bound);
            }
            store_packed(after, place + in_blocks(8 * i, 0, HD) / 2, h[i]);
        }
    }
}

// Of the heads, what a SIMD-group's columns add to the energy and displacement of each of its rows: to sums [SIDE_BY_SIDE][ROWS][4].
template <typename T, int HD, int M, int ROWS, int SIMDS, int PARTS, typename P, typename W, typename V, typename S>
FUNCTION void decide(P states, W weights, V vectors, uint simd, uint lane, S sums) {
    constexpr int BLOCKS = ROWS / 16 / PARTS, SIDE_BY_SIDE = SIMDS / PARTS;
    constexpr uint A = HD / 2;
    uint first = simd / SIDE_BY_SIDE * 16 * BLOCKS, place = simd % SIDE_BY_SIDE;
    auto out = vectors + A + M;  // energy_weight, displacement_weight
    float total[2 * BLOCKS][4];
    for (uint i = 0; i < 2 * BLOCKS; ++i) {
        for (uint k = 0; k < 4; ++k) total[i][k] = 0.0f;
    }
    SHORT for (uint column = 8 * place; column < A + M; column += 8 * SIDE_BY_SIDE) {
        Sum inner[BLOCKS];
        begin(inner, vectors + column, lane);
        SEVERAL for (uint k = 0; k < HD; k += 16) {
            Right<T> right;
            load_right(right, weights + column * HD + 8 * k, lane);
            for (uint b = 0; b < BLOCKS; ++b) {
                Left<T> left;
                load_left(left, states + in_blocks(first + 16 * b, k, HD), lane);
                multiply(inner[b], left, right);
            }
        }
        for (uint k = 0; k < 2; ++k) {
            uint j = column + own_column(lane) + k;
            bool of_energy = j < A;
            float weight = out[j], second = of_energy ? 0.0f : out[j + M], third = of_energy ? 0.0f : out[j + 2 * M];
            for (uint i = 0; i < 2 * BLOCKS; ++i) {
                float x = gelu(number(inner[i / 2], 2 * (i % 2) + k));
                total[i][0] += of_energy ? x * weight : 0.0f;
                total[i][1] += of_energy ? 0.0f : x * weight;
                total[i][2] += x * second;
                total[i][3] += x * third;
            }
        }
    }
    for (uint i = 0; i < 2 * BLOCKS; ++i) {
        for (uint k = 0; k < 4; ++k) {
            float x = over_columns(total[i][k]);
            if (own_column(lane) == 0) sums[4 * (place * ROWS + first + 8 * i + own_row(lane)) + k] = x;
        }
    }
}

// Of a tile's flows all but the move: to sums [GROUP / 32 / PARTS][row][energy, x, y, z], before the heads' last biases, and to `after`.
// before, after: the tile's rows of the first layer's hidden states; those of the next layer are `layer` elements behind.
template <typename T, int L, int HD, int M, int HIDDEN, int F, int ROWS, int GROUP, int PARTS, bool FEATURES_BOUNDED, bool BOUNDED,
          typename P, typename Q, typename A, typename B, typename C, typename N, typename W, typename V, typename X, typename S, typename R>
FUNCTION void consider(
    P position, Q energy, A active, uint start, uint flows, B before, C after, uint layer, N neuron, W matrices, V vectors, X settings, uint t,
    S features, R inputs, R values, R sums) {
    constexpr uint SIMDS = GROUP / 32, WIDTH = (F + 16) / 16 * 16;
    constexpr uint ONE = 3 * HD * (WIDTH + HD), OTHER = 6 * HD * HD;  // weights of the first layer, and of another
    uint lane = t % 32, simd = t / 32;
    SHORT for (uint row = 8 * simd; row < ROWS; row += 8 * SIMDS) {
        feel<T, HIDDEN, F, WIDTH, FEATURES_BOUNDED>(
            position, energy, neuron, start, row, flows, settings[0], lane, inputs + 32 * simd, values + 8 * HIDDEN * simd, features);
    }
    threadgroup_barrier(mem_flags::mem_threadgroup);  // features
    remember<T, HD, WIDTH, ROWS, SIMDS, PARTS, BOUNDED>(features, before, after, matrices, vectors, active, start, flows, settings[1], simd, lane);
    threadgroup_barrier(mem_flags::mem_device);  // the first layer's hidden states
    SHORT for (uint l = 1; l < L; ++l) {
        remember<T, HD, HD, ROWS, SIMDS, PARTS, BOUNDED>(
            after + (l - 1) * layer, before + l * layer, after + l * layer, matrices + ONE + (l - 1) * OTHER, vectors + l * 4 * HD, active,
            start, flows, settings[1], simd, lane);
        threadgroup_barrier(mem_flags::mem_device);  // the layer's hidden states
    }
    decide<T, HD, M, ROWS, SIMDS, PARTS>(
        after + (L - 1) * layer, matrices + ONE + (L - 1) * OTHER, vectors + L * 4 * HD, simd, lane, sums);
    threadgroup_barrier(mem_flags::mem_threadgroup);  // sums of each SIMD-group
}

// One row's move: `place` becomes where the flow is after it. Whether it is on an output plane; energy and length: after and of the move.
template <int HD, int M, int ROWS, int SIDE_BY_SIDE, bool REFLECT, typename S, typename V, typename X>
FUNCTION bool go(S sums, V vectors, X scale, uint row, thread float (&place)[3], thread float& energy, thread float& square) {
    float total[4], raw[3], to[3];
    for (uint k = 0; k < 4; ++k) {
        total[k] = vectors[HD + 4 * M + k];  // out_bias
        for (uint s = 0; s < SIDE_BY_SIDE; ++s) total[k] += sums[(s * ROWS + row) * 4 + k];
    }
    for (uint axis = 0; axis < 3; ++axis) raw[axis] = place[axis] + limit(scale[0] * total[axis + 1], LARGEST_DISPLACEMENT);
    bool reached = travel<REFLECT>(place, raw, to, square);
    for (uint axis = 0; axis < 3; ++axis) place[axis] = to[axis];
    energy = metal::tanh(total[0]);
    return reached;
}

//// forward
    threadgroup T features[ROWS * ((F + 16) / 16 * 16)];
    constexpr uint FEELING = GROUP / 32 < ROWS / 8 ? GROUP / 32 : ROWS / 8;  // SIMD-groups that read features
    threadgroup float inputs[32 * FEELING];
    threadgroup float values[8 * FEELING * HIDDEN];
    threadgroup float sums[GROUP / 32 / PARTS * ROWS * 4];
    uint t = thread_position_in_threadgroup.x, flows = uint(position_shape[0]), start = threadgroup_position_in_grid.x * ROWS;
    uint layer = uint(hidden_shape[1]) * HD, rows = start * HD;  // elements of a layer's hidden states; where the tile's begin
    consider<T, L, HD, M, HIDDEN, F, ROWS, GROUP, PARTS, FEATURES_BOUNDED, BOUNDED>(
        position, energy, active, start, flows, hidden + rows, next_hidden + rows, layer, &neuron[0], &matrices[0], &vectors[0], settings, t,
        &features[0], &inputs[0], &values[0], &sums[0]);
    SHORT for (uint row = t; row < ROWS; row += GROUP) {
        uint i = start + row;
        if (i >= flows) continue;
        float place[3] = {position[3 * i], position[3 * i + 1], position[3 * i + 2]}, e = energy[i], square = 0.0f;
        bool on = active[i], reached = false;
        if (on) reached = go<HD, M, ROWS, GROUP / 32 / PARTS, REFLECT>(&sums[0], &vectors[L * 4 * HD], scale, row, place, e, square);
        for (uint axis = 0; axis < 3; ++axis) next_position[3 * i + axis] = place[axis];
        next_energy[i] = e;
        terminated[i] = reached;
        moving[i] = on && !reached;
        next_age[i] = age[i] + (on ? 1 : 0);
        length[i] = metal::sqrt(square);
    }

//// life
    threadgroup T features[ROWS * ((F + 16) / 16 * 16)];
    constexpr uint FEELING = GROUP / 32 < ROWS / 8 ? GROUP / 32 : ROWS / 8;  // SIMD-groups that read features
    threadgroup float inputs[32 * FEELING];
    threadgroup float values[8 * FEELING * HIDDEN];
    threadgroup float sums[GROUP / 32 / PARTS * ROWS * 4];
    threadgroup float places[ROWS * 3], energies[ROWS];
    threadgroup int ages[ROWS], moves[ROWS], ends[ROWS];  // ends: 1 has arrived, 2 is dropped
    uint t = thread_position_in_threadgroup.x, flows = uint(position_shape[0]), start = threadgroup_position_in_grid.x * ROWS;
    uint layer = (flows + ROWS - 1) / ROWS * ROWS * HD, rows = start * HD;
    SHORT for (uint row = t; row < ROWS; row += GROUP) {
        uint i = metal::min(start + row, flows - 1);
        for (uint axis = 0; axis < 3; ++axis) places[3 * row + axis] = position[3 * i + axis];
        energies[row] = energy[i];
        ages[row] = age[i];
        moves[row] = start + row < flows && active[i] ? 1 : 0;
        ends[row] = 0;
    }
    for (uint l = 0; l < L; ++l) {
        SHORT for (uint k = t; k < ROWS * HD; k += GROUP) odd_hidden[l * layer + rows + k] = T(0.0f);
    }
    threadgroup_barrier(mem_flags::mem_device | mem_flags::mem_threadgroup);  // flows as they start
    SHORT for (uint step = 0; step < uint(steps[0]); ++step) {
        auto before = (step % 2 ? even_hidden : odd_hidden) + rows;
        auto after = (step % 2 ? odd_hidden : even_hidden) + rows;
        consider<T, L, HD, M, HIDDEN, F, ROWS, GROUP, PARTS, FEATURES_BOUNDED, BOUNDED>(
            &places[0], &energies[0], &moves[0], 0, ROWS, before, after, layer, &neuron[0], &matrices[0], &vectors[0], settings, t, &features[0],
            &inputs[0], &values[0], &sums[0]);
        SHORT for (uint row = t; row < ROWS; row += GROUP) {
            if (!moves[row]) continue;
            float place[3] = {places[3 * row], places[3 * row + 1], places[3 * row + 2]}, e, square = 0.0f;
            bool reached = go<HD, M, ROWS, GROUP / 32 / PARTS, REFLECT>(&sums[0], &vectors[L * 4 * HD], scale, row, place, e, square);
            bool dropped = FILTERED && !reached && metal::sqrt(square) < settings[2];
            for (uint axis = 0; axis < 3; ++axis) places[3 * row + axis] = place[axis];
            energies[row] = e;
            ages[row] += 1;
            moves[row] = reached || dropped ? 0 : 1;
            ends[row] = reached ? 1 : dropped ? 2 : 0;
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);  // moves
        int left = 0;
        for (uint row = 0; row < ROWS; ++row) left += moves[row];
        if (left == 0) break;  // the same for the whole group
    }
    SHORT for (uint row = t; row < ROWS; row += GROUP) {
        uint i = start + row;
        if (i >= flows) continue;
        for (uint axis = 0; axis < 3; ++axis) next_position[3 * i + axis] = places[3 * row + axis];
        next_energy[i] = energies[row];
        arrived[i] = ends[row] == 1;
        dropped[i] = ends[row] == 2;
        moving[i] = moves[row] != 0;
        next_age[i] = ages[row];
    }
