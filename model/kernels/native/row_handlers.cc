// XLA's calls for what is computed of each row alone: sums and norms.

#include "handlers.h"

namespace distaff {

using Vector = ffi::Buffer<ffi::F32, 1>;

namespace {

constexpr int64_t kGrain = 1 << 14;  // values of a piece; a thread that takes fewer costs more than it saves

// Calls body(row) for every row, on all threads.
template <typename Body>
void for_each_row(ffi::ThreadPool& pool, const Matrix& x, const Body& body) {
  const int64_t rows = x.dimensions()[0], columns = x.dimensions()[1];
  parallel_for(pool, rows, 1 + kGrain / (columns + 1), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) body(row);
  });
}

ffi::Error row_sum(ffi::ThreadPool pool, Matrix x, ffi::Result<Vector> result) {
  const int64_t columns = x.dimensions()[1];
  if (result->dimensions()[0] != x.dimensions()[0])
    return invalid("row_sum: expected x [T, D] and a result [T]");
  for_each_row(pool, x, [&](int64_t row) {
    result->typed_data()[row] = kernels().sum(x.typed_data() + row * columns, columns);
  });
  return ffi::Error::Success();
}

ffi::Error rms_norm(ffi::ThreadPool pool, Matrix x, Vector scale, ffi::Result<Matrix> result, float epsilon) {
  const int64_t columns = x.dimensions()[1];
  if (scale.dimensions()[0] != columns || result->dimensions()[0] != x.dimensions()[0] ||
      result->dimensions()[1] != columns)
    return invalid("rms_norm: expected x [T, D], scale [D] and a result [T, D]");
  for_each_row(pool, x, [&](int64_t row) {
    const int64_t offset = row * columns;
    kernels().rms_norm(x.typed_data() + offset, scale.typed_data(), epsilon, result->typed_data() + offset, columns);
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace distaff

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(
    distaff_row_sum, distaff::row_sum,
    xla::ffi::Ffi::Bind().Ctx<xla::ffi::ThreadPool>().Arg<distaff::Matrix>().Ret<distaff::Vector>());

XLA_FFI_DEFINE_HANDLER_SYMBOL(distaff_rms_norm, distaff::rms_norm,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<distaff::Matrix>()
                                  .Arg<distaff::Vector>()
                                  .Ret<distaff::Matrix>()
                                  .Attr<float>("epsilon"));

#pragma GCC visibility pop
