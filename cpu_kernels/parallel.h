// Threads that run the items of one loop at a time in parallel.
//
// The threads and the caller take items one by one from a common counter. A thread that the system
// suspends therefore delays the loop by at most one item.
#pragma once

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <mutex>
#include <thread>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace sgl {

class Threads {
 public:
  // Returns the process's threads. They are never destroyed, because they run until it exits.
  static Threads& shared() {
    static Threads* threads = new Threads;
    return *threads;
  }

  // Starts count - 1 threads, since the caller is one too. Later calls do nothing.
  void start(int count) {
    std::call_once(started_, [&] {
      for (int i = 1; i < count; i++) std::thread([this] { work(); }).detach();
      count_ = count;
    });
  }

  int count() const { return count_; }

  // Calls body(i) for i in [0, items), in any order and on any thread. Returns when all are done.
  template <typename Body>
  void each(int64_t items, const Body& body) {
    // While the threads work for another caller, this caller runs its items alone.
    std::unique_lock lock(calling_, std::try_to_lock);
    if (count_ < 2 || items < 2 || !lock) {
      for (int64_t i = 0; i < items; i++) body(i);
      return;
    }
    call_ = [](const void* context, int64_t i) { (*static_cast<const Body*>(context))(i); };
    context_ = &body;
    items_ = items;
    next_.store(0);
    open_.store(true);
    generation_.fetch_add(1);
    generation_.notify_all();
    take();
    // A thread that saw `open_` true is counted in `inside_`; wait until all such threads have
    // left. A thread that comes later sees `open_` false and takes no item.
    open_.store(false);
    for (int spins = 0; inside_.load() != 0; spins++) rest(spins);
  }

 private:
  static constexpr int kSpins = 2000;  // some 20 microseconds, about the time between two kernels
  static constexpr int kYields = 200;

  void take() {
    for (int64_t i; (i = next_.fetch_add(1)) < items_;) call_(context_, i);
  }

  [[noreturn]] void work() {
    uint32_t seen = 0;
    while (true) {
      for (int spins = 0; generation_.load() == seen; spins++) {
        if (spins < kSpins + kYields) rest(spins);
        else generation_.wait(seen);
      }
      seen = generation_.load();
      inside_.fetch_add(1);
      if (open_.load()) take();
      inside_.fetch_sub(1);
    }
  }

  static void rest(int spins) {
    if (spins >= kSpins) {
      sched_yield();
      return;
    }
#if defined(__x86_64__)
    _mm_pause();
#endif
  }

  std::once_flag started_;
  std::mutex calling_;
  int count_ = 1;
  void (*call_)(const void*, int64_t) = nullptr;
  const void* context_ = nullptr;
  int64_t items_ = 0;
  std::atomic<int64_t> next_{0};
  std::atomic<int> inside_{0};
  std::atomic<bool> open_{false};
  std::atomic<uint32_t> generation_{0};
};

// Calls body(first, last) for ranges that cover [0, items). Each has `grain` items or more, but the
// last may have fewer.
template <typename Body>
void each_range(int64_t items, int64_t grain, const Body& body) {
  const int64_t most = 4 * Threads::shared().count();
  const int64_t size = std::max(grain, (items + most - 1) / most);
  Threads::shared().each((items + size - 1) / size,
                         [&](int64_t i) { body(i * size, std::min(items, (i + 1) * size)); });
}

}  // namespace sgl
