// The words of Metal that the kernels of this folder use, for CUDA: thread attributes, address spaces, barriers, SIMD functions,
// 16-bit floats, and metal.h. It includes nothing, so that a kernel compiles in a moment.

typedef unsigned int uint;
#define FUNCTION __device__ inline
#define SHORT _Pragma("unroll 1")
#define UNROLLED _Pragma("unroll 8")
#define SEVERAL _Pragma("unroll 4")
#define STEPS_AHEAD 4

// Storage alone: arithmetic is float.
struct __align__(2) half {
    unsigned short bits;
    half() = default;
    __device__ explicit half(float x) { asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x)); }
    __device__ explicit operator float() const {
        float x;
        asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
        return x;
    }
};

// The upper half of a float, rounded to nearest even.
struct __align__(2) bfloat {
    unsigned short bits;
    bfloat() = default;
    __device__ explicit bfloat(float x) {
#if __CUDA_ARCH__ >= 800
        asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(x));
#else
        uint all = __float_as_uint(x);
        bool nan = (all & 0x7FFFFFFFu) > 0x7F800000u;
        bits = nan ? 0x7FFF : (all + 0x7FFFu + ((all >> 16) & 1u)) >> 16;
#endif
    }
    __device__ explicit operator float() const { return __uint_as_float(uint(bits) << 16); }
};

#define DEVICE
#define CONSTANT
#define thread
#define threadgroup __shared__ __align__(16)  // for load_packed and store_packed
#define threadgroup_barrier(flags) __syncthreads()
#define simdgroup_barrier(flags) __syncwarp()

#define thread_position_in_threadgroup threadIdx
#define threadgroup_position_in_grid blockIdx
#define threads_per_threadgroup blockDim
#define thread_position_in_grid make_uint3( \
    blockIdx.x * blockDim.x + threadIdx.x, blockIdx.y * blockDim.y + threadIdx.y, blockIdx.z * blockDim.z + threadIdx.z)
#define thread_index_in_threadgroup (threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z))
#define thread_index_in_simdgroup (thread_index_in_threadgroup % 32u)
#define simdgroup_index_in_threadgroup (thread_index_in_threadgroup / 32u)

namespace metal {
FUNCTION float exp(float x) { return ::__expf(x); }  // to two units in the last place, and one more for each 1 of |x|
FUNCTION float tanh(float x) { return ::tanhf(x); }
FUNCTION float sqrt(float x) { return ::sqrtf(x); }
FUNCTION float rsqrt(float x) { return ::rsqrtf(x); }
FUNCTION float rint(float x) { return ::rintf(x); }
FUNCTION float floor(float x) { return ::floorf(x); }
FUNCTION float abs(float x) { return ::fabsf(x); }
FUNCTION float min(float x, float y) { return ::fminf(x, y); }
FUNCTION float max(float x, float y) { return ::fmaxf(x, y); }
FUNCTION int min(int x, int y) { return ::min(x, y); }
FUNCTION int max(int x, int y) { return ::max(x, y); }
FUNCTION uint min(uint x, uint y) { return ::min(x, y); }
FUNCTION uint max(uint x, uint y) { return ::max(x, y); }
namespace fast {
using metal::exp;
}
}  // namespace metal

// Whole SIMD-groups only: every lane of 32 takes part.
template <typename T>
FUNCTION T simd_sum(T x) {
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(0xFFFFFFFFu, x, offset);
    return x;
}

template <typename T>
FUNCTION T simd_prefix_inclusive_sum(T x) {
    for (int offset = 1; offset < 32; offset *= 2) {
        T below = __shfl_up_sync(0xFFFFFFFFu, x, offset);
        if (thread_index_in_simdgroup >= offset) x += below;
    }
    return x;
}

template <typename T>
FUNCTION T simd_prefix_exclusive_sum(T x) {
    T sum = simd_prefix_inclusive_sum(x);
    return sum - x;
}

template <typename T>
FUNCTION T simd_broadcast(T x, int lane) {
    return __shfl_sync(0xFFFFFFFFu, x, lane);
}

template <typename T>
FUNCTION T simd_shuffle_xor(T x, int mask) {
    return __shfl_xor_sync(0xFFFFFFFFu, x, mask);
}

// One access of 4 to 16 bytes instead of two or four: a warp then asks for whole cache lines.
template <typename T, int V>
struct __align__(sizeof(T) * V) Side {
    T part[V];
};

template <typename T, int V>
FUNCTION void load_packed(const T* array, uint i, float (&value)[V]) {
    Side<T, V> all = reinterpret_cast<const Side<T, V>*>(array)[i];
    for (int k = 0; k < V; ++k) value[k] = float(all.part[k]);
}

template <typename T, int V>
FUNCTION void store_packed(T* array, uint i, const float (&value)[V]) {
    Side<T, V> all;
    for (int k = 0; k < V; ++k) all.part[k] = T(value[k]);
    reinterpret_cast<Side<T, V>*>(array)[i] = all;
}

template <typename T>
FUNCTION void add_to(T* array, uint i, T value) {
    atomicAdd(array + i, value);
}

FUNCTION void max_to(int* array, uint i, int value) { atomicMax(array + i, value); }

FUNCTION bool is_nan(float x) { return (__float_as_uint(x) & 0x7FFFFFFFu) > 0x7F800000u; }
FUNCTION bool is_infinite(float x) { return (__float_as_uint(x) & 0x7FFFFFFFu) == 0x7F800000u; }
FUNCTION float not_a_number() { return __uint_as_float(0x7FC00000u); }

FUNCTION float reciprocal(float x) { return ::__fdividef(1.0f, x); }
