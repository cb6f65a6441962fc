// The scheduler: one fiber per thread of a threadgroup, which runs until it must wait for others.
#include <string.h>
#include <sys/mman.h>

#include "fibers.hpp"
#include "machine.hpp"

extern "C" {
emu::Thread* emu_self;
emu::Group emu_group;
uint64_t emu_counters[emu::kCounters];
}

namespace emu {

emu_launch* launch;
char* stacks;

namespace {

enum State : uint8_t { kReady, kAtSimd, kAtBarrier, kReturned };

struct Fiber {
  Thread thread;  // first, so that emu_self is the fiber
  void* sp;
  const SimdOp* op;
  void* payload;
  int line;
  State state;
};

struct Simd {
  uint32_t all, ready, arrived;
};

Fiber fibers[kThreads];
Simd simds[kSimds];
uint32_t threads_here, simds_here, ready_simds, at_barrier, returned;
void* main_sp;
uint64_t random_state;

Fiber& self() { return *reinterpret_cast<Fiber*>(emu_self); }

uint32_t next_random(uint32_t below) {  // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return uint32_t((random_state * 2685821657736338717ull) >> 33) % below;
}

uint32_t random_bit(uint32_t mask) {
  for (uint32_t skip = next_random(__builtin_popcount(mask)); skip; --skip) mask &= mask - 1;
  return __builtin_ctz(mask);
}

uint32_t first_bit(uint32_t mask) {
  switch (launch->schedule) {
    case 0: return __builtin_ctz(mask);
    case 1: return 31 - __builtin_clz(mask);
    default: return random_bit(mask);
  }
}

// A simdgroup runs as far as it can before the next one; the random schedules leave it earlier.
Fiber* pick() {
  if (!ready_simds) return nullptr;
  uint32_t simd = emu_self->simd;
  bool leave = launch->schedule == 2 && next_random(16) == 0;
  if (leave || !simds[simd].ready) simd = first_bit(ready_simds);
  return &fibers[simd * kLanes + first_bit(simds[simd].ready)];
}

void run(Fiber* next) {
  if (&next->thread == emu_self) return;
  Fiber* old = &self();
  emu_self = &next->thread;
  emu_switch(&old->sp, next->sp);
}

int describe(char* text, size_t size, const Fiber& fiber) {
  const char* where[] = {"runs", fiber.op ? fiber.op->name : "simdgroup_barrier",
                         "threadgroup_barrier", "has returned"};
  bool waits = fiber.state == kAtSimd || fiber.state == kAtBarrier;
  int n = snprintf(text, size, "thread %u %s%s", fiber.thread.index,
                   waits ? "waits at " : "", where[fiber.state]);
  return waits ? n + snprintf(text + n, size - n, " (line %d)", fiber.line) : n;
}

[[noreturn]] void trap_divergence(const char* kind, const Fiber& one, const Fiber& other) {
  char text[400];
  int n = describe(text, sizeof text, one);
  n += snprintf(text + n, sizeof text - n, " while ");
  describe(text + n, sizeof text - n, other);
  trap_at(nullptr, one.thread.index, kind, text);
}

bool together(const Fiber& a, const Fiber& b) {
  return a.state == b.state && a.op == b.op && a.line == b.line;
}

void require_together(const char* kind, uint32_t first, uint32_t count) {
  for (uint32_t i = first + 1; i < first + count; ++i)
    if (!together(fibers[first], fibers[i])) trap_divergence(kind, fibers[first], fibers[i]);
}

uint32_t lanes_of(uint32_t simd) { return __builtin_popcount(simds[simd].all); }

[[noreturn]] void trap_stuck() {
  for (uint32_t s = 0; s < simds_here; ++s)
    if (simds[s].arrived) require_together("divergent simd operation", s * kLanes, lanes_of(s));
  require_together("divergent barrier", 0, threads_here);
  emu_trap("deadlock", "no thread can run");
}

void run_another() {
  Fiber* next = pick();
  if (!next) trap_stuck();
  run(next);
}

void not_ready(State state) {
  Simd& simd = simds[emu_self->simd];
  self().state = state;
  simd.ready &= ~(1u << emu_self->lane);
  if (!simd.ready) ready_simds &= ~(1u << emu_self->simd);
}

void release(uint32_t s) {
  simds[s].ready = simds[s].all;
  simds[s].arrived = 0;
  ready_simds |= 1u << s;
  for (uint32_t i = 0; i < lanes_of(s); ++i) fibers[s * kLanes + i].state = kReady;
}

// True for the lane that arrives last; the others come back when that one has released them.
bool arrive_at_simd(const SimdOp* op, int line, void* payload) {
  Fiber& me = self();
  uint32_t s = emu_self->simd;
  me.op = op, me.line = line, me.payload = payload;
  not_ready(kAtSimd);
  if (++simds[s].arrived < lanes_of(s)) return run_another(), false;
  require_together("divergent simd operation", s * kLanes, lanes_of(s));
  return true;
}

void fiber_main() {
  launch->entry(launch->buffers);
  not_ready(kReturned);
  self().op = nullptr;
  if (++returned == threads_here) emu_switch(&self().sp, main_sp);
  run_another();
  __builtin_trap();
}

void prepare(Fiber& fiber, uint32_t index) {
  const uint32_t* size = emu_group.size;
  uint32_t place[3] = {index % size[0], index / size[0] % size[1], index / size[0] / size[1]};
  for (int i = 0; i < 3; ++i) {
    fiber.thread.in_group[i] = place[i];
    fiber.thread.in_grid[i] = emu_group.position[i] * emu_group.asked[i] + place[i];
  }
  fiber.thread.index = index;
  fiber.thread.lane = index % kLanes;
  fiber.thread.simd = index / kLanes;
  fiber.state = kReady;
  auto top = reinterpret_cast<uintptr_t>(stacks + (index + 1) * (kStack + kGuard)) & ~uintptr_t(15);
  void** frame = reinterpret_cast<void**>(top) - kFrameWords;
  memset(frame, 0, kFrameWords * sizeof(void*));
  frame[kReturnWord] = reinterpret_cast<void*>(&fiber_main);
  fiber.sp = frame;
}

void run_group() {
  start_group_memory();
  threads_here = emu_group.size[0] * emu_group.size[1] * emu_group.size[2];
  simds_here = (threads_here + kLanes - 1) / kLanes;
  at_barrier = returned = ready_simds = 0;
  for (uint32_t i = 0; i < threads_here; ++i) prepare(fibers[i], i);
  for (uint32_t s = 0; s < simds_here; ++s) {
    uint32_t lanes = threads_here - s * kLanes;
    simds[s].all = lanes >= kLanes ? ~0u : (1u << lanes) - 1;
    release(s);
  }
  uint32_t simd = first_bit(ready_simds);
  emu_self = &fibers[simd * kLanes + first_bit(simds[simd].ready)].thread;
  emu_switch(&main_sp, self().sp);
}

void run_grid() {
  uint32_t* count = emu_group.count;
  uint64_t total = 1;
  for (int i = 0; i < 3; ++i) {
    emu_group.grid[i] = launch->grid[i];
    emu_group.asked[i] = launch->threads[i];
    count[i] = (launch->grid[i] + launch->threads[i] - 1) / launch->threads[i];
    total *= count[i];
  }
  // Random schedules visit the threadgroups from a random start with a stride that meets them all.
  uint64_t start = 0, stride = 1;
  if (launch->schedule == 2 && total > 1) {
    start = next_random(uint32_t(total));
    stride = 1 + next_random(uint32_t(total) - 1);
    auto gcd = [](uint64_t a, uint64_t b) { while (b) { auto r = a % b; a = b; b = r; } return a; };
    while (gcd(stride, total) != 1) ++stride;
  }
  for (uint64_t k = 0; k < total; ++k) {
    uint64_t at = (start + k * stride) % total;
    if (launch->schedule == 1) at = total - 1 - k;
    emu_group.position[0] = uint32_t(at % count[0]);
    emu_group.position[1] = uint32_t(at / count[0] % count[1]);
    emu_group.position[2] = uint32_t(at / count[0] / count[1]);
    for (int i = 0; i < 3; ++i) {
      uint32_t left = launch->grid[i] - emu_group.position[i] * launch->threads[i];
      emu_group.size[i] = left < launch->threads[i] ? left : launch->threads[i];
    }
    run_group();
  }
}

void make_stacks() {
  if (stacks) return;
  size_t each = kStack + kGuard;
  stacks = static_cast<char*>(mmap(nullptr, kThreads * each, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0));
  for (uint32_t i = 0; i < kThreads; ++i) mprotect(stacks + i * each, kGuard, PROT_NONE);
}

}  // namespace

}  // namespace emu

extern "C" {

void emu_simd(const emu::SimdOp* op, int line, void* payload) {
  using namespace emu;
  if (!arrive_at_simd(op, line, payload)) return;
  uint32_t s = emu_self->simd;
  void* payloads[kLanes] = {};
  for (uint32_t i = 0; i < lanes_of(s); ++i) payloads[i] = fibers[s * kLanes + i].payload;
  op->combine(payloads);
  ++emu_counters[kSimdOps];
  release(s);
  run_another();
}

void emu_simd_barrier(int memory, int line) {
  using namespace emu;
  if (!arrive_at_simd(nullptr, line, nullptr)) return;
  advance_simd(emu_self->simd, memory);
  ++emu_counters[kSimdBarriers];
  release(emu_self->simd);
  run_another();
}

void emu_barrier(int memory, int line) {
  using namespace emu;
  Fiber& me = self();
  me.op = nullptr, me.line = line;
  not_ready(kAtBarrier);
  if (++at_barrier == threads_here) {
    require_together("divergent barrier", 0, threads_here);
    advance_group(memory);
    ++emu_counters[kBarriers];
    at_barrier = 0;
    for (uint32_t s = 0; s < simds_here; ++s) release(s);
  }
  run_another();
}

// 0: ran to its end. 1: trapped, and kind and text say why.
int emu_run(emu_launch* launch) {
  using namespace emu;
  emu::launch = launch;
  make_stacks();
  random_state = launch->seed * 0x9E3779B97F4A7C15ull + 1;
  memset(emu_counters, 0, sizeof emu_counters);
  watch();
  int trapped = sigsetjmp(escape, 1);
  if (!trapped) run_grid();
  unwatch();
  memcpy(launch->counters, emu_counters, sizeof emu_counters);
  return trapped;
}
}
