// The call for weights of fp8, with a scale for each output or for each block of its inputs: checks shapes, and shares
// the panels among the threads.

#include <vector>

#include "handlers.h"

namespace distaff {
namespace {

using Fp8Panels = ffi::Buffer<ffi::U8, 3>;
using OutputScales = ffi::Buffer<ffi::F32, 1>;
using BlockScales = ffi::Buffer<ffi::F32, 3>;

// Sets the scales of panels whose shape is known, from the index-th operand; whether they belong to them.
bool read_scales(const ffi::RemainingArgs& operands, size_t index, int64_t count, int64_t depth, Panels& panels) {
  if (auto scales = operands.get<OutputScales>(index)) {
    panels.scales = scales->typed_data(), panels.span = depth;
    return scales->dimensions()[0] == count * kPanel;
  }
  auto scales = operands.get<BlockScales>(index);
  if (!scales || scales->dimensions()[0] != count || scales->dimensions()[2] != kPanel) return false;
  panels.scales = scales->typed_data(), panels.span = kSpan;
  return scales->dimensions()[1] * kSpan == depth;
}

ffi::Error fp8_linear(ffi::ThreadPool pool, Matrix x, Number used, ffi::RemainingArgs operands,
                      ffi::RemainingRets results) {
  const ffi::Error unexpected = invalid(
      "fp8_linear: expected f32 x [T, D], for each result [T, F] u8 panels [F / 32, D, 32] and f32 scales [F] "
      "or [F / 32, D / 128, 32]");
  const int64_t rows = rows_in_use(x, used), depth = x.dimensions()[1];
  if (operands.size() != 2 * results.size()) return unexpected;
  std::vector<Product> products;
  std::vector<int64_t> counts;
  for (size_t i = 0; i < results.size(); ++i) {
    auto weights = operands.get<Fp8Panels>(2 * i);
    auto y = results.get<Matrix>(i);
    if (!weights || !y || !are_panels(*weights, depth)) return unexpected;
    Panels panels;
    panels.fp8 = weights->typed_data();
    counts.push_back(weights->dimensions()[0]);
    if (!read_scales(operands, 2 * i + 1, counts.back(), depth, panels) || !is_result(x, counts.back(), **y))
      return unexpected;
    clear_unused(**y, rows);
    products.push_back({panels, (*y)->typed_data()});
  }
  multiply_all(pool, {x.typed_data(), depth}, rows, products, counts);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace distaff

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(distaff_fp8_linear, distaff::fp8_linear, distaff::linear_binding());

#pragma GCC visibility pop
