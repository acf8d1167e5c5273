// inherit: rows of newborn flows, copied from their parents.
// Specification: inherit_reference in energy_flow_mlx/ops/inherit.py.
//
//   own, inherited [N, D] T     N = B * SLOTS; the last K slots of a sample are for children
//   parent [B, K] int           slot of the parent of the child that is born into each child slot, -1 where none is
//   before, born [B] int        the children born have the child slots from before[b] to before[b] + born[b] - 1, by rising parent
//   forward:  values [N, D] T: rows of inherited for the newborn, of own for the others
//   backward: cotangent [N, D] T -> gradient [N, D] T: that of own if STAYS, plus that of inherited if PASSES
//
// A thread has V neighbouring columns (4, 2 or 1, of which D is a multiple) of one row. Backward it finds the row's children by
// bisection and adds up their gradients in float, in order. Grid: D / V * N threads. Templates: T, D, V, STAYS, PASSES.

//// forward
    constexpr uint COLUMNS = D / V;
    uint row = thread_position_in_grid.x / COLUMNS;
    uint column = thread_position_in_grid.x % COLUMNS;
    if (row >= uint(own_shape[0])) return;
    uint children = uint(parent_shape[1]);
    uint slots = uint(own_shape[0]) / uint(parent_shape[0]);
    uint sample = row / slots, slot = row % slots, cells = slots - children;
    int from = slot < cells ? -1 : parent[sample * children + slot - cells];
    float value[V];
    if (from < 0) load_some<V>(own, row * COLUMNS + column, value);
    else load_some<V>(inherited, (sample * slots + uint(from)) * COLUMNS + column, value);
    store_some<V>(values, row * COLUMNS + column, value);

//// backward
    constexpr uint COLUMNS = D / V;
    uint row = thread_position_in_grid.x / COLUMNS;
    uint column = thread_position_in_grid.x % COLUMNS;
    if (row >= uint(cotangent_shape[0])) return;
    uint children = uint(parent_shape[1]);
    uint slots = uint(cotangent_shape[0]) / uint(parent_shape[0]);
    uint sample = row / slots, slot = row % slots, cells = slots - children;
    uint begin = uint(before[sample]), end = begin + uint(born[sample]);
    float sum[V], more[V];
    for (int k = 0; k < V; ++k) sum[k] = 0.0f;
    if (STAYS && !(slot >= cells + begin && slot < cells + end)) load_some<V>(cotangent, row * COLUMNS + column, sum);
    if (PASSES) {
        uint low = begin, high = end;
        while (low < high) {
            uint middle = (low + high) / 2;
            if (parent[sample * children + middle] < int(slot)) low = middle + 1;
            else high = middle;
        }
        for (; low < end && parent[sample * children + low] == int(slot); ++low) {
            load_some<V>(cotangent, (sample * slots + cells + low) * COLUMNS + column, more);
            for (int k = 0; k < V; ++k) sum[k] += more[k];
        }
    }
    store_some<V>(gradient, row * COLUMNS + column, sum);
