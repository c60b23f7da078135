// The call for weights in groups of 32 inputs, of 4 and of 8 bits: checks shapes, rounds the rows once, and shares the
// panels among the threads.

#include <vector>

#include "handlers.h"

namespace distaff {

Rows round_groups(ffi::ThreadPool& pool, const float* from, int64_t rows, int64_t depth) {
  static thread_local std::vector<int8_t> values;
  static thread_local std::vector<float> scales, shares;
  static thread_local std::vector<int32_t> sums;
  const int64_t groups = depth / kGroup;
  values.resize(rows * depth), scales.resize(rows * groups), sums.resize(rows * groups), shares.resize(rows * groups);
  const RoundedGroups rounded = {values.data(), scales.data(), sums.data(), shares.data(), groups};
  parallel_for(pool, rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) kernels().quantize_groups(from + r * depth, rounded, r);
  });
  Rows found = {from, depth};
  found.groups = rounded;
  return found;
}

namespace {

using GroupedPanels = ffi::Buffer<ffi::U8, 5>;
using Halves = ffi::Buffer<ffi::F16, 3>;

// A weight in groups, with its result.
struct GroupedProduct {
  Panels panels;
  int64_t count = 0, groups = 0;
  float* y = nullptr;

  // Reads the operands from the index-th on; the number of them, or 0 if they are wrong.
  size_t read(const ffi::RemainingArgs& operands, size_t index, const Matrix& x) {
    auto weights = operands.get<GroupedPanels>(index);
    if (!weights || weights->dimensions()[3] != kPanel || weights->dimensions()[4] != 4) return 0;
    count = weights->dimensions()[0], groups = weights->dimensions()[1];
    const int64_t loads = weights->dimensions()[2];
    if (groups * kGroup != x.dimensions()[1] || (loads != 4 && loads != 8)) return 0;
    GroupedPanel& first = panels.grouped;
    first = {weights->typed_data(), halves(operands, index + 1), nullptr};
    if (loads == 4) first.lows = halves(operands, index + 2);
    return !first.scales || (loads == 4 && !first.lows) ? 0 : loads == 4 ? 3 : 2;
  }

  const uint16_t* halves(const ffi::RemainingArgs& operands, size_t index) const {
    auto found = operands.get<Halves>(index);
    if (!found || found->dimensions()[0] != count || found->dimensions()[1] != groups ||
        found->dimensions()[2] != kPanel)
      return nullptr;
    return reinterpret_cast<const uint16_t*>(found->untyped_data());
  }
};

ffi::Error grouped_linear(ffi::ThreadPool pool, Matrix x, Number used, ffi::RemainingArgs operands,
                          ffi::RemainingRets results) {
  const ffi::Error unexpected = invalid(
      "grouped_linear: expected f32 x [T, D], for each result [T, F] u8 panels [F / 32, D / 32, 4 or 8, 32, 4], f16 "
      "scales [F / 32, D / 32, 32] and, with 4, lows of the same shape");
  const int64_t rows = rows_in_use(x, used);
  std::vector<GroupedProduct> products(results.size());
  std::vector<int64_t> counts;
  size_t index = 0;
  for (size_t i = 0; i < results.size(); ++i) {
    const size_t read = products[i].read(operands, index, x);
    auto y = results.get<Matrix>(i);
    if (!read || !y || !is_result(x, products[i].count, **y)) return unexpected;
    clear_unused(**y, rows);
    products[i].y = (*y)->typed_data();
    counts.push_back(products[i].count);
    index += read;
  }
  if (index != operands.size()) return unexpected;
  const Rows rounded = round_groups(pool, x.typed_data(), rows, x.dimensions()[1]);
  for_each_panel(pool, counts, [&](size_t weight, int64_t panel) {
    const GroupedProduct& product = products[weight];
    product.panels.multiply(rounded, panel, product.y + panel * kPanel, rows, product.count * kPanel);
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace distaff

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(distaff_grouped_linear, distaff::grouped_linear, distaff::linear_binding());

#pragma GCC visibility pop
