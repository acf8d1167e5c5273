// spawn: a slot for each child that the moves of a step leave, in the order of the parents.
// Specification: spawn_reference in energy_flow_mlx/ops/spawn.py.
//
//   length [B, FLOWS] float, spawning [B, FLOWS] bool
//   taken [B] int     child slots in use
//   room [B] int      how many more flows the sample may have
//   settings [2] float: threshold, most children of a flow
//   -> parent [B, SLOTS] int, born [B] int, overflowed [B] int
//
// A threadgroup for a sample walks its flows in chunks of PER flows a thread: sums within a thread, then within a SIMD-group, then over
// the SIMD-groups give each flow the number of children before it. Grid: B threadgroups of a multiple of 32 threads, at most 512.
// No atomics: every run gives the same slots. Templates: SLOTS, PER.

// Children of one flow: min(floor(length / threshold) - 1, most).
FUNCTION uint children(float length, float threshold, float most) {
    if (!(length > threshold)) return 0;  // also where the length is not a number
    return uint(metal::max(metal::min(metal::floor(length / threshold) - 1.0f, most), 0.0f));
}

//// forward
    threadgroup uint sums[16];
    uint me = thread_index_in_threadgroup;
    uint simdgroups = threads_per_threadgroup.x / 32;
    uint chunk = threads_per_threadgroup.x * PER;
    uint sample = threadgroup_position_in_grid.x;
    uint flows = uint(length_shape[1]);
    uint begin = sample * flows, end = begin + flows;
    uint row = sample * SLOTS;
    int first = taken[sample];
    int limit = metal::min(first + metal::max(room[sample], 0), int(SLOTS));
    uint before = 0;
    for (uint start = begin; start < end; start += chunk) {
        uint own[PER], all = 0;
        for (int k = 0; k < PER; ++k) {
            uint flow = start + me * PER + k;
            own[k] = flow < end && spawning[flow] ? children(length[flow], settings[0], settings[1]) : 0;
            all += own[k];
        }
        uint inclusive = simd_prefix_inclusive_sum(all);
        if (thread_index_in_simdgroup == 31) sums[simdgroup_index_in_threadgroup] = inclusive;
        threadgroup_barrier(mem_flags::mem_threadgroup);
        uint number = before + inclusive - all;
        for (uint other = 0; other < simdgroups; ++other) {
            if (other < simdgroup_index_in_threadgroup) number += sums[other];
            before += sums[other];
        }
        for (int k = 0; k < PER; ++k) {
            for (uint child = 0; child < own[k]; ++child, ++number) {
                int slot = first + int(number);
                if (slot < limit) parent[row + uint(slot)] = int(start + me * PER + k - begin);
            }
        }
        threadgroup_barrier(mem_flags::mem_threadgroup);
    }
    int lives = metal::min(int(before), limit - first);
    for (uint slot = me; slot < SLOTS; slot += threads_per_threadgroup.x) {
        if (int(slot) < first || int(slot) >= first + lives) parent[row + slot] = -1;
    }
    if (me == 0) {
        born[sample] = lives;
        overflowed[sample] = int(before) - lives;
    }
