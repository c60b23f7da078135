// XLA's call for new arrays of zeros, such as the KV pool, whose memory is allocated only as it is used.

#include <cstring>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "handlers.h"

namespace distaff {
namespace {

constexpr size_t kLeast = 1 << 20;  // bytes; writing fewer is faster than having the pages taken back

// Makes `bytes` at `from` zero. Pages of private anonymous memory, which is what malloc returns, are given back to
// Linux: they read as zeros, and are allocated again when they are first written.
void clear(void* from, size_t bytes) {
#if defined(__linux__)
  const uintptr_t page = sysconf(_SC_PAGESIZE), start = reinterpret_cast<uintptr_t>(from), end = start + bytes;
  const uintptr_t first = (start + page - 1) / page * page, last = end / page * page;
  if (bytes >= kLeast && madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED) == 0) {
    std::memset(from, 0, first - start);
    std::memset(reinterpret_cast<void*>(last), 0, end - last);
    return;
  }
#endif
  std::memset(from, 0, bytes);
}

ffi::Error zeros(ffi::RemainingRets results) {
  for (size_t i = 0; i < results.size(); ++i) {
    auto result = results.get<ffi::AnyBuffer>(i);
    if (!result) return invalid("zeros: expected arrays as results");
    clear((*result)->untyped_data(), (*result)->size_bytes());
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace distaff

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(distaff_zeros, distaff::zeros, xla::ffi::Ffi::Bind().RemainingRets());

#pragma GCC visibility pop
