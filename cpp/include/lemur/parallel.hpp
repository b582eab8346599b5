// The only threading primitive: a loop over tasks, shared out one at a time.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace lemur {

// Calls body(task) for 0 <= task < num_tasks on at most num_threads threads, the caller's among them. `make_body` runs
// once per thread and returns that thread's body, which may own scratch memory. The first exception is thrown again
// here.
template <class MakeBody>
void parallel_for(std::int64_t num_tasks, int num_threads, const MakeBody& make_body) {
  std::atomic<std::int64_t> next{0};
  std::exception_ptr error;
  std::mutex error_mutex;
  const auto work = [&] {
    try {
      auto body = make_body();
      for (std::int64_t task = next++; task < num_tasks; task = next++) body(task);
    } catch (...) {
      next = num_tasks;  // the others stop after the task they have
      const std::lock_guard<std::mutex> lock(error_mutex);
      if (!error) error = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  const std::int64_t wanted = std::min<std::int64_t>(num_threads, num_tasks);
  try {
    for (std::int64_t t = 1; t < wanted; ++t) threads.emplace_back(work);
  } catch (...) {
    // The system gives no more threads: those that run, and this one, do the work.
  }
  work();
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace lemur
