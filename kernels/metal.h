// What the kernels of this folder use beyond Metal itself. cuda.h spells the same, and Metal's own words, for CUDA.
// A body may use: the thread attributes of Metal, `threadgroup` arrays declared in the body, threadgroup_barrier(mem_flags::mem_threadgroup),
// simd_sum and the other SIMD functions of cuda.h, float(x), T(x), metal::exp and its kin in float, and what follows.

// Metal's own `device` and `constant` cannot be macros for CUDA, whose __device__ is made of that word.
#define FUNCTION inline
#define DEVICE device
#define CONSTANT constant

// Before loops whose length is a constant, which compilers would unroll whole and take seconds for: those that hold others,
// and those inside, where loads in flight together are worth the code: 8 turns, or several, fewer here than where threads have more registers.
#define SHORT _Pragma("clang loop unroll(disable)")
#define UNROLLED _Pragma("clang loop unroll_count(8)")
#define SEVERAL _Pragma("clang loop unroll_count(2)")
#define STEPS_AHEAD 2  // steps of a product whose 16-bit weights are loaded before their use

// Elements that lie side by side, aligned as one of them.
template <typename T, int V>
struct Side {};
template <> struct Side<float, 2> { typedef packed_float2 type; };
template <> struct Side<float, 4> { typedef packed_float4 type; };
template <> struct Side<half, 2> { typedef packed_half2 type; };
template <> struct Side<half, 4> { typedef packed_half4 type; };
template <> struct Side<bfloat, 2> { typedef packed_bfloat2 type; };
template <> struct Side<bfloat, 4> { typedef packed_bfloat4 type; };

// Elements V i .. V i + V - 1 (V: 2 or 4) of an array of float, half or bfloat, as float, in one access. The array's rows must hold
// a multiple of V: CUDA wants the elements aligned.
template <int V, typename T>
FUNCTION void load_packed(const DEVICE T* array, uint i, thread float (&value)[V]) {
    typename Side<T, V>::type all = ((const DEVICE typename Side<T, V>::type*)array)[i];
    for (int k = 0; k < V; ++k) value[k] = float(all[k]);
}

template <int V, typename T>
FUNCTION void load_packed(const CONSTANT T* array, uint i, thread float (&value)[V]) {
    typename Side<T, V>::type all = ((const CONSTANT typename Side<T, V>::type*)array)[i];
    for (int k = 0; k < V; ++k) value[k] = float(all[k]);
}

template <int V>
FUNCTION void load_packed(const threadgroup float* array, uint i, thread float (&value)[V]) {
    typename Side<float, V>::type all = ((const threadgroup typename Side<float, V>::type*)array)[i];
    for (int k = 0; k < V; ++k) value[k] = all[k];
}

template <int V, typename T>
FUNCTION void store_packed(DEVICE T* array, uint i, thread const float (&value)[V]) {
    typename Side<T, V>::type all;
    for (int k = 0; k < V; ++k) all[k] = T(value[k]);
    ((DEVICE typename Side<T, V>::type*)array)[i] = all;
}

template <int V>
FUNCTION void store_packed(threadgroup float* array, uint i, thread const float (&value)[V]) {
    typename Side<float, V>::type all;
    for (int k = 0; k < V; ++k) all[k] = value[k];
    ((threadgroup typename Side<float, V>::type*)array)[i] = all;
}

// Add to one element of an output that is declared atomic.
FUNCTION void add_to(DEVICE atomic<float>* array, uint i, float value) {
    atomic_fetch_add_explicit(&array[i], value, memory_order_relaxed);
}

FUNCTION void add_to(DEVICE atomic<int>* array, uint i, int value) {
    atomic_fetch_add_explicit(&array[i], value, memory_order_relaxed);
}

// Raise one element of such an output to `value`, where that is more.
FUNCTION void max_to(DEVICE atomic<int>* array, uint i, int value) {
    atomic_fetch_max_explicit(&array[i], value, memory_order_relaxed);
}

// On the bits, so that no compiler option changes the answer.
FUNCTION bool is_nan(float x) { return (as_type<uint>(x) & 0x7FFFFFFFu) > 0x7F800000u; }
FUNCTION bool is_infinite(float x) { return (as_type<uint>(x) & 0x7FFFFFFFu) == 0x7F800000u; }
FUNCTION float not_a_number() { return as_type<float>(0x7FC00000u); }

// Exact to a unit in the last place, on CUDA to two, where a division takes ten times as long.
FUNCTION float reciprocal(float x) { return metal::fast::divide(1.0f, x); }
