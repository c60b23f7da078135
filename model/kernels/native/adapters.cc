// XLA's call for the low-rank maps of LoRA adapters: each row has its own adapter, or none.
//
// Rows of one adapter are computed together, so its weights are read once for all of them. A row's products are
// added in an order that does not depend on the others.

#include "handlers.h"

namespace distaff {

using Numbers = ffi::Buffer<ffi::S32, 1>;
using Stack = ffi::Buffer<ffi::F32, 4>;

namespace {

// Rows of one adapter: places [first, last) of `order`.
struct Run {
  int64_t slot, first, last;
};

// One map: the stacked panels of its two factors, and which slots have it.
struct LowRank {
  const float *down, *up;
  const int32_t* used;
  int64_t panels, rank, up_panels;
  float* y;
};

// The rows in use that have an adapter, adapter by adapter.
std::vector<Run> runs_of(const int32_t* index, int64_t rows, int64_t slots, std::vector<int64_t>& order) {
  std::vector<Run> runs;
  for (int64_t slot = 0; slot < slots; ++slot) {
    const int64_t first = order.size();
    for (int64_t row = 0; row < rows; ++row)
      if (index[row] == slot) order.push_back(row);
    if (const int64_t last = order.size(); last > first) runs.push_back({slot, first, last});
  }
  return runs;
}

// h[n][rank]: the rows times the first factor; `wide` has room for n * panels * 32 numbers.
void shrink(const LowRank& map, const Run& run, const float* x, int64_t depth, float* wide, float* h) {
  const int64_t n = run.last - run.first, stride = map.panels * kPanel;
  const float* panels = map.down + run.slot * stride * depth;
  for (int64_t p = 0; p < map.panels; ++p)
    kernels().linear(x, panels + p * kPanel * depth, wide + p * kPanel, n, depth, stride);
  for (int64_t i = 0; i < n; ++i) std::memcpy(h + i * map.rank, wide + i * stride, map.rank * sizeof(float));
}

// One panel of the result: h times the second factor, written to the rows' places in y.
void expand(const LowRank& map, const Run& run, int64_t panel, const float* h, const int64_t* order, float* out) {
  const int64_t n = run.last - run.first, stride = map.up_panels * kPanel;
  const float* weights = map.up + (run.slot * map.up_panels + panel) * map.rank * kPanel;
  kernels().linear(h, weights, out, n, map.rank, kPanel);
  for (int64_t i = 0; i < n; ++i)
    std::memcpy(map.y + order[run.first + i] * stride + panel * kPanel, out + i * kPanel, kPanel * sizeof(float));
}

bool read_maps(const Matrix& x, ffi::RemainingArgs& weights, ffi::RemainingRets& results, int64_t slots,
               std::vector<LowRank>& maps) {
  if (weights.size() != 3 * results.size()) return false;
  for (size_t i = 0; i < results.size(); ++i) {
    auto down = weights.get<Stack>(3 * i), up = weights.get<Stack>(3 * i + 1);
    auto used = weights.get<Numbers>(3 * i + 2);
    auto y = results.get<Matrix>(i);
    if (!down || !up || !used || !y) return false;
    const auto a = down->dimensions(), b = up->dimensions();
    if (a[0] != slots || b[0] != slots || used->dimensions()[0] != slots || a[2] != x.dimensions()[1] ||
        a[3] != kPanel || b[3] != kPanel || b[2] > a[1] * kPanel || (*y)->dimensions()[0] != x.dimensions()[0] ||
        (*y)->dimensions()[1] != b[1] * kPanel)
      return false;
    maps.push_back({down->typed_data(), up->typed_data(), used->typed_data(), a[1], b[2], b[1], (*y)->typed_data()});
  }
  return true;
}

ffi::Error adapters(ffi::ThreadPool pool, Matrix x, Numbers index, Number used, ffi::RemainingArgs weights,
                    ffi::RemainingRets results) {
  const ffi::Error unexpected = invalid(
      "adapters: expected f32 x [T, D], an index [T], and for each result [T, F] panels [S, R / 32, D, 32] and "
      "[S, F / 32, R, 32] with flags [S]");
  auto first = weights.get<Stack>(0);
  if (!first || index.dimensions()[0] != x.dimensions()[0]) return unexpected;
  const int64_t slots = first->dimensions()[0], depth = x.dimensions()[1];
  std::vector<LowRank> maps;
  if (!read_maps(x, weights, results, slots, maps)) return unexpected;
  for (const LowRank& map : maps)
    std::memset(map.y, 0, x.dimensions()[0] * map.up_panels * kPanel * sizeof(float));

  std::vector<int64_t> order;
  const std::vector<Run> runs = runs_of(index.typed_data(), rows_in_use(x, used), slots, order);
  if (runs.empty()) return ffi::Error::Success();
  const int64_t rows = order.size();
  std::vector<float> sorted(rows * depth);
  for (int64_t i = 0; i < rows; ++i)
    std::memcpy(sorted.data() + i * depth, x.typed_data() + order[i] * depth, depth * sizeof(float));

  std::vector<std::pair<const LowRank*, const Run*>> work;
  std::vector<float*> factors;
  int64_t widest = 0, room = 0;
  for (const LowRank& map : maps) widest = std::max(widest, map.panels * kPanel), room += rows * map.rank;
  std::vector<float> h(room);
  float* next = h.data();
  std::vector<int64_t> counts;
  for (const LowRank& map : maps) {
    for (const Run& run : runs)
      if (map.used[run.slot]) {
        work.push_back({&map, &run}), counts.push_back(map.up_panels);
        factors.push_back(next + run.first * map.rank);
      }
    next += rows * map.rank;
  }
  if (work.empty()) return ffi::Error::Success();
  parallel_for(pool, work.size(), 1, [&](int64_t begin, int64_t end) {
    std::vector<float> wide(rows * widest);
    for (int64_t i = begin; i < end; ++i)
      shrink(*work[i].first, *work[i].second, sorted.data() + work[i].second->first * depth, depth, wide.data(),
             factors[i]);
  });
  for_each_panel(pool, counts, [&](size_t i, int64_t panel) {
    static thread_local std::vector<float> out;
    out.resize(rows * kPanel);
    expand(*work[i].first, *work[i].second, panel, factors[i], order.data(), out.data());
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace distaff

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(distaff_adapters, distaff::adapters,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<distaff::Matrix>()
                                  .Arg<distaff::Numbers>()
                                  .Arg<distaff::Number>()
                                  .RemainingArgs()
                                  .RemainingRets());

#pragma GCC visibility pop
