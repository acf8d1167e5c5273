// Runs a grid on one CPU thread. Each thread of a threadgroup is a fiber with a stack of its own, so a barrier or a
// SIMD operation simply parks it; a fiber that never waits hands its stack to the next one.
#include "runtime.h"

#include <string.h>

Current current;

namespace {

enum State { fresh, runnable, at_simd_operation, at_simd_barrier, at_barrier, finished };

struct Thread {
  State state;
  void* stack;  // saved stack pointer
  int stack_index;
  int line;
  unsigned bytes, flags;
  uint32_t steps;
};

struct Lanes {  // mirrors metal_cpu_lanes of the shim
  uint8_t values[simd_width][32];
  uint32_t active, self;
};

// A thread that passes this many basic blocks is taken to loop for ever (checked mode; about a second).
constexpr uint32_t step_limit = 1u << 28;

Thread threads[max_threads];
uint32_t running;  // index in the group
uint8_t posted[max_threads][32];
Lanes published[max_threads / simd_width];
ThreadInfo info[max_threads];
void* scheduler_stack;
int free_stacks[max_threads], free_stack_count;
uint32_t group_threads, simdgroups;
uint32_t order[max_threads];  // of the threads of a group; a permutation within and among SIMD-groups

void yield_to_scheduler() {
  metal_cpu_switch_stack(&threads[running].stack, scheduler_stack);
}

void fiber_main() {
  metal_cpu_kernel(arguments, &info[running]);
  threads[running].state = finished;
  yield_to_scheduler();
  __builtin_trap();
}

void resume(uint32_t index) {
  Thread& t = threads[index];
  if (t.state == fresh) {
    t.stack_index = free_stacks[--free_stack_count];
    t.stack = fresh_stack(stack_top(t.stack_index), fiber_main);
    t.steps = 0;
  }
  t.state = runnable;
  running = index;
  current.thread = 1 + current.group * (launch->threadgroup[0] * launch->threadgroup[1] * launch->threadgroup[2]) + index;
  current.simdgroup = index / simd_width;
  metal_cpu_switch_stack(&scheduler_stack, t.stack);
  if (t.state == finished) free_stacks[free_stack_count++] = t.stack_index;
}

void park(State state, int line) {
  threads[running].state = state;
  threads[running].line = line;
  yield_to_scheduler();
}

// All lanes of a SIMD-group wait or are done: complete what they wait for. False: nothing left but threadgroup barriers.
bool release_simdgroup(uint32_t first, uint32_t last) {
  int waiting[finished + 1] = {}, example[finished + 1] = {};
  for (uint32_t i = first; i < last; ++i) {
    State s = threads[i].state;
    if (waiting[s]++ && (s == at_simd_operation || s == at_simd_barrier) && threads[i].line != threads[example[s]].line) {
      fault(false, "divergence inside a SIMD-group: thread %u waits at line %d and thread %u at line %d", example[s],
            threads[example[s]].line, i, threads[i].line);
    }
    example[s] = i;
  }
  if (waiting[at_simd_operation] && waiting[at_simd_barrier]) {
    fault(false, "divergence inside a SIMD-group: thread %u waits at the SIMD operation of line %d and thread %u at the simdgroup_barrier of line %d",
          example[at_simd_operation], threads[example[at_simd_operation]].line, example[at_simd_barrier], threads[example[at_simd_barrier]].line);
  }
  if (waiting[at_simd_operation]) {  // lanes that returned, or wait at a barrier further on, do not take part
    Lanes& lanes = published[first / simd_width];
    lanes.active = 0;
    for (uint32_t i = first; i < last; ++i) {
      if (threads[i].state != at_simd_operation) continue;
      memcpy(lanes.values[i - first], posted[i], threads[i].bytes);
      lanes.active |= 1u << (i - first);
      threads[i].state = runnable;
    }
    return true;
  }
  if (waiting[at_simd_barrier]) {
    if (waiting[at_barrier] || waiting[finished]) {
      State other = waiting[at_barrier] ? at_barrier : finished;
      fault(false, "simdgroup_barrier divergence: thread %u waits at line %d, but thread %u of the same SIMD-group %s", example[at_simd_barrier],
            threads[example[at_simd_barrier]].line, example[other], other == finished ? "has returned" : "waits at a threadgroup_barrier");
    }
    unsigned flags = threads[first].flags;
    for (int space = 0; space < 2; ++space) current.simd_barriers[first / simd_width][space] += flags >> space & 1;
    for (uint32_t i = first; i < last; ++i) threads[i].state = runnable;
    return true;
  }
  return false;
}

void run_simdgroup(uint32_t first, uint32_t last) {
  do {
    for (uint32_t k = first; k < last; ++k) {
      uint32_t i = order[k];
      if (threads[i].state <= runnable) resume(i);
    }
  } while (release_simdgroup(first, last));
}

// Every thread waits at a threadgroup barrier or has returned. False: the group is done.
bool release_group() {
  uint32_t waiting = 0, one = 0;
  for (uint32_t i = 0; i < group_threads; ++i) {
    if (threads[i].state != at_barrier) continue;
    if (waiting++ && threads[i].line != threads[one].line) {
      fault(false, "barrier divergence: thread %u waits at line %d and thread %u at line %d", one, threads[one].line, i, threads[i].line);
    }
    one = i;
  }
  if (!waiting) return false;
  for (uint32_t i = 0; i < group_threads; ++i) {
    if (threads[i].state == finished) {
      fault(false, "barrier divergence: thread %u waits at line %d, but thread %u of the same threadgroup has returned (%u of %u wait)", one,
            threads[one].line, i, waiting, group_threads);
    }
  }
  for (int space = 0; space < 2; ++space) current.barriers[space] += threads[0].flags >> space & 1;
  for (uint32_t i = 0; i < group_threads; ++i) threads[i].state = runnable;
  return true;
}

uint32_t random_below(uint32_t n) {
  static uint64_t state;
  if (n == 0) return uint32_t(state = launch->seed);
  state = state * 6364136223846793005ull + 1442695040888963407ull;
  return uint32_t((state >> 33) % n);
}

void shuffle(uint32_t* items, uint32_t n) {
  for (uint32_t i = n; i > 1; --i) {
    uint32_t j = random_below(i), held = items[i - 1];
    items[i - 1] = items[j];
    items[j] = held;
  }
}

void describe_group(const uint32_t group[3], const uint32_t groups[3]) {
  const uint32_t *grid = launch->grid, *full = launch->threadgroup;
  uint32_t size[3];
  for (int d = 0; d < 3; ++d) {
    uint32_t left = grid[d] - group[d] * full[d];
    size[d] = left < full[d] ? left : full[d];
  }
  group_threads = size[0] * size[1] * size[2];
  simdgroups = ceil_div(group_threads, simd_width);
  uint32_t full_threads = full[0] * full[1] * full[2];
  for (uint32_t i = 0; i < group_threads; ++i) {
    ThreadInfo& t = info[i];
    uint32_t local[3] = {i % size[0], i / size[0] % size[1], i / (size[0] * size[1])};
    for (int d = 0; d < 3; ++d) {
      t.thread_position_in_threadgroup[d] = local[d];
      t.thread_position_in_grid[d] = group[d] * full[d] + local[d];
      t.threadgroup_position_in_grid[d] = group[d];
      t.threads_per_threadgroup[d] = size[d];
      t.dispatch_threads_per_threadgroup[d] = full[d];
      t.threadgroups_per_grid[d] = groups[d];
      t.threads_per_grid[d] = t.grid_size[d] = grid[d];
      t.grid_origin[d] = 0;
    }
    t.thread_index_in_threadgroup = i;
    t.thread_index_in_simdgroup = i % simd_width;
    t.simdgroup_index_in_threadgroup = i / simd_width;
    t.threads_per_simdgroup = t.thread_execution_width = simd_width;
    t.simdgroups_per_threadgroup = simdgroups;
    t.dispatch_simdgroups_per_threadgroup = ceil_div(full_threads, simd_width);
    t.thread_index_in_quadgroup = i % 4;
    t.quadgroup_index_in_threadgroup = i / 4;
    t.quadgroups_per_threadgroup = ceil_div(group_threads, 4);
    t.dispatch_quadgroups_per_threadgroup = ceil_div(full_threads, 4);
  }
}

void run_group() {
  uint32_t simd_order[max_threads / simd_width];
  for (uint32_t i = 0; i < group_threads; ++i) {
    threads[i].state = fresh;
    order[i] = i;
  }
  for (uint32_t s = 0; s < simdgroups; ++s) simd_order[s] = s;
  if (launch->seed) shuffle(simd_order, simdgroups);
  memset(current.barriers, 0, sizeof(current.barriers));
  memset(current.simd_barriers, 0, sizeof(current.simd_barriers));
  do {
    for (uint32_t k = 0; k < simdgroups; ++k) {
      uint32_t first = simd_order[k] * simd_width, last = first + simd_width;
      if (last > group_threads) last = group_threads;
      if (launch->seed) shuffle(order + first, last - first);
      run_simdgroup(first, last);
    }
  } while (release_group());
}

}  // namespace

void run_grid() {
  free_stack_count = 0;
  uint32_t needed = launch->threadgroup[0] * launch->threadgroup[1] * launch->threadgroup[2];
  for (uint32_t i = 0; i < needed; ++i) free_stacks[free_stack_count++] = needed - 1 - i;

  uint32_t groups[3], count = 1;
  for (int d = 0; d < 3; ++d) count *= groups[d] = ceil_div(launch->grid[d], launch->threadgroup[d]);
  // A random order of the groups without a table: step through them by a stride that has no factor in common with their number.
  uint32_t stride = 1, start = 0;
  if (launch->seed) {
    random_below(0);
    start = random_below(count);
    for (stride = 1 + random_below(count);; ++stride) {
      uint32_t a = stride, b = count;
      while (b) { uint32_t r = a % b; a = b; b = r; }
      if (a == 1) break;
    }
  }
  for (uint32_t k = 0; k < count; ++k) {
    uint32_t g = uint32_t((start + uint64_t(k) * stride) % count);
    uint32_t group[3] = {g % groups[0], g / groups[0] % groups[1], g / (groups[0] * groups[1])};
    current.group = g;
    describe_group(group, groups);
    forget_threadgroup_memory();
    run_group();
  }
}

extern "C" {

const Lanes* metal_cpu_exchange(const void* value, unsigned bytes, int line) {
  uint32_t self = running;
  memcpy(posted[self], value, bytes);
  threads[self].bytes = bytes;
  park(at_simd_operation, line);
  published[self / simd_width].self = self % simd_width;
  return &published[self / simd_width];
}

const Lanes* metal_cpu_exchange_by_all(const void* value, unsigned bytes, int line) {
  const Lanes* lanes = metal_cpu_exchange(value, bytes, line);
  if (lanes->active != ~0u) fault(true, "%d of 32 threads of a SIMD-group reach the matrix function of line %d", __builtin_popcount(lanes->active), line);
  return lanes;
}

void metal_cpu_unequal_lanes(int line) {
  fault(true, "threads of a SIMD-group give the matrix function of line %d different places", line);
}

void __sanitizer_cov_trace_pc() {  // clang calls this in every basic block
  if (++threads[running].steps > step_limit) fault(true, "a loop that does not end");
}

void metal_cpu_barrier(int whole_threadgroup, unsigned flags, int line) {
  threads[running].flags = flags;
  park(whole_threadgroup ? at_barrier : at_simd_barrier, line);
}

}  // extern "C"
