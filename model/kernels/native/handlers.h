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

// Rows of f32, and the same rounded to int8 if weights are u8, or by groups if weights are in groups.
struct Rows {
  const float* values;
  int64_t depth;
  const int8_t* rounded = nullptr;  // [rows][padded()]
  const float* scales = nullptr;
  const int32_t* sums = nullptr;
  RoundedGroups groups = {};

  int64_t padded() const { return (depth + 3) / 4 * 4; }
  Rows from(int64_t row) const {
    Rows rest = {values + row * depth, depth};
    if (rounded) rest.rounded = rounded + row * padded(), rest.scales = scales + row, rest.sums = sums + row;
    if (const int64_t count = groups.groups, first = row * count; count)
      rest.groups = {groups.values + first * kGroup, groups.scales + first, groups.sums + first, groups.shares + first,
                     count};
    return rest;
  }
};

// The rows with their rounded form, in memory of this thread that the next call uses again.
Rows round_rows(ffi::ThreadPool& pool, const float* values, int64_t rows, int64_t depth);

// The same for groups, of which `depth` is a whole number.
Rows round_groups(ffi::ThreadPool& pool, const float* values, int64_t rows, int64_t depth);

// Weights in panels of one type, and the scales of u8 or fp8.
struct Panels {
  const float* floats = nullptr;
  const uint16_t* halves = nullptr;
  const uint8_t* bytes = nullptr;
  const uint8_t* fp8 = nullptr;
  const float* scales = nullptr;
  int64_t span = 0;  // inputs of fp8 that share a scale
  GroupedPanel grouped = {};  // the first one; without lows, weights have 8 bits

  // y[rows][stride]: the rows times the index-th panel.
  void multiply(const Rows& x, int64_t index, float* y, int64_t rows, int64_t stride) const {
    const Kernels& table = kernels();
    const int64_t offset = index * kPanel * x.depth;
    if (grouped.weights) {
      multiply_groups(x, index, y, rows, stride);
    } else if (bytes) {
      table.int8_linear(x.rounded, x.scales, x.sums, bytes + index * kPanel * x.padded(), scales + index * kPanel, y,
                        rows, x.depth, stride);
    } else if (fp8) {
      table.fp8_linear(x.values, fp8 + offset, scales + index * kPanel * (x.depth / span), span, y, rows, x.depth, stride);
    } else if (halves) {
      table.linear_bf16(x.values, halves + offset, y, rows, x.depth, stride);
    } else {
      table.linear(x.values, floats + offset, y, rows, x.depth, stride);
    }
  }

  void multiply_groups(const Rows& x, int64_t index, float* y, int64_t rows, int64_t stride) const {
    const int64_t offset = index * kPanel * x.groups.groups, bytes = offset * kGroup;
    const uint16_t* own = grouped.scales + offset;
    if (grouped.lows)
      kernels().grouped4(x.groups, {grouped.weights + bytes / 2, own, grouped.lows + offset}, y, rows, stride);
    else
      kernels().grouped8(x.groups, {grouped.weights + bytes, own, nullptr}, y, rows, stride);
  }
};

// Weights in panels, with their result.
struct Product {
  Panels panels;
  float* y;
};

// Computes all products of the rows; `counts` has the number of each one's panels.
inline void multiply_all(ffi::ThreadPool& pool, const Rows& x, int64_t rows, const std::vector<Product>& products,
                  const std::vector<int64_t>& counts) {
  for_each_panel(pool, counts, [&](size_t weight, int64_t panel) {
    const Product& product = products[weight];
    product.panels.multiply(x, panel, product.y + panel * kPanel, rows, counts[weight] * kPanel);
  });
}

template <typename Buffer>
bool are_panels(const Buffer& panels, int64_t depth) {
  return panels.dimensions()[1] == depth && panels.dimensions()[2] == kPanel;
}

inline bool is_result(const Matrix& x, int64_t panels, const Matrix& y) {
  return y.dimensions()[0] == x.dimensions()[0] && y.dimensions()[1] == panels * kPanel;
}

}  // namespace distaff

#endif  // DISTAFF_HANDLERS_H_
