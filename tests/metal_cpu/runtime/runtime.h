// What the launcher, the scheduler and the checker share. The structs are mirrored in run.py.
#pragma once
#include <stdint.h>

#define EXPORTED __attribute__((visibility("default")))

#include "thread_info.h"

struct Buffer {
  const char* name;
  uint8_t* data;
  uint64_t bytes;
  uint64_t origin;   // bytes before the address that the kernel receives (a view with negative strides)
  uint32_t granule;  // bytes of one element
  uint32_t is_output;
  uint32_t initialised;
};

struct Launch {
  uint8_t* arena;  // reserved addresses, from metal_cpu_reserve
  uint64_t slot_bits;
  Buffer* buffers;
  uint32_t buffer_count, checked;
  uint32_t grid[3], threadgroup[3];
  uint32_t seed;  // 0: threads run in order; else the seed of a random order
  uint32_t message_capacity;
  char* message;
};

extern "C" void metal_cpu_kernel(void** arguments, const ThreadInfo* info);  // the kernel, wrapped by compile.py

constexpr uint32_t simd_width = 32, max_threads = 1024, max_buffers = 31;
constexpr uint64_t threadgroup_memory_limit = 32768;

// The arena: one slot of 2^slot_bits bytes for each buffer, each threadgroup array, and the stacks. A slot is so wide
// that a 32-bit index does not leave it: a bad address still tells which buffer it came from.
constexpr int slot_count = 64, stack_slot = 63, first_threadgroup_slot = 32;
constexpr uint64_t stack_bytes = 256 << 10;

// What the scheduler knows of the thread that runs now. Barriers are counted apart for what they order: [0] device
// memory, [1] threadgroup memory.
struct Current {
  uint32_t thread;     // 1 + index in the launch
  uint32_t group;
  uint32_t simdgroup;  // in the group
  uint32_t barriers[2];
  uint32_t simd_barriers[max_threads / simd_width][2];
};

extern Launch* launch;
extern void* arguments[max_buffers];
extern Current current;

// launch.cpp. A fault is recorded and the kernel left for good; `by_thread` adds who did it.
[[noreturn]] void fault(bool by_thread, const char* format, ...);
int describe_thread(char* out, int room, uint32_t thread);

// scheduler.cpp
void run_grid();

// fibers.cpp
extern "C" void metal_cpu_switch_stack(void** save, void* load);
void* fresh_stack(uint8_t* top, void (*entry)());

// checks.cpp
void* slot_address(int slot);
void map_slot(int slot, uint64_t bytes);
void track(int slot, const char* name, uint64_t bytes, uint64_t origin, uint32_t granule, bool initialised);
void forget_threadgroup_memory();
bool find_unwritten(int slot, uint64_t* count, uint64_t* first);
void release_arena();

inline uint8_t* stack_top(int index) {
  return (uint8_t*)slot_address(stack_slot) + (index + 1) * stack_bytes;
}

inline uint32_t ceil_div(uint32_t a, uint32_t b) {
  return (a + b - 1) / b;
}
