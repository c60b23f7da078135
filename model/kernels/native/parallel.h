// Splits a loop over XLA's intra-op thread pool.
//
// Each thread has a share of its own, so that it reads memory from front to back. It takes small pieces of it, and those
// of others when it has none left, so that a helper that starts late or is descheduled delays nobody. The loop ends when
// every piece is done, not when every helper has started: a helper that finds no piece left touches nothing but the
// shared state, which it keeps alive.

#ifndef DISTAFF_PARALLEL_H_
#define DISTAFF_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "xla/ffi/api/ffi.h"

namespace distaff {

// A pause in a loop that waits for another thread's write.
inline void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

// Calls body(begin, end) for pieces of [0, count) of at most `grain`, on the pool's threads and this one.
template <typename Body>
void parallel_for(xla::ffi::ThreadPool& pool, int64_t count, int64_t grain, const Body& body) {
  struct alignas(64) Share {
    std::atomic<int64_t> next;
    int64_t end;
  };
  struct State {
    std::vector<Share> shares;
    std::atomic<int64_t> joined{0}, left;
    int64_t grain;
    const Body* body;  // is not read after `left` is zero
    std::mutex mutex;
    std::condition_variable finished;

    explicit State(int64_t threads) : shares(threads) {}

    void work() {
      const int64_t first = joined.fetch_add(1), threads = shares.size();
      for (int64_t i = 0; i < threads; ++i) take(shares[(first + i) % threads]);
    }

    void take(Share& share) {
      for (int64_t begin; (begin = share.next.fetch_add(grain)) < share.end;) {
        const int64_t end = std::min(begin + grain, share.end);
        (*body)(begin, end);
        if (left.fetch_sub(end - begin) == end - begin) {
          std::lock_guard<std::mutex> lock(mutex);
          finished.notify_one();
        }
      }
    }
  };

  const int64_t pieces = (count + grain - 1) / grain;
  const int64_t threads = std::min<int64_t>(pool.num_threads(), pieces);
  if (threads < 2) {
    if (count > 0) body(0, count);
    return;
  }
  auto state = std::make_shared<State>(threads);
  for (int64_t i = 0; i < threads; ++i)
    state->shares[i].next = count * i / threads, state->shares[i].end = count * (i + 1) / threads;
  state->left = count;
  state->grain = grain;
  state->body = &body;
  for (int64_t i = 1; i < threads; ++i) pool.Schedule([state] { state->work(); });
  state->work();
  for (int spins = 0; spins < 2000 && state->left.load() > 0; ++spins) pause();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->finished.wait(lock, [&] { return state->left.load() == 0; });
}

}  // namespace distaff

#endif  // DISTAFF_PARALLEL_H_
