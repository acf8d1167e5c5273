// Stands in for MLX's header of this name, which needs member functions qualified by address space.
// Enough for MLX's utils.h to compile; kernels over complex numbers are not modelled.
#pragma once

template <typename T>
struct complex_t {
  T real, imag;
  constexpr complex_t(T real, T imag) : real(real), imag(imag) {}
};
typedef complex_t<float> complex64_t;
