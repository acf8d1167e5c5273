// adamw: one step of AdamW on one tensor, bounded by a norm and stopped by a flag, in one pass.
// Specification: adamw_reference in energy_flow_mlx/ops/adamw.py.
//
//   parameter, gradient, first, second [n] float   first and second are Adam's moments
//   settings [7] float   0: rate, 1: weight decay, 2: beta1, 3: beta2, 4: eps, 5: 1 - beta1^t, 6: 1 - beta2^t
//   factors [P] float    what the gradient of each tensor is multiplied by; index [1] int: which of them is this one's
//   go [1] bool          false leaves everything as it is
//   size [1] int         n
//   next_parameter, next_first, next_second [n] float
//
// A thread has one element. Grid: n threads. No templates.

//// step
    uint i = thread_position_in_grid.x;
    if (i >= uint(size[0])) return;
    float p = parameter[i], m = first[i], v = second[i];
    if (go[0]) {
        float g = gradient[i] * factors[index[0]];
        m = settings[2] * m + (1.0f - settings[2]) * g;
        v = settings[3] * v + (1.0f - settings[3]) * g * g;
        p = p * (1.0f - settings[0] * settings[1]) - settings[0] / settings[5] * m / (metal::sqrt(v / settings[6]) + settings[4]);
    }
    next_parameter[i] = p;
    next_first[i] = m;
    next_second[i] = v;
