// The state of one launch, shared by the scheduler (runtime.cpp) and the memory checks
// (memory.cpp). One launch at a time: the Python side holds a lock.
#pragma once
#include <cstdarg>
#include <cstdio>

#include "runtime.hpp"

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

extern Region regions[kSlots];
extern Clocks clocks;
extern char* arena;

void advance_group(int memory);
void advance_simd(uint32_t simd, int memory);
void start_group_memory();
void describe_address(char* text, size_t size, const void* address);

[[noreturn]] void trap_at(const void* pc, uint32_t thread, const char* kind, const char* text);
uint32_t current_index();

}  // namespace emu
