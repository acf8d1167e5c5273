// What the kernels of this folder use beyond Metal itself. cuda.h spells the same, and Metal's own words, for CUDA.
// A body may use: the thread attributes of Metal, `threadgroup` arrays declared in the body, threadgroup_barrier(mem_flags::mem_threadgroup),
// simd_sum and the other SIMD functions of cuda.h, float(x), T(x), metal::exp and its kin in float, and what follows.

// Metal's own `device` and `constant` cannot be macros for CUDA, whose __device__ is made of that word.
#define FUNCTION inline
#define DEVICE device
#define CONSTANT constant

// Before loops whose length is a constant, which compilers would unroll whole and take seconds for: those that hold others,
// and those inside, where loads in flight together are worth the code.
#define SHORT _Pragma("clang loop unroll(disable)")
#define UNROLLED _Pragma("clang loop unroll_count(8)")

// Elements 4 i .. 4 i + 3 of an array of float, half or bfloat, as float. The array's rows must hold a multiple of 4.
template <typename P>
FUNCTION void load4(P array, uint i, thread float (&value)[4]) {
    for (uint k = 0; k < 4; ++k) value[k] = float(array[4 * i + k]);
}

template <typename T>
FUNCTION void store4(DEVICE T* array, uint i, thread const float (&value)[4]) {
    for (uint k = 0; k < 4; ++k) array[4 * i + k] = T(value[k]);
}

FUNCTION void store4(threadgroup float* array, uint i, thread const float (&value)[4]) {
    for (uint k = 0; k < 4; ++k) array[4 * i + k] = value[k];
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

// CUDA's is exact to a unit in the last place or two, where a division takes ten times as long.
FUNCTION float reciprocal(float x) { return 1.0f / x; }
