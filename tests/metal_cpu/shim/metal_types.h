// Scalar and vector types, address spaces and literals of the Metal Shading Language.
#pragma once

// clang knows OpenCL's address spaces in every language: mixing them is a type error, as it is in Metal,
// yet on a CPU they all lower to ordinary memory. `thread` is what an unqualified C++ pointer already is.
#define device __attribute__((opencl_global))
#define constant __attribute__((opencl_constant))
#define threadgroup __attribute__((opencl_local))
#define thread
#define kernel
#define METAL_FUNC inline __attribute__((always_inline))

typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef unsigned char uint8_t, uchar;
typedef unsigned short uint16_t, ushort;
typedef unsigned int uint32_t, uint;
typedef unsigned long uint64_t, ulong, size_t;
typedef long ptrdiff_t;
typedef _Float16 half;
typedef __bf16 bfloat;

namespace metal {

// MSL stores three components in the space of four, and so does clang.
template <typename T, int N>
using vec = T __attribute__((ext_vector_type(N)));

#define METAL_CPU_VECTORS(T) \
  typedef vec<T, 2> T##2;    \
  typedef vec<T, 3> T##3;    \
  typedef vec<T, 4> T##4;
METAL_CPU_VECTORS(float)
METAL_CPU_VECTORS(half)
METAL_CPU_VECTORS(bfloat)
METAL_CPU_VECTORS(bool)
METAL_CPU_VECTORS(char)
METAL_CPU_VECTORS(uchar)
METAL_CPU_VECTORS(short)
METAL_CPU_VECTORS(ushort)
METAL_CPU_VECTORS(int)
METAL_CPU_VECTORS(uint)
METAL_CPU_VECTORS(long)
METAL_CPU_VECTORS(ulong)
#undef METAL_CPU_VECTORS

// Aligned as one component. Components are taken by index.
#define METAL_CPU_PACKED(T)                                           \
  typedef vec<T, 2> packed_##T##2 __attribute__((aligned(sizeof(T)))); \
  typedef vec<T, 4> packed_##T##4 __attribute__((aligned(sizeof(T))));
METAL_CPU_PACKED(float)
METAL_CPU_PACKED(half)
METAL_CPU_PACKED(bfloat)
#undef METAL_CPU_PACKED

namespace cpu {

template <typename T>
struct components {
  static constexpr int n = 1;
  typedef T scalar;
};
template <typename T, int N>
struct components<vec<T, N>> {
  static constexpr int n = N;
  typedef T scalar;
};

template <typename V, typename A>
METAL_FUNC void append(V& out, int& at, A a) {
  typedef typename components<V>::scalar T;
  if constexpr (components<A>::n == 1) {
    out[at++] = T(a);
  } else {
    for (int i = 0; i < components<A>::n; ++i) out[at++] = T(a[i]);
  }
}

template <typename... A>
constexpr int total_components = (0 + ... + components<A>::n);

}  // namespace cpu

// What `float4(...)` means in MSL; the source rewrite turns `vec<T, N>(...)` into this.
template <typename V, typename... A>
METAL_FUNC V make_vector(A... a) {
  constexpr int n = cpu::components<V>::n, given = cpu::total_components<A...>;
  static_assert(given == n || (sizeof...(A) == 1 && given == 1), "a vector takes one scalar, or as many components as it has");
  V out;
  int at = 0;
  if constexpr (given == n) {
    (cpu::append(out, at, a), ...);
  } else {
    while (at < n) (cpu::append(out, at, a), ...);
  }
  return out;
}

template <typename To, typename From>
METAL_FUNC To as_type(From x) {
  static_assert(sizeof(To) == sizeof(From), "as_type needs two types of one size");
  return __builtin_bit_cast(To, x);
}

}  // namespace metal

#define float2(...) make_vector<metal::float2>(__VA_ARGS__)
#define float3(...) make_vector<metal::float3>(__VA_ARGS__)
#define float4(...) make_vector<metal::float4>(__VA_ARGS__)
#define half2(...) make_vector<metal::half2>(__VA_ARGS__)
#define half3(...) make_vector<metal::half3>(__VA_ARGS__)
#define half4(...) make_vector<metal::half4>(__VA_ARGS__)
#define bfloat2(...) make_vector<metal::bfloat2>(__VA_ARGS__)
#define bfloat3(...) make_vector<metal::bfloat3>(__VA_ARGS__)
#define bfloat4(...) make_vector<metal::bfloat4>(__VA_ARGS__)
#define int2(...) make_vector<metal::int2>(__VA_ARGS__)
#define int3(...) make_vector<metal::int3>(__VA_ARGS__)
#define int4(...) make_vector<metal::int4>(__VA_ARGS__)
#define uint2(...) make_vector<metal::uint2>(__VA_ARGS__)
#define uint3(...) make_vector<metal::uint3>(__VA_ARGS__)
#define uint4(...) make_vector<metal::uint4>(__VA_ARGS__)
#define bool2(...) make_vector<metal::bool2>(__VA_ARGS__)
#define bool3(...) make_vector<metal::bool3>(__VA_ARGS__)
#define bool4(...) make_vector<metal::bool4>(__VA_ARGS__)
