// Metal's words for clang's C++ for OpenCL, whose address spaces are Metal's: declarations alone, nothing here runs.
// Every function has one overload a type and no template for "any scalar", so that what is ambiguous in Metal is ambiguous here.
#pragma once
#pragma OPENCL EXTENSION cl_khr_fp16 : enable

// What the Metal Shading Language has not (Specification, 1.5.4), and functions that it lacks.
#pragma clang poison double goto dynamic_cast typeid new noexcept register thread_local virtual try catch throw asm
#pragma clang poison erf erfc erff expm1 cbrt hypot lgamma tgamma printf malloc free memcpy memset

#define device __global
#define constant __constant
#define threadgroup __local
#define thread __private

typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef unsigned char uchar, uint8_t;
typedef unsigned short ushort, uint16_t;
typedef unsigned int uint, uint32_t;
typedef unsigned long ulong, uint64_t, size_t;
typedef long ptrdiff_t;
typedef __bf16 bfloat;
typedef half float16_t;      // these two are MLX's
typedef bfloat bfloat16_t;

#define INFINITY __builtin_huge_valf()
#define NAN __builtin_nanf("")

namespace metal {

template <typename A, typename B> constexpr constant bool is_same_v = false;
template <typename A> constexpr constant bool is_same_v<A, A> = true;
template <typename T, typename... All> constexpr constant bool is_one_of = (is_same_v<T, All> || ...);
template <typename T> struct same { typedef T type; };  // no place to deduce T from

template <typename T, int N> using vec = T __attribute__((ext_vector_type(N)));
#define METAL_VECTORS(T)                                                       \
  typedef vec<T, 2> T##2;                                                      \
  typedef vec<T, 3> T##3;                                                      \
  typedef vec<T, 4> T##4;                                                      \
  typedef vec<T, 2> packed_##T##2 __attribute__((aligned(sizeof(T))));         \
  typedef vec<T, 4> packed_##T##4 __attribute__((aligned(sizeof(T))));
METAL_VECTORS(float) METAL_VECTORS(half) METAL_VECTORS(bfloat) METAL_VECTORS(int) METAL_VECTORS(uint) METAL_VECTORS(ushort)

#define METAL_1(T, NAME) T NAME(T x);
#define METAL_2(T, NAME) T NAME(T x, T y);
#define METAL_3(T, NAME) T NAME(T x, T y, T z);
#define METAL_FLOATS(M, NAME) M(float, NAME) M(half, NAME) M(bfloat, NAME)  // bfloat: MLX's bf16_math.h
#define METAL_NUMBERS(M, NAME) METAL_FLOATS(M, NAME) M(char, NAME) M(uchar, NAME) M(short, NAME) M(ushort, NAME) \
  M(int, NAME) M(uint, NAME) M(long, NAME) M(ulong, NAME)
#define METAL_FUNCTIONS(M1, M2, M3)                                                                              \
  M1(exp) M1(exp2) M1(log) M1(log2) M1(sqrt) M1(rsqrt) M1(sin) M1(cos) M1(tan) M1(sinh) M1(cosh) M1(tanh)        \
  M1(floor) M1(ceil) M1(trunc) M1(round) M1(rint) M1(fabs) M1(fract) M1(sign) M1(saturate)                       \
  M2(pow) M2(fmod) M2(fmin) M2(fmax) M2(copysign) M2(divide) M3(fma) M3(mix)
#define METAL_F1(NAME) METAL_FLOATS(METAL_1, NAME)
#define METAL_F2(NAME) METAL_FLOATS(METAL_2, NAME)
#define METAL_F3(NAME) METAL_FLOATS(METAL_3, NAME)
METAL_FUNCTIONS(METAL_F1, METAL_F2, METAL_F3)
METAL_NUMBERS(METAL_1, abs) METAL_NUMBERS(METAL_2, min) METAL_NUMBERS(METAL_2, max) METAL_NUMBERS(METAL_3, clamp)
#define METAL_TEST(T, NAME) bool NAME(T x);
METAL_FLOATS(METAL_TEST, isnan) METAL_FLOATS(METAL_TEST, isinf) METAL_FLOATS(METAL_TEST, isfinite)

#define METAL_FLOAT_1(NAME) METAL_1(float, NAME)
#define METAL_FLOAT_2(NAME) METAL_2(float, NAME)
#define METAL_FLOAT_3(NAME) METAL_3(float, NAME)
namespace fast { METAL_FUNCTIONS(METAL_FLOAT_1, METAL_FLOAT_2, METAL_FLOAT_3) }
namespace precise { METAL_FUNCTIONS(METAL_FLOAT_1, METAL_FLOAT_2, METAL_FLOAT_3) }

template <typename To, typename From> To as_type(From x) { return __builtin_astype(x, To); }

enum class mem_flags { mem_none, mem_device, mem_threadgroup };
constexpr mem_flags operator|(mem_flags a, mem_flags b) { return mem_flags(int(a) | int(b)); }
__attribute__((convergent)) void threadgroup_barrier(mem_flags flags);
__attribute__((convergent)) void simdgroup_barrier(mem_flags flags);

// SIMD functions. Metal has them for these types alone, and converts no bool for them.
#define METAL_SIMD(NAME, PARAMETERS)                                                                     \
  template <typename T> __attribute__((convergent)) T NAME PARAMETERS {                                  \
    static_assert(is_one_of<T, char, uchar, short, ushort, int, uint, half, float>, "Metal has no " #NAME " of this type"); \
    return x;                                                                                            \
  }
METAL_SIMD(simd_sum, (T x)) METAL_SIMD(simd_min, (T x)) METAL_SIMD(simd_max, (T x)) METAL_SIMD(simd_product, (T x))
METAL_SIMD(simd_prefix_inclusive_sum, (T x)) METAL_SIMD(simd_prefix_exclusive_sum, (T x))
METAL_SIMD(simd_broadcast, (T x, ushort lane)) METAL_SIMD(simd_shuffle, (T x, ushort lane)) METAL_SIMD(simd_shuffle_xor, (T x, ushort mask))
METAL_SIMD(simd_shuffle_up, (T x, ushort delta)) METAL_SIMD(simd_shuffle_down, (T x, ushort delta))
bool simd_any(bool x);
bool simd_all(bool x);

// Matrices of a SIMD-group. Loads are of the matrix's own type; a product takes any.
template <typename T, int Columns, int Rows> struct simdgroup_matrix {
  static_assert(Columns == 8 && Rows == 8 && is_one_of<T, half, bfloat, float>, "Metal has no simdgroup_matrix of this type");
  vec<T, 2> hidden;
  thread vec<T, 2>& thread_elements() thread { return hidden; }
};
#define METAL_MATRIX(SPACE)                                                                                              \
  template <typename T> __attribute__((convergent)) void simdgroup_load(thread simdgroup_matrix<T, 8, 8>& d, const SPACE T* from, \
    ulong elements_per_row = 8, vec<ulong, 2> origin = 0, bool transpose = false) {}                                     \
  template <typename T> __attribute__((convergent)) void simdgroup_store(simdgroup_matrix<T, 8, 8> a, SPACE T* to,       \
    ulong elements_per_row = 8, vec<ulong, 2> origin = 0, bool transpose = false) {}
METAL_MATRIX(device) METAL_MATRIX(threadgroup)
template <typename D, typename A, typename B, typename C> __attribute__((convergent)) void simdgroup_multiply_accumulate(
  thread simdgroup_matrix<D, 8, 8>& d, thread simdgroup_matrix<A, 8, 8>& a, thread simdgroup_matrix<B, 8, 8>& b,
  thread simdgroup_matrix<C, 8, 8>& c) {}

// Atomics. A float is added atomically in device memory only.
enum memory_order { memory_order_relaxed };
template <typename T> struct atomic {
  static_assert(is_one_of<T, int, uint, bool, float, ulong>, "Metal has no atomic of this type");
  T hidden;
};
template struct atomic<int>;  // OpenCL wants to know that a kernel may be given them
template struct atomic<uint>;
template struct atomic<float>;
typedef atomic<int> atomic_int;
typedef atomic<uint> atomic_uint;
typedef atomic<float> atomic_float;
#define METAL_ATOMIC(SPACE, NAME, ...)                                                                    \
  template <typename T> T NAME(volatile SPACE atomic<T>* object, typename same<T>::type operand, memory_order) { \
    static_assert(is_one_of<T, __VA_ARGS__>, "Metal has no " #NAME " of this type in this address space"); \
    return operand;                                                                                       \
  }
METAL_ATOMIC(device, atomic_fetch_add_explicit, int, uint, float) METAL_ATOMIC(threadgroup, atomic_fetch_add_explicit, int, uint)
METAL_ATOMIC(device, atomic_fetch_max_explicit, int, uint) METAL_ATOMIC(threadgroup, atomic_fetch_max_explicit, int, uint)
METAL_ATOMIC(device, atomic_fetch_min_explicit, int, uint) METAL_ATOMIC(threadgroup, atomic_fetch_min_explicit, int, uint)
METAL_ATOMIC(device, atomic_exchange_explicit, int, uint, float, bool) METAL_ATOMIC(threadgroup, atomic_exchange_explicit, int, uint, bool)
template <typename T> T atomic_load_explicit(const volatile device atomic<T>* object, memory_order);
template <typename T> T atomic_load_explicit(const volatile threadgroup atomic<T>* object, memory_order);
template <typename T> void atomic_store_explicit(volatile device atomic<T>* object, typename same<T>::type desired, memory_order);
template <typename T> void atomic_store_explicit(volatile threadgroup atomic<T>* object, typename same<T>::type desired, memory_order);

}  // namespace metal
using namespace metal;
