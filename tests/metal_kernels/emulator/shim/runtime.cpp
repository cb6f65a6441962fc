// The scheduler: one fiber per thread of a threadgroup, which runs until it must wait for others.
#include <dlfcn.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "machine.hpp"

// Saves the callee-saved registers on the old stack and takes them up from the new one.
extern "C" void emu_switch(void** save_sp, void* load_sp);
#if defined(__x86_64__)
asm(R"(
.text
.globl emu_switch
emu_switch:
  push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp
  ret
)");
constexpr int kReturnWord = 6, kFrameWords = 8;
#elif defined(__aarch64__)
#if defined(__APPLE__)
#define SYMBOL "_emu_switch"
#else
#define SYMBOL "emu_switch"
#endif
asm(".text\n.globl " SYMBOL "\n" SYMBOL ":\n" R"(
  sub sp, sp, #160
  stp x19, x20, [sp, #0]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x2, sp
  str x2, [x0]
  mov sp, x1
  ldp x19, x20, [sp, #0]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
constexpr int kReturnWord = 11, kFrameWords = 20;
#else
#error "the emulator switches fibers on x86-64 and aarch64 only"
#endif

extern "C" {
emu::Thread* emu_self;
emu::Group emu_group;
uint64_t emu_counters[emu::kCounters];

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
}

namespace emu {
namespace {

constexpr size_t kStack = 256 << 10, kGuard = 16 << 10;

enum State : uint8_t { kReady, kAtSimd, kAtBarrier, kReturned };

struct Fiber {
  Thread thread;  // first, so that emu_self is the fiber
  void* sp;
  const SimdOp* op;
  void* payload;
  int line;
  int memory;
  State state;
};

struct Simd {
  uint32_t all, ready, arrived;
};

emu_launch* launch;
Fiber fibers[kThreads];
Simd simds[kSimds];
uint32_t threads_here, simds_here, ready_simds, at_barrier, returned;
char* stacks;
void* main_sp;
sigjmp_buf escape;
pthread_t runner;
volatile sig_atomic_t running, interrupted;
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
bool arrive_at_simd(const SimdOp* op, int line, void* payload, int memory) {
  Fiber& me = self();
  uint32_t s = emu_self->simd;
  me.op = op, me.line = line, me.payload = payload, me.memory = memory;
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

const void* instruction(void* context) {
  auto* machine = &static_cast<ucontext_t*>(context)->uc_mcontext;
#if defined(__APPLE__)
  return reinterpret_cast<void*>((*machine)->__ss.__pc);
#elif defined(__x86_64__)
  return reinterpret_cast<void*>(machine->gregs[REG_RIP]);
#else
  return reinterpret_cast<void*>(machine->pc);
#endif
}

struct sigaction previous[4];
constexpr int kSignals[4] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};

void on_signal(int signal, siginfo_t* info, void* context) {
  if (!running || !pthread_equal(pthread_self(), runner)) {
    for (int i = 0; i < 4; ++i)
      if (kSignals[i] == signal) sigaction(signal, &previous[i], nullptr);
    return;  // the instruction runs again under the handler that was there before
  }
  const void* pc = instruction(context);
  if (interrupted) trap_at(pc, current_index(), "endless loop", "out of time");
  char text[300];
  if (signal == SIGFPE) trap_at(pc, current_index(), "arithmetic", "integer division fault");
  if (signal == SIGILL) trap_at(pc, current_index(), "undefined behaviour", "unreachable code");
  auto from = static_cast<char*>(info->si_addr) - stacks;
  if (from >= 0 && size_t(from) < kThreads * (kStack + kGuard))
    trap_at(pc, current_index(), "stack overflow", "the thread needs more than 240 KB of stack");
  describe_address(text, sizeof text, info->si_addr);
  trap_at(pc, current_index(), "out of bounds", text);
}

void make_stacks() {
  if (stacks) return;
  size_t each = kStack + kGuard;
  stacks = static_cast<char*>(mmap(nullptr, kThreads * each, PROT_READ | PROT_WRITE,
                                   MAP_PRIVATE | MAP_ANON | MAP_NORESERVE, -1, 0));
  for (uint32_t i = 0; i < kThreads; ++i) mprotect(stacks + i * each, kGuard, PROT_NONE);
}

}  // namespace

uint32_t current_index() { return emu_self->index; }

void trap_at(const void* pc, uint32_t thread, const char* kind, const char* text) {
  const uint32_t* group = emu_group.position;
  snprintf(launch->kind, sizeof launch->kind, "%s", kind);
  snprintf(launch->text, sizeof launch->text, "%s [thread %u of threadgroup (%u, %u, %u)]", text,
           thread, group[0], group[1], group[2]);
  Dl_info info;
  if (pc && dladdr(pc, &info)) {
    snprintf(launch->library, sizeof launch->library, "%s", info.dli_fname);
    launch->offset = static_cast<const char*>(pc) - static_cast<const char*>(info.dli_fbase);
  }
  siglongjmp(escape, 1);
}

}  // namespace emu

extern "C" {

void emu_trap(const char* kind, const char* format, ...) {
  char text[400];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  emu::trap_at(__builtin_return_address(0), emu_self->index, kind, text);
}

void emu_simd(const emu::SimdOp* op, int line, void* payload) {
  using namespace emu;
  if (!arrive_at_simd(op, line, payload, kNone)) return;
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
  if (!arrive_at_simd(nullptr, line, nullptr, memory)) return;
  advance_simd(emu_self->simd, memory);
  ++emu_counters[kSimdBarriers];
  release(emu_self->simd);
  run_another();
}

void emu_barrier(int memory, int line) {
  using namespace emu;
  Fiber& me = self();
  me.op = nullptr, me.line = line, me.memory = memory;
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

void emu_interrupt() {
  if (!emu::running) return;
  emu::interrupted = 1;
  pthread_kill(emu::runner, SIGSEGV);
}

// 0: ran to its end. 1: trapped, and kind and text say why.
int emu_run(emu_launch* launch) {
  using namespace emu;
  emu::launch = launch;
  make_stacks();
  static char signal_stack[64 << 10];
  stack_t ours = {}, theirs;
  ours.ss_sp = signal_stack, ours.ss_size = sizeof signal_stack;
  sigaltstack(&ours, &theirs);
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &action, &previous[i]);
  random_state = launch->seed * 0x9E3779B97F4A7C15ull + 1;
  memset(emu_counters, 0, sizeof emu_counters);
  runner = pthread_self();
  interrupted = 0;
  int trapped = sigsetjmp(escape, 1);
  if (!trapped) {
    running = 1;
    run_grid();
  }
  running = 0;
  memcpy(launch->counters, emu_counters, sizeof emu_counters);
  for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &previous[i], nullptr);
  sigaltstack(&theirs, nullptr);
  return trapped;
}
}
