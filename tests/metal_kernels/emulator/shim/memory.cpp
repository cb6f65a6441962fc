// Memory: guarded placement, and checks of every access. Kernels are compiled with the compiler's
// thread-sanitizer pass, which calls __tsan_readN / __tsan_writeN before each load and store that
// may leave the thread's own stack; this file is the runtime behind those calls.
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "machine.hpp"

namespace emu {

Region regions[kSlots];
Clocks clocks;
char* arena;

namespace {

constexpr size_t kPage = 16 << 10;  // of the largest pages in use; a multiple of all others
constexpr uint16_t kManyOfSimd = 0x4000, kMany = 0x8000;

size_t round_up(size_t value, size_t to) { return (value + to - 1) / to * to; }

void reserve_arena() {
  if (arena) return;
  void* got = mmap(nullptr, kSlots * kSlotBytes, PROT_NONE,
                   MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0);
  if (got == MAP_FAILED) abort();
  arena = static_cast<char*>(got);
}

Region* region_of(const void* address) {
  size_t offset = static_cast<const char*>(address) - arena;
  return offset < kSlots * kSlotBytes ? &regions[offset / kSlotBytes] : nullptr;
}

bool before(uint32_t time, uint16_t who, uint32_t thread, int memory) {
  if (time < clocks.group_start) return memory == kThreadgroup;
  if (who == thread || time < clocks.group[memory]) return true;
  uint32_t simd = who & kManyOfSimd ? who & ~kManyOfSimd : who / kLanes;
  return !(who & kMany) && simd == thread / kLanes && time < clocks.simd[simd][memory];
}

const char* name_of(uint16_t who, char (&text)[40]) {
  if (who & kMany) return "several threads";
  if (who & kManyOfSimd) snprintf(text, sizeof text, "simdgroup %u", who & ~kManyOfSimd);
  else snprintf(text, sizeof text, "thread %u", who);
  return text;
}

void race(const Region& region, size_t at, const char* does, const char* did, uint32_t time,
          uint16_t who, uint32_t thread, const void* pc) {
  char text[300], name[40];
  const char* other = time < clocks.group_start ? "another threadgroup" : name_of(who, name);
  snprintf(text, sizeof text, "%s byte %zu of %s, which %s %s, with no barrier between", does, at,
           region.name, other, did);
  trap_at(pc, thread, "data race", text);
}

void note_read(const Region& region, size_t at, uint32_t thread, int memory, const void* pc) {
  Cell& cell = region.cells[at];
  if (cell.written && !before(cell.written, cell.writer, thread, memory))
    race(region, at, "reads", "wrote", cell.written, cell.writer, thread, pc);
  if (region.threadgroup && cell.written < clocks.group_start) {
    char text[200];
    snprintf(text, sizeof text, "reads byte %zu of threadgroup memory %s before any write", at,
             region.name);
    trap_at(pc, thread, "uninitialised read", text);
  }
  uint16_t simd = uint16_t(kManyOfSimd | thread / kLanes);
  bool same_simd = cell.reader == simd || cell.reader / kLanes == thread / kLanes;
  if (!cell.read || before(cell.read, cell.reader, thread, memory)) cell.reader = uint16_t(thread);
  else if (same_simd && cell.read >= clocks.group_start) cell.reader = simd;
  else cell.reader = kMany;
  cell.read = clocks.now;
}

void note_write(const Region& region, size_t at, uint32_t thread, int memory, const void* pc) {
  Cell& cell = region.cells[at];
  if (cell.written && !before(cell.written, cell.writer, thread, memory))
    race(region, at, "writes", "wrote", cell.written, cell.writer, thread, pc);
  if (cell.read && !before(cell.read, cell.reader, thread, memory))
    race(region, at, "writes", "read", cell.read, cell.reader, thread, pc);
  cell.writer = uint16_t(thread);
  cell.written = clocks.now;
}

enum Access { kRead, kWrite, kAtomic };

void check(const void* address, size_t bytes, Access access, uint32_t thread, const void* pc) {
  Region* region = region_of(address);
  if (!region) return;
  size_t at = static_cast<const char*>(address) - region->start;
  if (at >= region->bytes || bytes > region->bytes - at) {
    char text[300];
    describe_address(text, sizeof text, address);
    trap_at(pc, thread, "out of bounds", text);
  }
  if (access != kRead && !region->writable)
    trap_at(pc, thread, "write to an input", region->name);
  (access == kRead ? region->bytes_read : region->bytes_written) += bytes;
  if (!region->writable || access == kAtomic) return;
  int memory = region->threadgroup ? kThreadgroup : kDevice;
  auto note = access == kRead ? note_read : note_write;
  for (size_t i = 0; i < bytes; ++i) note(*region, at + i, thread, memory, pc);
}

void unmap(Region& region) {
  if (!region.start) return;
  char* slot = arena + (&region - regions) * kSlotBytes;
  size_t length = round_up(region.bytes, kPage) + kPage;
  mmap(slot + kSlotBytes / 2 - length, length, PROT_NONE,
       MAP_PRIVATE | MAP_ANON | MAP_NORESERVE | MAP_FIXED, -1, 0);
  if (region.cells) munmap(region.cells, round_up(region.bytes + 1, kPage) * sizeof(Cell));
  region = {};
}

}  // namespace

void describe_address(char* text, size_t size, const void* address) {
  Region* region = region_of(address);
  if (!region || !region->start) {
    snprintf(text, size, "address %p belongs to no buffer", address);
    return;
  }
  auto at = static_cast<const char*>(address) - region->start;
  bool inside = at >= 0 && size_t(at) < region->bytes;
  snprintf(text, size, "%s byte %td of %s %s, which has %zu bytes",
           inside && !region->writable ? "writes" : "touches", at,
           region->threadgroup ? "threadgroup memory" : "buffer", region->name, region->bytes);
}

void advance_group(int memory) {
  ++clocks.now;
  if (memory & kDevice) clocks.group[kDevice] = clocks.now;
  if (memory & kThreadgroup) clocks.group[kThreadgroup] = clocks.now;
}

void advance_simd(uint32_t simd, int memory) {
  ++clocks.now;
  if (memory & kDevice) clocks.simd[simd][kDevice] = clocks.now;
  if (memory & kThreadgroup) clocks.simd[simd][kThreadgroup] = clocks.now;
}

void start_group_memory() {
  clocks.group_start = ++clocks.now;
  for (int i = kBuffers; i < kSlots && regions[i].start; ++i)
    memset(regions[i].start, 0xFF, regions[i].bytes);
}

}  // namespace emu

extern "C" {

void* emu_place(int slot, const char* name, size_t bytes, int writable) {
  using namespace emu;
  reserve_arena();
  Region& region = regions[slot];
  unmap(region);
  snprintf(region.name, sizeof region.name, "%s", name);
  char* end = arena + slot * kSlotBytes + kSlotBytes / 2 - kPage;
  size_t mapped = round_up(bytes, kPage);
  if (mapped)
    mmap(end - mapped, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANON | MAP_FIXED, -1, 0);
  region.start = end - round_up(bytes, 16);
  region.bytes = bytes;
  region.writable = writable;
  region.threadgroup = slot >= kBuffers;
  memset(end - mapped, 0xFF, mapped);
  if (writable)
    region.cells = static_cast<Cell*>(mmap(nullptr, round_up(bytes + 1, kPage) * sizeof(Cell),
                                           PROT_READ | PROT_WRITE,
                                           MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0));
  return region.start;
}

void emu_protect(int slot) {
  using namespace emu;
  Region& region = regions[slot];
  size_t mapped = round_up(region.bytes, kPage);
  char* end = region.start + round_up(region.bytes, 16);
  if (mapped) mprotect(end - mapped, mapped, PROT_READ);
}

void emu_release() {
  for (auto& region : emu::regions) emu::unmap(region);
  emu::clocks = {};
}

void emu_bytes(int slot, uint64_t* read, uint64_t* written) {
  *read = emu::regions[slot].bytes_read;
  *written = emu::regions[slot].bytes_written;
}

size_t emu_threadgroup_bytes() {
  size_t total = 0;
  for (int i = emu::kBuffers; i < emu::kSlots; ++i)
    total += (emu::regions[i].bytes + 15) / 16 * 16;
  return total;
}

void* emu_threadgroup_variable(int index, const char* name, size_t bytes) {
  int slot = emu::kBuffers + index;
  emu::Region& region = emu::regions[slot];
  if (!region.start) return emu_place(slot, name, bytes, 1);
  if (region.bytes != bytes) emu_trap("threadgroup memory", "%s changes its size", name);
  return region.start;
}

void emu_touch(uint32_t lane, const void* address, size_t bytes, int access) {
  uint32_t thread = emu_self->simd * emu::kLanes + lane;
  emu::check(address, bytes, emu::Access(access), thread, __builtin_return_address(0));
}

#define CHECK(address, bytes, access) \
  emu::check(address, bytes, access, emu_self->index, __builtin_return_address(0))
#define ACCESS(bytes)                                                          \
  void __tsan_read##bytes(void* p) { CHECK(p, bytes, emu::kRead); }            \
  void __tsan_write##bytes(void* p) { CHECK(p, bytes, emu::kWrite); }          \
  void __tsan_unaligned_read##bytes(void* p) { CHECK(p, bytes, emu::kRead); }  \
  void __tsan_unaligned_write##bytes(void* p) { CHECK(p, bytes, emu::kWrite); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
#undef ACCESS

void __tsan_init() {}

void* __tsan_memset(void* to, int value, size_t bytes) {
  CHECK(to, bytes, emu::kWrite);
  return memset(to, value, bytes);
}

void* __tsan_memcpy(void* to, const void* from, size_t bytes) {
  CHECK(from, bytes, emu::kRead);
  CHECK(to, bytes, emu::kWrite);
  return memmove(to, from, bytes);
}

void* __tsan_memmove(void* to, const void* from, size_t bytes) {
  return __tsan_memcpy(to, from, bytes);
}

// The undefined-behaviour checks report a place first in their data block.
struct emu_place_in_text {
  const char* file;
  uint32_t line, column;
};
#define UNDEFINED(check, words)                                                            \
  void __ubsan_handle_##check##_abort(const emu_place_in_text* at) {                       \
    char text[200];                                                                        \
    snprintf(text, sizeof text, "%s at line %u, column %u", words, at->line, at->column);  \
    emu::trap_at(nullptr, emu_self->index, "undefined behaviour", text);                   \
  }
UNDEFINED(type_mismatch_v1, "a misaligned or null pointer is used")
UNDEFINED(alignment_assumption, "a misaligned pointer is used")
UNDEFINED(out_of_bounds, "an index is outside its array")
UNDEFINED(add_overflow, "a signed addition overflows")
UNDEFINED(sub_overflow, "a signed subtraction overflows")
UNDEFINED(mul_overflow, "a signed multiplication overflows")
UNDEFINED(negate_overflow, "a negation overflows")
UNDEFINED(divrem_overflow, "a division by zero or an overflowing one")
UNDEFINED(shift_out_of_bounds, "a shift by a negative count or by too many bits")
UNDEFINED(missing_return, "a function ends without its value")
UNDEFINED(builtin_unreachable, "unreachable code is reached")
UNDEFINED(load_invalid_value, "a bool that is neither true nor false is read")
#undef UNDEFINED
}
