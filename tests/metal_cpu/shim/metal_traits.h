// <metal_type_traits> and <metal_limits>, as far as kernels and MLX's prelude use them.
#pragma once

namespace metal {

template <typename T, T v>
struct integral_constant {
  static constexpr T value = v;
};
typedef integral_constant<bool, true> true_type;
typedef integral_constant<bool, false> false_type;

template <typename A, typename B>
constexpr bool is_same_v = __is_same(A, B);
template <typename From, typename To>
constexpr bool is_convertible_v = __is_convertible(From, To);
template <typename T>
constexpr bool is_integral_v = __is_integral(T);
template <typename T>
constexpr bool is_floating_point_v = is_same_v<T, float> || is_same_v<T, half> || is_same_v<T, bfloat>;
template <typename T>
constexpr bool is_signed_v = __is_signed(T);

template <typename A, typename B>
struct is_same : integral_constant<bool, is_same_v<A, B>> {};
template <typename T>
struct is_floating_point : integral_constant<bool, is_floating_point_v<T>> {};
template <typename T>
struct is_integral : integral_constant<bool, is_integral_v<T>> {};

template <bool C, typename A, typename B>
struct conditional {
  typedef A type;
};
template <typename A, typename B>
struct conditional<false, A, B> {
  typedef B type;
};
template <bool C, typename A, typename B>
using conditional_t = typename conditional<C, A, B>::type;

template <bool C, typename T = void>
struct enable_if {};
template <typename T>
struct enable_if<true, T> {
  typedef T type;
};
template <bool C, typename T = void>
using enable_if_t = typename enable_if<C, T>::type;

template <typename T>
struct numeric_limits {
  static_assert(is_integral_v<T>, "numeric_limits of a type without limits");
  static constexpr bool is_signed = is_signed_v<T>;
  static constexpr T lowest() {
    return is_signed ? T(T(1) << (sizeof(T) * 8 - 1)) : T(0);
  }
  static constexpr T min() {
    return lowest();
  }
  static constexpr T max() {
    return T(~lowest());
  }
};

#define METAL_CPU_FLOAT_LIMITS(T, MIN, MAX, EPSILON)                      \
  template <>                                                             \
  struct numeric_limits<T> {                                              \
    static constexpr bool is_signed = true;                               \
    static constexpr T min() { return T(MIN); }                           \
    static constexpr T max() { return T(MAX); }                           \
    static constexpr T lowest() { return T(-MAX); }                       \
    static constexpr T epsilon() { return T(EPSILON); }                   \
    static constexpr T infinity() { return T(__builtin_huge_valf()); }    \
    static constexpr T quiet_NaN() { return T(__builtin_nanf("")); }      \
  };
METAL_CPU_FLOAT_LIMITS(float, __FLT_MIN__, __FLT_MAX__, __FLT_EPSILON__)
METAL_CPU_FLOAT_LIMITS(half, 0x1p-14f, 65504.0f, 0x1p-10f)
METAL_CPU_FLOAT_LIMITS(bfloat, __FLT_MIN__, 0x1.fep127f, 0x1p-7f)
#undef METAL_CPU_FLOAT_LIMITS

}  // namespace metal

#define INFINITY __builtin_huge_valf()
#define HUGE_VALF __builtin_huge_valf()
#define NAN __builtin_nanf("")
#define MAXFLOAT __FLT_MAX__
#define FLT_MAX __FLT_MAX__
#define FLT_MIN __FLT_MIN__
#define FLT_EPSILON __FLT_EPSILON__
#define INT_MAX __INT_MAX__
#define UINT_MAX (__INT_MAX__ * 2u + 1u)
#define M_E_F 2.71828182845904523536028747135266250f
#define M_LOG2E_F 1.44269504088896340735992468100189214f
#define M_LN2_F 0.693147180559945309417232121458176568f
#define M_PI_F 3.14159265358979323846264338327950288f
#define M_PI_2_F 1.57079632679489661923132169163975144f
#define M_1_PI_F 0.318309886183790671537767526745028724f
#define M_2_SQRTPI_F 1.12837916709551257389615890312154517f
#define M_SQRT2_F 1.41421356237309504880168872420969808f
#define M_SQRT1_2_F 0.707106781186547524400844362104849039f
