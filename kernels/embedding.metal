// embedding: rows of a table by number.
// Specification: embedding_reference in energy_flow_mlx/ops/embedding.py.
//
//   table [ENTRIES, D] T
//   ids [N] int      -ENTRIES..-1 count from the end
//   forward:  values [N, D] T, rows [N] int: the row of each id. Where there is none: NaN, and -1
//   backward: rows, order [N] uint: sorts rows, cotangent [N, D] T
//             -> d_table [ENTRIES, D] T; rows of the table that no id names are not written and must be 0 before
//
// Forward: a thread has V neighbouring columns (4, 2 or 1, of which D is a multiple) of one value.
// Backward: a threadgroup of 256 for 32 V columns and a place in the order. Where equal rows begin there it adds them all up: its 8
// SIMD-groups take 32 of them at a time, in turn, and the first adds up the eight sums. Every other threadgroup ends at once. No two
// write the same row, sums are float and keep their order, so every run gives the same bits.
// Grid: D / V * N threads forward, N * ceil(D / V / 32) threadgroups backward.
// Templates: T, D, V. N and ENTRIES come from shapes, so that texts of another length compile nothing anew.

//// forward
    constexpr uint COLUMNS = D / V;
    uint number = thread_position_in_grid.x / COLUMNS;
    uint column = thread_position_in_grid.x % COLUMNS;
    if (number >= uint(ids_shape[0])) return;
    int entries = int(table_shape[0]);
    int row = ids[number] < 0 ? ids[number] + entries : ids[number];
    bool known = row >= 0 && row < entries;
    float value[V];
    if (known) load_some<V>(table, uint(row) * COLUMNS + column, value);
    else for (int k = 0; k < V; ++k) value[k] = not_a_number();
    store_some<V>(values, number * COLUMNS + column, value);
    if (column == 0) rows[number] = known ? row : -1;

//// backward
    constexpr uint COLUMNS = D / V;
    constexpr uint BLOCKS = (COLUMNS + 31) / 32;
    constexpr uint PARTS = 8;
    threadgroup float sums[PARTS * 32 * V];
    uint lane = thread_index_in_simdgroup;
    uint part = simdgroup_index_in_threadgroup;
    uint first = threadgroup_position_in_grid.x / BLOCKS;
    uint column = threadgroup_position_in_grid.x % BLOCKS * 32 + lane;
    uint count = uint(order_shape[0]);
    int row = rows[order[first]];
    if (row < 0 || (first > 0 && rows[order[first - 1]] == row)) return;
    float sum[V], more[V];
    for (int k = 0; k < V; ++k) sum[k] = 0.0f;
    for (uint start = first + part * 32; start < count; start += PARTS * 32) {
        uint number = start + lane < count ? order[start + lane] : 0;
        uint equal = simd_sum(start + lane < count && rows[number] == row ? 1u : 0u);
        UNROLLED
        for (uint other = 0; other < equal; ++other) {
            uint here = simd_broadcast(number, other);
            if (column >= COLUMNS) continue;
            load_some<V>(cotangent, here * COLUMNS + column, more);
            for (int k = 0; k < V; ++k) sum[k] += more[k];
        }
        if (equal < 32) break;
    }
    for (int k = 0; k < V; ++k) sums[(part * 32 + lane) * V + k] = sum[k];
    threadgroup_barrier(mem_flags::mem_threadgroup);
    if (part != 0 || column >= COLUMNS) return;
    for (uint other = 1; other < PARTS; ++other) {
        for (int k = 0; k < V; ++k) sum[k] += sums[(other * 32 + lane) * V + k];
    }
    store_some<V>(d_table, uint(row) * COLUMNS + column, sum);
