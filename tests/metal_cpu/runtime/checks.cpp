// Watches memory. The kernel is compiled with clang's thread-sanitizer instrumentation, which calls __tsan_readN and
// __tsan_writeN before each access; this file answers those calls. Each element of a buffer has a shadow cell that
// remembers who wrote and read it and how many barriers had been passed by then.
#include "runtime.h"

#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

namespace {

struct Access {  // the last thread that did something, and which others did it since a barrier last ordered them
  uint32_t thread, barriers, simd_barriers;
  uint8_t simd_mates, group_mates, other_groups;
};

struct Cell {
  Access write, read, atomic;
  bool initialised;
};

struct Region {
  const char* name;
  uint64_t bytes, origin;
  uint32_t granule;
  bool initialised;  // as a whole, before the launch
  Cell* cells;
  uint64_t cell_bytes;
  uint64_t mapped;
};

Region regions[slot_count];
int declared_threadgroup_slots;
uint64_t threadgroup_bytes;

enum Kind { reading, writing, atomic_reading, atomic_writing, atomic_modifying };
const char* const verbs[] = {"read", "written", "read atomically", "written atomically", "changed atomically"};

uint32_t group_of(uint32_t thread) {
  return (thread - 1) / (launch->threadgroup[0] * launch->threadgroup[1] * launch->threadgroup[2]);
}

uint32_t simdgroup_of(uint32_t thread) {
  return (thread - 1) % (launch->threadgroup[0] * launch->threadgroup[1] * launch->threadgroup[2]) / simd_width;
}

struct Now {
  uint32_t thread, group, simdgroup, barriers, simd_barriers;
};

// Did another thread do `a` without a barrier between it and now?
bool unordered(const Access& a, const Now& now) {
  if (!a.thread) return false;
  if (a.other_groups || group_of(a.thread) != now.group) return true;
  if (a.barriers != now.barriers) return false;
  if (a.group_mates || simdgroup_of(a.thread) != now.simdgroup) return true;
  if (a.simd_barriers != now.simd_barriers) return false;
  return a.simd_mates || a.thread != now.thread;
}

void join(Access& a, const Now& now) {
  if (a.thread) {
    if (group_of(a.thread) != now.group) {
      a.other_groups = 1;
      a.group_mates = a.simd_mates = 0;
    } else if (a.barriers != now.barriers) {
      a.group_mates = a.simd_mates = 0;
    } else if (simdgroup_of(a.thread) != now.simdgroup) {
      a.group_mates = 1;
    } else if (a.simd_barriers != now.simd_barriers) {
      a.simd_mates = 0;
    } else if (a.thread != now.thread) {
      a.simd_mates = 1;
    }
  }
  a.thread = now.thread;
  a.barriers = now.barriers;
  a.simd_barriers = now.simd_barriers;
}

[[noreturn]] void report_race(const Region& r, uint64_t element, Kind kind, Kind earlier, uint32_t other) {
  char who[160];
  describe_thread(who, sizeof who, other);
  fault(true, "race on element %lld of '%s': %s%s%s with no barrier in between, then %s", (long long)(element - r.origin / r.granule), r.name,
        verbs[earlier], other == current.thread ? " by several threads, " : " by ", who, verbs[kind]);
}

void check(uint64_t address, uint64_t bytes, Kind kind) {
  uint64_t offset = address - (uint64_t)launch->arena;
  if (offset >= uint64_t(stack_slot) << launch->slot_bits) return;  // thread-private memory
  int slot = offset >> launch->slot_bits;
  Region& r = regions[slot];
  int64_t at = (int64_t)(address - (uint64_t)slot_address(slot));
  if (!r.name) fault(true, "access to memory of no buffer");
  if (at < 0 || at + bytes > r.bytes) {
    int64_t here = at - (int64_t)r.origin, element = here >= 0 ? here / r.granule : -((-here + r.granule - 1) / r.granule);
    fault(true, "out of bounds: element %lld of '%s' is %s (%llu bytes), but it has %llu elements", (long long)element, r.name,
          verbs[kind], (unsigned long long)bytes, (unsigned long long)(r.bytes / r.granule));
  }
  int space = slot >= first_threadgroup_slot;
  Now now = {current.thread, current.group, current.simdgroup, current.barriers[space], current.simd_barriers[current.simdgroup][space]};
  for (uint64_t e = at / r.granule; e <= (at + bytes - 1) / r.granule; ++e) {
    Cell& c = r.cells[e];
    if (kind != writing && kind != atomic_writing && !r.initialised && !c.initialised) {
      fault(true, "element %lld of '%s' is %s before anything was written to it", (long long)(e - r.origin / r.granule), r.name, verbs[kind]);
    }
    if (unordered(c.write, now)) report_race(r, e, kind, writing, c.write.thread);
    if ((kind == writing || kind == atomic_writing || kind == atomic_modifying) && unordered(c.read, now)) report_race(r, e, kind, reading, c.read.thread);
    if ((kind == reading || kind == writing) && unordered(c.atomic, now)) report_race(r, e, kind, atomic_modifying, c.atomic.thread);
    if (kind == reading) {
      join(c.read, now);
    } else if (kind == writing) {
      c.write = Access{now.thread, now.barriers, now.simd_barriers, 0, 0, 0};
      c.read = c.atomic = Access{};
      c.initialised = true;
    } else {
      join(c.atomic, now);
      c.initialised = true;
    }
  }
}

uint64_t pages(uint64_t bytes) {
  return (bytes + 16384) & ~16383ull;
}

}  // namespace

void* slot_address(int slot) {
  uint64_t middle = slot == stack_slot ? 0 : 1ull << (launch->slot_bits - 1);
  return launch->arena + (uint64_t(slot) << launch->slot_bits) + middle;
}

void map_slot(int slot, uint64_t bytes) {
  Region& r = regions[slot];
  r.mapped = pages(bytes);
  mprotect(slot_address(slot), r.mapped, PROT_READ | PROT_WRITE);
}

void track(int slot, const char* name, uint64_t bytes, uint64_t origin, uint32_t granule, bool initialised) {
  Region& r = regions[slot];
  r.name = name;
  r.bytes = bytes;
  r.origin = origin;
  r.granule = granule;
  r.initialised = initialised;
  r.cell_bytes = pages((bytes / granule + 1) * sizeof(Cell));
  r.cells = (Cell*)mmap(0, r.cell_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON, -1, 0);
}

void forget_threadgroup_memory() {
  for (int slot = first_threadgroup_slot; slot < first_threadgroup_slot + declared_threadgroup_slots; ++slot) {
    Region& r = regions[slot];
    if (!r.bytes) continue;
    memset(slot_address(slot), 0xFF, r.bytes);  // NaN: what the last group left must not look like a value
    if (launch->checked) memset(r.cells, 0, (r.bytes / r.granule + 1) * sizeof(Cell));
  }
}

bool find_unwritten(int slot, uint64_t* count, uint64_t* first) {
  const Region& r = regions[slot];
  *count = 0;
  for (uint64_t e = 0; !r.initialised && e < r.bytes / r.granule; ++e) {
    if (r.cells[e].initialised) continue;
    if (!(*count)++) *first = e;
  }
  return *count;
}

// Drop what the launch touched, so that the next one starts from unmapped addresses.
void release_arena() {
  for (int slot = 0; slot < slot_count; ++slot) {
    Region& r = regions[slot];
    if (r.cells) munmap(r.cells, r.cell_bytes);
    if (r.mapped && slot != stack_slot) mmap(slot_address(slot), r.mapped, PROT_NONE, MAP_PRIVATE | MAP_ANON | MAP_FIXED | MAP_NORESERVE, -1, 0);
    r = Region{};
  }
  declared_threadgroup_slots = 0;
  threadgroup_bytes = 0;
}

extern "C" {

EXPORTED void* metal_cpu_reserve(int slot_bits) {
  void* arena = mmap(0, uint64_t(slot_count) << slot_bits, PROT_NONE, MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
  return arena == MAP_FAILED ? 0 : arena;
}

void* metal_cpu_threadgroup_memory(int declaration, unsigned long bytes, unsigned granule, const char* name) {
  int slot = first_threadgroup_slot + declaration;
  if (slot >= stack_slot) fault(true, "more than %d threadgroup arrays", stack_slot - first_threadgroup_slot);
  Region& r = regions[slot];
  if (!r.bytes) {
    threadgroup_bytes += bytes;
    if (threadgroup_bytes > threadgroup_memory_limit) {
      fault(true, "threadgroup memory: %llu bytes with '%s', and Apple GPUs have %llu", (unsigned long long)threadgroup_bytes, name, (unsigned long long)threadgroup_memory_limit);
    }
    if (declaration >= declared_threadgroup_slots) declared_threadgroup_slots = declaration + 1;
    map_slot(slot, bytes);
    memset(slot_address(slot), 0xFF, bytes);
    if (launch->checked) track(slot, name, bytes, 0, granule, false);
    r.bytes = bytes;
  }
  return slot_address(slot);
}

void metal_cpu_atomic(const void* address, unsigned bytes, int kind) {
  if (launch->checked) check((uint64_t)address, bytes, Kind(atomic_reading + kind));
}

void __tsan_init() {}
#define ACCESS(N)                                                                         \
  void __tsan_read##N(void* p) { check((uint64_t)p, N, reading); }                        \
  void __tsan_write##N(void* p) { check((uint64_t)p, N, writing); }                       \
  void __tsan_unaligned_read##N(void* p) { check((uint64_t)p, N, reading); }              \
  void __tsan_unaligned_write##N(void* p) { check((uint64_t)p, N, writing); }
ACCESS(1)
ACCESS(2)
ACCESS(4)
ACCESS(8)
ACCESS(16)
void __tsan_read_range(void* p, unsigned long n) { check((uint64_t)p, n, reading); }
void __tsan_write_range(void* p, unsigned long n) { check((uint64_t)p, n, writing); }
void* __tsan_memset(void* to, int byte, unsigned long n) {
  if (n) check((uint64_t)to, n, writing);
  return memset(to, byte, n);
}
void* __tsan_memcpy(void* to, const void* from, unsigned long n) {
  if (n) check((uint64_t)from, n, reading), check((uint64_t)to, n, writing);
  return memcpy(to, from, n);
}
void* __tsan_memmove(void* to, const void* from, unsigned long n) {
  if (n) check((uint64_t)from, n, reading), check((uint64_t)to, n, writing);
  return memmove(to, from, n);
}

// clang's undefined-behaviour checks: the first field of their data is always the place in the source.
struct Place {
  const char* file;
  uint32_t line, column;
};
#define UNDEFINED(HANDLER, WHAT)                                                                 \
  void __ubsan_handle_##HANDLER##_abort(const Place* at, uint64_t, uint64_t) {                   \
    fault(true, "%s:%u:%u: " WHAT, at->file, at->line, at->column);                              \
  }
UNDEFINED(out_of_bounds, "index outside the array")
UNDEFINED(divrem_overflow, "integer division by zero")
UNDEFINED(float_cast_overflow, "conversion of a float that the integer type cannot hold")
UNDEFINED(shift_out_of_bounds, "shift by as many bits as the type has, or more")
UNDEFINED(type_mismatch_v1, "misaligned access")

// 16-bit conversions that some CPUs do in a routine of the compiler's own library, which is not linked here.
#if defined(__x86_64__)
__attribute__((weak)) __bf16 __truncsfbf2(float x) {
  uint32_t bits = __builtin_bit_cast(uint32_t, x);
  uint16_t top = (bits & 0x7FFFFFFF) > 0x7F800000 ? uint16_t(bits >> 16 | 0x40) : uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
  return __builtin_bit_cast(__bf16, top);
}
#endif

}  // extern "C"
