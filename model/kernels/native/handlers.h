// What the calls that XLA makes have in common.

#ifndef DISTAFF_HANDLERS_H_
#define DISTAFF_HANDLERS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "kernels.h"
#include "parallel.h"

namespace distaff {

namespace ffi = xla::ffi;

using Matrix = ffi::Buffer<ffi::F32, 2>;

// The kernels of the CPU's best instruction set, or of the one that a test selected.
const Kernels& kernels();

using Number = ffi::Buffer<ffi::S32, 0>;

// How many of the rows of x are in use; they come first.
inline int64_t rows_in_use(const Matrix& x, const Number& rows) {
  return std::clamp<int64_t>(*rows.typed_data(), 0, x.dimensions()[0]);
}

// Sets the rows from the first unused one on to zero.
inline void clear_unused(Matrix& y, int64_t used) {
  const int64_t columns = y.dimensions()[1];
  std::memset(y.typed_data() + used * columns, 0, (y.dimensions()[0] - used) * columns * sizeof(float));
}

// The binding of a call for linear maps: x, how many of its rows are in use, weights and results.
inline auto linear_binding() {
  return ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Matrix>().Arg<Number>().RemainingArgs().RemainingRets();
}

inline ffi::Error invalid(const char* what) { return ffi::Error(ffi::ErrorCode::kInvalidArgument, what); }

// Calls body(weight, panel) for every panel of every weight, on all threads. Each thread has a few pieces, so that
// a late one is helped.
template <typename Body>
void for_each_panel(ffi::ThreadPool& pool, const std::vector<int64_t>& counts, const Body& body) {
  int64_t total = 0;
  for (int64_t count : counts) total += count;
  const int64_t grain = std::max<int64_t>(1, total / (8 * std::max<int64_t>(1, pool.num_threads())));
  parallel_for(pool, total, grain, [&](int64_t begin, int64_t end) {
    size_t weight = 0;
    int64_t first = 0;
    for (int64_t panel = begin; panel < end; ++panel) {
      while (panel - first >= counts[weight]) first += counts[weight++];
      body(weight, panel - first);
    }
  });
}

inline bool is_result(const Matrix& x, int64_t panels, const Matrix& y) {
  return y.dimensions()[0] == x.dimensions()[0] && y.dimensions()[1] == panels * kPanel;
}

}  // namespace distaff

#endif  // DISTAFF_HANDLERS_H_
