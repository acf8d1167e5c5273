// gru_gates: the gates of a GRU step after its two matrix products, bounded and masked, in one pass.
// Specification: gru_gates_reference in energy_flow_mlx/ops/gru_gates.py.
//
//   input_gates, hidden_gates [N, 3 HD] T   gate order r, z, n
//   bias [3 HD] float, hidden_bias [HD] float
//   hidden [N, HD] T
//   active [N] bool                         read if MASKED; where false the hidden state stays
//   settings [1] float                      bound of the new hidden state, read if BOUNDED
//   forward:  new_hidden [N, HD] T
//   backward: cotangent [N, HD] T, and above [N, HD] T, which is added to it if TWO; running, read if RUNNING
//             -> d_input_gates, d_hidden_gates [N, 3 HD] T, d_hidden [N, HD] T,
//             d_bias [ceil(N / ROWS), 4 HD] float: sums over ROWS rows of the gradients of r, z, n and of n's hidden part,
//             added to those of another step in `running`
//
// A thread has V neighbouring columns (4, 2 or 1, of which HD is a multiple) of one row (forward) or of ROWS rows (backward).
// Grid: HD / V * N threads forward, HD / V * ceil(N / ROWS) backward, in one dimension. All arithmetic is float.
// Templates: T, HD, V, MASKED, BOUNDED; backward ROWS, TWO, RUNNING.

#include "gru.h"

//// forward
    constexpr uint COLUMNS = HD / V;
    uint row = thread_position_in_grid.x / COLUMNS;
    uint column = thread_position_in_grid.x % COLUMNS;
    if (row >= uint(hidden_shape[0])) return;
    uint gates = row * 3 * COLUMNS + column;
    float h[V], new_h[V];
    load_some<V>(hidden, row * COLUMNS + column, h);
    if (!MASKED || active[row]) {
        float ir[V], iz[V], in[V], hr[V], hz[V], hn[V], br[V], bz[V], bn[V], bh[V];
        load_some<V>(input_gates, gates, ir);
        load_some<V>(input_gates, gates + COLUMNS, iz);
        load_some<V>(input_gates, gates + 2 * COLUMNS, in);
        load_some<V>(hidden_gates, gates, hr);
        load_some<V>(hidden_gates, gates + COLUMNS, hz);
        load_some<V>(hidden_gates, gates + 2 * COLUMNS, hn);
        load_some<V>(bias, column, br);
        load_some<V>(bias, column + COLUMNS, bz);
        load_some<V>(bias, column + 2 * COLUMNS, bn);
        load_some<V>(hidden_bias, column, bh);
        for (int k = 0; k < V; ++k) {
            new_h[k] = new_state(ir[k] + hr[k] + br[k], iz[k] + hz[k] + bz[k], in[k] + bn[k], hn[k] + bh[k], h[k]);
        }
    } else {
        for (int k = 0; k < V; ++k) new_h[k] = h[k];
    }
    if (BOUNDED) {
        float bound = settings[0];
        for (int k = 0; k < V; ++k) new_h[k] = sanitise(new_h[k], bound);
    }
    store_some<V>(new_hidden, row * COLUMNS + column, new_h);

//// backward
    constexpr uint COLUMNS = HD / V;
    uint block = thread_position_in_grid.x / COLUMNS;
    uint column = thread_position_in_grid.x % COLUMNS;
    uint rows = uint(hidden_shape[0]);
    if (block * ROWS >= rows) return;
    uint end = metal::min((block + 1) * uint(ROWS), rows);
    float br[V], bz[V], bn[V], bh[V];
    load_some<V>(bias, column, br);
    load_some<V>(bias, column + COLUMNS, bz);
    load_some<V>(bias, column + 2 * COLUMNS, bn);
    load_some<V>(hidden_bias, column, bh);
    float sum_r[V], sum_z[V], sum_n[V], sum_h[V];
    for (int k = 0; k < V; ++k) sum_r[k] = sum_z[k] = sum_n[k] = sum_h[k] = 0.0f;
    if (RUNNING) {
        load_some<V>(running, block * 4 * COLUMNS + column, sum_r);
        load_some<V>(running, (block * 4 + 1) * COLUMNS + column, sum_z);
        load_some<V>(running, (block * 4 + 2) * COLUMNS + column, sum_n);
        load_some<V>(running, (block * 4 + 3) * COLUMNS + column, sum_h);
    }
    for (uint row = block * ROWS; row < end; ++row) {
        uint gates = row * 3 * COLUMNS + column;
        float h[V], d[V], dr[V], dz[V], dn[V], dhn[V], dh[V];
        load_some<V>(cotangent, row * COLUMNS + column, d);
        if (TWO) {
            float more[V];
            load_some<V>(above, row * COLUMNS + column, more);
            for (int k = 0; k < V; ++k) d[k] += more[k];
        }
        load_some<V>(hidden, row * COLUMNS + column, h);
        if (!MASKED || active[row]) {
            float ir[V], iz[V], in[V], hr[V], hz[V], hn[V];
            load_some<V>(input_gates, gates, ir);
            load_some<V>(input_gates, gates + COLUMNS, iz);
            load_some<V>(input_gates, gates + 2 * COLUMNS, in);
            load_some<V>(hidden_gates, gates, hr);
            load_some<V>(hidden_gates, gates + COLUMNS, hz);
            load_some<V>(hidden_gates, gates + 2 * COLUMNS, hn);
            for (int k = 0; k < V; ++k) {
                float r = logistic(ir[k] + hr[k] + br[k]);
                float z = logistic(iz[k] + hz[k] + bz[k]);
                float reset = hn[k] + bh[k];
                float n = hyperbolic_tangent(in[k] + bn[k] + r * reset);
                if (BOUNDED && replaced(n + z * (h[k] - n), settings[0])) d[k] = 0.0f;
                dh[k] = d[k] * z;
                dz[k] = d[k] * (h[k] - n) * z * (1.0f - z);
                dn[k] = d[k] * (1.0f - z) * (1.0f - n * n);
                dhn[k] = dn[k] * r;
                dr[k] = dn[k] * reset * r * (1.0f - r);
                sum_r[k] += dr[k], sum_z[k] += dz[k], sum_n[k] += dn[k], sum_h[k] += dhn[k];
            }
        } else {
            for (int k = 0; k < V; ++k) {
                dr[k] = dz[k] = dn[k] = dhn[k] = 0.0f;
                dh[k] = BOUNDED && replaced(h[k], settings[0]) ? 0.0f : d[k];
            }
        }
        store_some<V>(d_input_gates, gates, dr);
        store_some<V>(d_input_gates, gates + COLUMNS, dz);
        store_some<V>(d_input_gates, gates + 2 * COLUMNS, dn);
        store_some<V>(d_hidden_gates, gates, dr);
        store_some<V>(d_hidden_gates, gates + COLUMNS, dz);
        store_some<V>(d_hidden_gates, gates + 2 * COLUMNS, dhn);
        store_some<V>(d_hidden, row * COLUMNS + column, dh);
    }
    store_some<V>(d_bias, block * 4 * COLUMNS + column, sum_r);
    store_some<V>(d_bias, (block * 4 + 1) * COLUMNS + column, sum_z);
    store_some<V>(d_bias, (block * 4 + 2) * COLUMNS + column, sum_n);
    store_some<V>(d_bias, (block * 4 + 3) * COLUMNS + column, sum_h);
