// What a kernel and the runtime know of each other: the ABI between the two objects.
#pragma once
#include <cstddef>
#include <cstdint>

namespace emu {

// One thread of a threadgroup, as the kernel may see it. Positions are (x, y, z).
struct Thread {
  uint32_t in_grid[3];
  uint32_t in_group[3];
  uint32_t index;  // in the threadgroup
  uint32_t lane;   // in the simdgroup
  uint32_t simd;   // the simdgroup in the threadgroup
};

// What is equal for all threads of a threadgroup.
struct Group {
  uint32_t grid[3];      // threads per grid
  uint32_t size[3];      // threads of this threadgroup (less than asked at the grid's edge)
  uint32_t asked[3];     // threads per threadgroup, as dispatched
  uint32_t position[3];  // of this threadgroup in the grid
  uint32_t count[3];     // threadgroups per grid
};

// An operation that all lanes of a simdgroup carry out together. `combine` is called once, when
// every lane has arrived: payloads[lane] is that lane's own argument block, null where the
// simdgroup has no such lane.
struct SimdOp {
  const char* name;
  void (*combine)(void* const* payloads);
};

enum Counter { kMma, kSimdOps, kSimdBarriers, kBarriers, kCounters };
enum Memory { kNone = 0, kDevice = 1, kThreadgroup = 2 };

}  // namespace emu

extern "C" {
extern emu::Thread* emu_self;
extern emu::Group emu_group;
extern uint64_t emu_counters[emu::kCounters];

void emu_simd(const emu::SimdOp* op, int line, void* payload);
void emu_simd_barrier(int memory, int line);
void emu_barrier(int memory, int line);
void* emu_threadgroup_variable(int index, const char* name, size_t bytes);
// Accesses that one lane of a matrix operation makes on behalf of its simdgroup.
void emu_touch(uint32_t lane, const void* address, size_t bytes, int is_write);
[[noreturn]] void emu_trap(const char* kind, const char* format, ...)
    __attribute__((format(printf, 2, 3)));
}
