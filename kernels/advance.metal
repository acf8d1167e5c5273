// advance: one move of every flow, in one pass: clip, add, reflect, clamp, test for the planes, mask.
// Specification: advance_reference in energy_flow_mlx/ops/advance.py.
//
//   displacement [N, 3] T, new_energy [N] T    what the carrier wants, scaled but not clipped
//   position [N, 3] float, energy [N] float    where the flows are, what they carry
//   noise [N, 3] float                         read if NOISY
//   active [N] bool, age [N] int               flows that are not active stay as they are
//   forward:  next_position [N, 3] float, next_energy [N] float, terminated [N] bool, moving [N] bool (active and not terminated),
//             next_age [N] int, length [N] float
//   backward: d_next_position [N, 3] float, d_next_energy [N] float
//             -> d_displacement [N, 3] T, d_new_energy [N] T, d_position [N, 3] float, d_energy [N] float
//
// A thread has one flow. Grid: N threads. Templates: T, NOISY, REFLECT.

#include "advance.h"

//// forward
    uint i = thread_position_in_grid.x;
    if (i >= uint(active_shape[0])) return;
    float from[3], to[3];
    for (int axis = 0; axis < 3; ++axis) from[axis] = to[axis] = position[3 * i + axis];
    bool on = active[i];
    float square = 0.0f;
    bool reached = false;
    if (on) {
        float raw[3];
        for (int axis = 0; axis < 3; ++axis) {
            raw[axis] = from[axis] + limit(float(displacement[3 * i + axis]), LARGEST_DISPLACEMENT);
            if (NOISY) raw[axis] += noise[3 * i + axis];
        }
        reached = travel<REFLECT>(from, raw, to, square);
    }
    for (int axis = 0; axis < 3; ++axis) next_position[3 * i + axis] = to[axis];
    next_energy[i] = on ? float(new_energy[i]) : energy[i];
    terminated[i] = reached;
    moving[i] = on && !reached;
    next_age[i] = age[i] + (on ? 1 : 0);
    length[i] = metal::sqrt(square);

//// backward
    uint i = thread_position_in_grid.x;
    if (i >= uint(active_shape[0])) return;
    bool on = active[i];
    for (int axis = 0; axis < 3; ++axis) {
        float d = d_next_position[3 * i + axis];
        float d_move = 0.0f;
        if (on) {
            float want = float(displacement[3 * i + axis]);
            float raw = position[3 * i + axis] + limit(want, LARGEST_DISPLACEMENT);
            if (NOISY) raw += noise[3 * i + axis];
            if (replaced(raw, LARGEST_COORDINATE)) d = 0.0f;
            bool mirrored = REFLECT && axis < 2;
            if (replaced(mirrored ? reflected(raw) : raw, 1.0f)) d = 0.0f;
            if (mirrored && replaced(raw, 1.0f)) d = -d;
            d_move = replaced(want, LARGEST_DISPLACEMENT) ? 0.0f : d;
        }
        d_displacement[3 * i + axis] = T(d_move);
        d_position[3 * i + axis] = d;
    }
    d_new_energy[i] = T(on ? d_next_energy[i] : 0.0f);
    d_energy[i] = on ? 0.0f : d_next_energy[i];
