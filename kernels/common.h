// Arithmetic that several kernels share; the functions of the same names in energy_flow_mlx/ops/numerics.py specify it.

// NaN -> 0, +-inf -> +-10, then limited to +-bound.
FUNCTION float sanitise(float x, float bound) {
    if (is_nan(x)) return 0.0f;
    if (is_infinite(x)) x = x > 0.0f ? 10.0f : -10.0f;
    return metal::min(metal::max(x, -bound), bound);
}

// Whether sanitise put another value in the place of x: no gradient passes there.
FUNCTION bool replaced(float x, float bound) { return !(x >= -bound && x <= bound); }

// Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26: to 1.5e-7. Metal has no erf, and CUDA's takes twice as long.
FUNCTION float error_function(float x) {
    float a = metal::abs(x), t = reciprocal(1.0f + 0.3275911f * a);
    float tail = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    float y = 1.0f - tail * metal::fast::exp(-a * a);
    return x < 0.0f ? -y : y;
}

// 1 / (1 + e^-x).
FUNCTION float logistic(float x) { return reciprocal(1.0f + metal::fast::exp(-x)); }

// The normal distribution: its integral up to x, and its density.
FUNCTION float normal_integral(float x) { return 0.5f * (1.0f + error_function(x * 0.70710678f)); }
FUNCTION float normal_density(float x) { return 0.39894228f * metal::fast::exp(-0.5f * x * x); }

// The exact GELU and its derivative.
FUNCTION float gelu(float x) { return x * normal_integral(x); }
FUNCTION float gelu_derivative(float x) { return normal_integral(x) + x * normal_density(x); }

// V neighbouring elements of an array, 4, 2 or 1, as float: elements V i .. V i + V - 1.
template <int V, typename P>
FUNCTION void load_some(P array, uint i, thread float (&value)[V]) {
    if constexpr (V > 1) load_packed(array, i, value);
    else value[0] = float(array[i]);
}

template <int V, typename T>
FUNCTION void store_some(DEVICE T* array, uint i, thread const float (&value)[V]) {
    if constexpr (V > 1) store_packed(array, i, value);
    else array[i] = T(value[0]);
}
