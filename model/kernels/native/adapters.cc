// XLA's call for the low-rank maps of LoRA adapters: each row has its own adapter, or none. What the maps give is added
// to products that are there.
//
// Rows of one adapter are computed together, so its weights are read once for all of them. A row's products are
// added in an order that does not depend on the others.

#include "handlers.h"

namespace distaff {

using Numbers = ffi::Buffer<ffi::S32, 1>;

namespace {

// Panels of f32 or bf16, of one factor of all adapters: [slots][panels][depth][width].
struct Factor {
  const float* floats = nullptr;
  const uint16_t* halves = nullptr;
  int64_t slots = 0, panels = 0, depth = 0, width = 0;

  int64_t offset(int64_t slot, int64_t panel) const { return (slot * panels + panel) * depth * width; }
};

// Rows of one adapter: places [first, last) of `order`.
struct Run {
  int64_t slot, first, last;
};

// One map: its two factors, which slots have it, and the result [rows][columns].
struct LowRank {
  Factor down, up;
  const int32_t* used;
  float* y;
  int64_t columns;
};

// A map of one adapter: its rows of x, what the first factor makes of them, and their places in the result.
struct Work {
  const LowRank* map;
  int64_t slot, rows;
  const float* x;
  float* h;
  float* const* y;

  // h[rows][rank]: the rows times the first factor.
  void shrink() const {
    const Factor& down = map->down;
    const int64_t rank = map->up.depth;
    for (int64_t p = 0; p < down.panels; ++p) {
      const int64_t at = down.offset(slot, p);
      if (down.halves)
        kernels().narrow_bf16(x, down.halves + at, h + p * kNarrow, rows, down.depth, rank);
      else
        kernels().narrow(x, down.floats + at, h + p * kNarrow, rows, down.depth, rank);
    }
  }

  // Adds some panels of h times the second factor to the result.
  void expand(int64_t begin, int64_t end) const {
    const int64_t whole = std::min(end, map->columns / kPanel);
    if (begin < whole) add(begin, whole - begin, y, begin * kPanel);
    if (end > whole) expand_last();
  }

  // The last panel, of which the result has only some columns.
  void expand_last() const {
    const int64_t panel = map->up.panels - 1, begin = panel * kPanel, columns = map->columns - begin;
    std::vector<float> out(rows * kPanel);
    std::vector<float*> to(rows);
    for (int64_t i = 0; i < rows; ++i) {
      to[i] = out.data() + i * kPanel;
      std::memcpy(to[i], y[i] + begin, columns * sizeof(float));
    }
    add(panel, 1, to.data(), 0);
    for (int64_t i = 0; i < rows; ++i) std::memcpy(y[i] + begin, out.data() + i * kPanel, columns * sizeof(float));
  }

  void add(int64_t panel, int64_t count, float* const* to, int64_t column) const {
    const Factor& up = map->up;
    const int64_t at = up.offset(slot, panel);
    if (up.halves)
      kernels().add_panels_bf16(h, up.halves + at, to, column, rows, up.depth, count);
    else
      kernels().add_panels(h, up.floats + at, to, column, rows, up.depth, count);
  }
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

bool read_factor(ffi::RemainingArgs& operands, size_t index, int64_t width, Factor& factor) {
  ffi::Span<const int64_t> sizes;
  if (auto floats = operands.get<ffi::Buffer<ffi::F32, 4>>(index)) {
    factor.floats = floats->typed_data(), sizes = floats->dimensions();
  } else if (auto halves = operands.get<ffi::Buffer<ffi::BF16, 4>>(index)) {
    factor.halves = reinterpret_cast<const uint16_t*>(halves->untyped_data()), sizes = halves->dimensions();
  } else {
    return false;
  }
  factor.slots = sizes[0], factor.panels = sizes[1], factor.depth = sizes[2], factor.width = sizes[3];
  return factor.width == width;
}

// The operands are four for each result: a product, the two factors, flags.
bool read_maps(const Matrix& x, ffi::RemainingArgs& operands, ffi::RemainingRets& results,
               std::vector<LowRank>& maps) {
  if (operands.size() != 4 * results.size() || !results.size()) return false;
  for (size_t i = 0; i < results.size(); ++i) {
    LowRank map;
    auto product = operands.get<Matrix>(4 * i);
    auto used = operands.get<Numbers>(4 * i + 3);
    auto y = results.get<Matrix>(i);
    if (!product || !used || !y || !read_factor(operands, 4 * i + 1, kNarrow, map.down) ||
        !read_factor(operands, 4 * i + 2, kPanel, map.up))
      return false;
    map.used = used->typed_data(), map.y = (*y)->typed_data(), map.columns = (*y)->dimensions()[1];
    if (map.down.depth != x.dimensions()[1] || map.up.depth != map.down.panels * kNarrow ||
        map.up.slots != map.down.slots || used->dimensions()[0] != map.down.slots ||
        product->dimensions()[0] != x.dimensions()[0] || product->dimensions()[1] != map.columns ||
        (*y)->dimensions()[0] != x.dimensions()[0] ||
        map.up.panels != (map.columns + kPanel - 1) / kPanel)
      return false;
    if (map.y != product->typed_data()) std::memcpy(map.y, product->typed_data(), product->size_bytes());
    maps.push_back(map);
  }
  return true;
}

ffi::Error adapters(ffi::ThreadPool pool, Matrix x, Numbers index, Number used, ffi::RemainingArgs operands,
                    ffi::RemainingRets results) {
  std::vector<LowRank> maps;
  if (index.dimensions()[0] != x.dimensions()[0] || !read_maps(x, operands, results, maps))
    return invalid(
        "adapters: expected f32 x [T, D], an index [T], and for each result [T, F] a product [T, F], panels "
        "[S, R / 16, D, 16] and [S, F / 32, R, 32] and flags [S]");
  const int64_t depth = x.dimensions()[1];
  std::vector<int64_t> order;
  const std::vector<Run> runs = runs_of(index.typed_data(), rows_in_use(x, used), maps[0].down.slots, order);
  if (runs.empty()) return ffi::Error::Success();
  // Memory of this thread, which the next call uses again.
  static thread_local std::vector<float> sorted, factors;
  static thread_local std::vector<float*> places;
  const int64_t rows = order.size();
  sorted.resize(rows * depth);
  for (int64_t i = 0; i < rows; ++i)
    std::memcpy(sorted.data() + i * depth, x.typed_data() + order[i] * depth, depth * sizeof(float));

  int64_t room = 0;
  for (const LowRank& map : maps) room += rows * map.up.depth;
  factors.resize(room), places.resize(rows * maps.size());
  std::vector<Work> work;
  std::vector<int64_t> counts;
  float* h = factors.data();
  float** y = places.data();
  for (const LowRank& map : maps) {
    for (const Run& run : runs) {
      if (!map.used[run.slot]) continue;
      const float* own = sorted.data() + run.first * depth;
      work.push_back({&map, run.slot, run.last - run.first, own, h + run.first * map.up.depth, y + run.first});
      counts.push_back(map.up.panels);
    }
    for (int64_t i = 0; i < rows; ++i) y[i] = map.y + order[i] * map.columns;
    h += rows * map.up.depth, y += rows;
  }
  const int64_t threads = std::max<int64_t>(1, pool.num_threads());
  const bool many = static_cast<int64_t>(work.size()) >= 4 * threads;  // then each thread takes whole maps
  parallel_for(pool, work.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      work[i].shrink();
      if (many) work[i].expand(0, counts[i]);
    }
  });
  if (!many)
    for_each_panel(pool, counts, [&](size_t i, int64_t panel) { work[i].expand(panel, panel + 1); });
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
