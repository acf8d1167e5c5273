// adamw: one step of AdamW on three tensors, bounded by a norm and stopped by a flag, in one pass.
// Specification: adamw_reference in energy_flow_mlx/ops/adamw.py.
//
//   parameter0, first0, second0 [n] float   first and second are Adam's moments; 1 and 2: those of the other tensors
//   gradient0 [n]        float, half or bfloat, and so on
//   settings [7] float   0: rate, 1: weight decay, 2: beta1, 3: beta2, 4: eps, 5: 1 - beta1^t, 6: 1 - beta2^t
//   factors [P] float    what the gradient of each tensor is multiplied by
//   rates [P] float      what the rate is multiplied by for each tensor
//   go [1] bool          false leaves everything as it is
//   index [3] int        which of the factors and rates is each tensor's
//   sizes [3] int        n of each
//   next_parameter0, next_first0, next_second0 [n] float, and so on
//
// A thread has one element, those of the first tensor first. Grid: the sum of the sizes. No templates.

// One element: p, m and v become what they are after the step; rate is the tensor's own, g the gradient times its factor.
template <typename S>
FUNCTION void adam(S settings, float rate, float g, thread float& p, thread float& m, thread float& v) {
    m = settings[2] * m + (1.0f - settings[2]) * g;
    v = settings[3] * v + (1.0f - settings[3]) * g * g;
    p = p * (1.0f - rate * settings[1]) - rate / settings[5] * m / (metal::sqrt(v / settings[6]) + settings[4]);
}

// Whether a pointer is to `device` or `constant` memory differs from tensor to tensor: no array can hold them.
#define TENSOR(k) \
    if (i < uint(sizes[k])) { \
        float p = parameter##k[i], m = first##k[i], v = second##k[i]; \
        if (go[0]) adam(settings, settings[0] * rates[index[k]], float(gradient##k[i]) * factors[index[k]], p, m, v); \
        next_parameter##k[i] = p; \
        next_first##k[i] = m; \
        next_second##k[i] = v; \
        return; \
    } \
    i -= uint(sizes[k]);

//// step
    uint i = thread_position_in_grid.x;
    TENSOR(0)
    TENSOR(1)
    TENSOR(2)
