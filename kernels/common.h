// Arithmetic that several kernels share; the functions of the same names in energy_flow_mlx/ops/numerics.py specify it.

// NaN -> 0, +-inf -> +-10, then limited to +-bound.
FUNCTION float sanitise(float x, float bound) {
    if (is_nan(x)) return 0.0f;
    if (is_infinite(x)) x = x > 0.0f ? 10.0f : -10.0f;
    return metal::min(metal::max(x, -bound), bound);
}

// Whether sanitise put another value in the place of x: no gradient passes there.
FUNCTION bool replaced(float x, float bound) { return !(x >= -bound && x <= bound); }

// The normal distribution: its integral up to x, and its density.
FUNCTION float normal_integral(float x) { return 0.5f * (1.0f + error_function(x * 0.70710678f)); }
FUNCTION float normal_density(float x) { return 0.39894228f * metal::exp(-0.5f * x * x); }

// The exact GELU and its derivative.
FUNCTION float gelu(float x) { return x * normal_integral(x); }
FUNCTION float gelu_derivative(float x) { return normal_integral(x) + x * normal_density(x); }

// V neighbouring elements of an array, 4 or 1, as float: elements V i .. V i + V - 1.
template <int V, typename P>
FUNCTION void load_some(P array, uint i, thread float (&value)[V]) {
    if constexpr (V == 4) load4(array, i, value);
    else value[0] = float(array[i]);
}

template <int V, typename T>
FUNCTION void store_some(DEVICE T* array, uint i, thread const float (&value)[V]) {
    if constexpr (V == 4) store4(array, i, value);
    else array[i] = T(value[0]);
}
