// Ways out of a kernel that broke a rule: from its own code, or from a signal that it raised.
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

#include "machine.hpp"

namespace emu {

sigjmp_buf escape;

namespace {

pthread_t runner;
volatile sig_atomic_t running, interrupted;

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
  if (interrupted) trap_at(pc, emu_self->index, "endless loop", "out of time");
  char text[300];
  if (signal == SIGFPE) trap_at(pc, emu_self->index, "arithmetic", "integer division fault");
  if (signal == SIGILL) trap_at(pc, emu_self->index, "undefined behaviour", "unreachable code");
  auto from = static_cast<char*>(info->si_addr) - stacks;
  if (from >= 0 && size_t(from) < kThreads * (kStack + kGuard))
    trap_at(pc, emu_self->index, "stack overflow", "the thread needs more than 240 KB of stack");
  describe_address(text, sizeof text, info->si_addr);
  trap_at(pc, emu_self->index, "out of bounds", text);
}

stack_t their_stack;

}  // namespace

void watch() {
  static char signal_stack[64 << 10];
  stack_t ours = {};
  ours.ss_sp = signal_stack, ours.ss_size = sizeof signal_stack;
  sigaltstack(&ours, &their_stack);
  struct sigaction action = {};
  action.sa_sigaction = on_signal;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &action, &previous[i]);
  runner = pthread_self();
  interrupted = 0;
  running = 1;
}

void unwatch() {
  running = 0;
  for (int i = 0; i < 4; ++i) sigaction(kSignals[i], &previous[i], nullptr);
  sigaltstack(&their_stack, nullptr);
}

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

void emu_interrupt() {
  if (!emu::running) return;
  emu::interrupted = 1;
  pthread_kill(emu::runner, SIGSEGV);
}
}
