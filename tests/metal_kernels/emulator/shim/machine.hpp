// The state of one launch, shared by the scheduler (runtime.cpp) and the memory checks
// (memory.cpp). One launch at a time: the Python side holds a lock.
#pragma once
#include <setjmp.h>

#include <cstdarg>
#include <cstdio>

#include "runtime.hpp"

// As in machine.py.
struct emu_launch {
  void (*entry)(void* const* buffers);
  void* const* buffers;
  uint32_t grid[3], threads[3];
  int32_t schedule;  // 0 forward, 1 reverse, 2 random
  uint64_t seed;
  char kind[48], text[1024], library[512];
  uint64_t offset;  // of the trapping instruction in that library
  uint64_t counters[emu::kCounters];
};

namespace emu {

constexpr uint32_t kLanes = 32;
constexpr uint32_t kThreads = 1024;
constexpr uint32_t kSimds = kThreads / kLanes;

// Every buffer and every threadgroup variable has 4 GB of address space to itself, so that any
// 32-bit overrun meets unmapped pages and can be named.
constexpr size_t kSlotBytes = size_t(1) << 32;
constexpr int kBuffers = 32;
constexpr int kSlots = 64;

// The last accesses to one byte. Times are readings of Clocks::now; 0 is never.
struct Cell {
  uint32_t written, read;
  uint16_t writer, reader;
};

struct Region {
  char name[64];
  char* start;
  size_t bytes;
  bool writable;
  bool threadgroup;
  Cell* cells;
  uint64_t bytes_read, bytes_written;
};

// A barrier advances `now`; what happened before it is ordered before what follows.
struct Clocks {
  uint32_t now, group_start;
  uint32_t group[3];          // the last threadgroup barrier over this kind of memory
  uint32_t simd[kSimds][3];   // the last simdgroup barrier
};

constexpr size_t kStack = 256 << 10, kGuard = 16 << 10;  // of a fiber

extern emu_launch* launch;
extern char* stacks;
extern sigjmp_buf escape;  // out of the launch, with a trap
extern Region regions[kSlots];
extern Clocks clocks;
extern char* arena;

void advance_group(int memory);
void advance_simd(uint32_t simd, int memory);
void start_group_memory();
void describe_address(char* text, size_t size, const void* address);

[[noreturn]] void trap_at(const void* pc, uint32_t thread, const char* kind, const char* text);
void watch();  // signals, until unwatch
void unwatch();

}  // namespace emu
