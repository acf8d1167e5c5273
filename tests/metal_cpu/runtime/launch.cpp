// One launch from beginning to end, and the way out of a kernel that did something undefined.
#include "runtime.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

Launch* launch;
void* arguments[max_buffers];

namespace {

bool faulted;
// The scheduler has a stack of its own too: a fault is then one switch back to whoever launched, from wherever it arose.
void *scheduler_stack, *launcher_stack;

void scheduler_main() {
  run_grid();
  metal_cpu_switch_stack(&scheduler_stack, launcher_stack);
  __builtin_trap();
}

}  // namespace

int describe_thread(char* out, int room, uint32_t thread) {
  const uint32_t *full = launch->threadgroup, *grid = launch->grid;
  uint32_t full_threads = full[0] * full[1] * full[2], group = (thread - 1) / full_threads, i = (thread - 1) % full_threads, at[3], place[3];
  uint32_t gx = ceil_div(grid[0], full[0]), gy = ceil_div(grid[1], full[1]);
  uint32_t where[3] = {group % gx, group / gx % gy, group / (gx * gy)}, size[3];
  for (int d = 0; d < 3; ++d) {
    uint32_t left = grid[d] - where[d] * full[d];
    size[d] = left < full[d] ? left : full[d];
  }
  at[0] = i % size[0], at[1] = i / size[0] % size[1], at[2] = i / (size[0] * size[1]);
  for (int d = 0; d < 3; ++d) place[d] = where[d] * full[d] + at[d];
  return snprintf(out, room, "thread (%u, %u, %u) of the grid, %u of threadgroup (%u, %u, %u)", place[0], place[1], place[2], i, where[0], where[1], where[2]);
}

void fault(bool by_thread, const char* format, ...) {
  faulted = true;
  va_list values;
  va_start(values, format);
  int room = launch->message_capacity, used = vsnprintf(launch->message, room, format, values);
  va_end(values);
  if (by_thread && used < room) {
    used += snprintf(launch->message + used, room - used, ", by ");
    if (used < room) describe_thread(launch->message + used, room - used, current.thread);
  } else if (used < room) {
    snprintf(launch->message + used, room - used, ", in threadgroup %u", current.group);
  }
  void* abandoned;
  metal_cpu_switch_stack(&abandoned, launcher_stack);
  __builtin_trap();
}

extern "C" {

// 0: ran through; 1: a fault, described in launch->message.
EXPORTED int metal_cpu_launch(Launch* request) {
  launch = request;
  faulted = false;
  request->message[0] = 0;
  uint32_t needed = request->threadgroup[0] * request->threadgroup[1] * request->threadgroup[2];
  map_slot(stack_slot, (needed + 1) * stack_bytes);

  for (uint32_t i = 0; i < request->buffer_count; ++i) {
    Buffer& b = request->buffers[i];
    if (!request->checked) {
      arguments[i] = b.data + b.origin;
      continue;
    }
    map_slot(i, b.bytes);
    memcpy(slot_address(i), b.data, b.bytes);
    track(i, b.name, b.bytes, b.origin, b.granule, b.initialised);
    arguments[i] = (uint8_t*)slot_address(i) + b.origin;
  }

  metal_cpu_switch_stack(&launcher_stack, fresh_stack(stack_top(needed), scheduler_main));

  for (uint32_t i = 0; request->checked && i < request->buffer_count; ++i) {
    Buffer& b = request->buffers[i];
    uint64_t count, first;
    if (b.is_output) memcpy(b.data, slot_address(i), b.bytes);
    if (b.is_output && !faulted && find_unwritten(i, &count, &first)) {
      faulted = true;
      snprintf(request->message, request->message_capacity, "%llu of %llu elements of '%s' were never written (there is no init_value), the first is %llu",
               (unsigned long long)count, (unsigned long long)(b.bytes / b.granule), b.name, (unsigned long long)first);
    }
  }
  release_arena();
  return faulted;
}

}  // extern "C"
