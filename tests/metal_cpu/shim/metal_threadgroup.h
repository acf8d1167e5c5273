// Barriers, and threadgroup memory: `threadgroup float tile[64];` is rewritten to ask the runtime for its storage.
#pragma once
#include "metal_types.h"

extern "C" void metal_cpu_barrier(int whole_threadgroup, unsigned flags, int line);
extern "C" void* metal_cpu_threadgroup_memory(int declaration, unsigned long bytes, unsigned granule, const char* name);

namespace metal {

enum class mem_flags { mem_none = 0, mem_device = 1, mem_threadgroup = 2, mem_texture = 4 };
METAL_FUNC constexpr mem_flags operator|(mem_flags a, mem_flags b) {
  return mem_flags(int(a) | int(b));
}

METAL_FUNC void threadgroup_barrier(mem_flags flags, int line = __builtin_LINE()) {
  metal_cpu_barrier(1, unsigned(flags), line);
}
METAL_FUNC void simdgroup_barrier(mem_flags flags, int line = __builtin_LINE()) {
  metal_cpu_barrier(0, unsigned(flags), line);
}

namespace cpu {

template <typename T>
struct element {
  typedef typename components<T>::scalar type;
};
template <typename T, unsigned long N>
struct element<T[N]> : element<T> {};

// Accesses are tracked by scalar, so that two threads may write two halves of one vector.
template <typename T>
METAL_FUNC threadgroup T& threadgroup_memory(int declaration, const char* name) {
  constexpr unsigned scalar = sizeof(typename element<T>::type);
  return *(threadgroup T*)metal_cpu_threadgroup_memory(declaration, sizeof(T), scalar > 4 ? 4 : scalar, name);
}

}  // namespace cpu
}  // namespace metal
