// XLA's calls for linear maps and attention: checks shapes, and shares the work among the threads. Also chooses the
// kernels for the CPU.
//
// One call multiplies the same rows by several weights, such as those of query, key and value: fewer calls, and
// int8 rows are rounded once.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <string>
#include <vector>
#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "handlers.h"

namespace ffi = xla::ffi;

using distaff::Matrix;
using Cube = ffi::Buffer<ffi::F32, 3>;
using FloatPanels = Cube;
using Numbers = ffi::Buffer<ffi::S32, 1>;
using Tables = ffi::Buffer<ffi::S32, 2>;
using HalfPanels = ffi::Buffer<ffi::BF16, 3>;
using BytePanels = ffi::Buffer<ffi::U8, 4>;

namespace distaff {
namespace {

#if defined(__x86_64__)
// Not every compiler's __builtin_cpu_supports knows AVX-VNNI.
bool has_avx_vnni() {
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & (1 << 4));
}
#endif

// What this CPU can run, the best first.
const std::vector<const Kernels*>& usable() {
  static const std::vector<const Kernels*> found = [] {
    std::vector<const Kernels*> tables;
#if defined(__x86_64__)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni"))
      tables.push_back(&kAvx512);
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
      if (&kAvxVnni && has_avx_vnni()) tables.push_back(&kAvxVnni);
      tables.push_back(&kAvx2);
    }
#elif defined(__aarch64__)
    if (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) tables.push_back(&kNeonDotprod);
#endif
    tables.push_back(&kPortable);
    return tables;
  }();
  return found;
}

std::atomic<const Kernels*> selected{nullptr};

}  // namespace

const Kernels& kernels() {
  const Kernels* table = selected.load(std::memory_order_relaxed);
  return table ? *table : *usable().front();
}

Rows round_rows(ffi::ThreadPool& pool, const float* values, int64_t rows, int64_t depth) {
  static thread_local std::vector<int8_t> rounded;
  static thread_local std::vector<float> scales;
  static thread_local std::vector<int32_t> sums;
  const int64_t padded = Rows{values, depth}.padded();
  rounded.resize(rows * padded), scales.resize(rows), sums.resize(rows);
  int8_t* to = rounded.data();  // not the other threads' own
  float* scale = scales.data();
  int32_t* sum = sums.data();
  parallel_for(pool, rows, 16, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      scale[r] = kernels().quantize(values + r * depth, to + r * padded, depth, sum + r);
  });
  return {values, depth, to, scale, sum};
}

namespace {

ffi::Error linear(ffi::ThreadPool pool, Matrix x, Number used, ffi::RemainingArgs weights, ffi::RemainingRets results) {
  const ffi::Error unexpected = invalid("linear: expected f32 x [T, D], panels [F / 32, D, 32] and results [T, F]");
  const int64_t rows = rows_in_use(x, used), depth = x.dimensions()[1];
  std::vector<Product> products;
  std::vector<int64_t> counts;
  if (weights.size() != results.size()) return unexpected;
  for (size_t i = 0; i < weights.size(); ++i) {
    Panels panels;
    auto y = results.get<Matrix>(i);
    if (auto floats = weights.get<FloatPanels>(i); floats && are_panels(*floats, depth)) {
      panels.floats = floats->typed_data(), counts.push_back(floats->dimensions()[0]);
    } else if (auto halves = weights.get<HalfPanels>(i); halves && are_panels(*halves, depth)) {
      panels.halves = reinterpret_cast<const uint16_t*>(halves->untyped_data()), counts.push_back(halves->dimensions()[0]);
    } else {
      return unexpected;
    }
    if (!y || !is_result(x, counts.back(), **y)) return unexpected;
    clear_unused(**y, rows);
    products.push_back({panels, (*y)->typed_data()});
  }
  multiply_all(pool, {x.typed_data(), depth}, rows, products, counts);
  return ffi::Error::Success();
}

ffi::Error int8_linear(ffi::ThreadPool pool, Matrix x, Number used, ffi::RemainingArgs weights,
                       ffi::RemainingRets results) {
  const int64_t rows = rows_in_use(x, used), depth = x.dimensions()[1], padded = (depth + 3) / 4 * 4;
  std::vector<Product> products;
  std::vector<int64_t> counts;
  if (weights.size() != 2 * results.size()) return invalid("int8_linear: expected panels and scales for each result");
  for (size_t i = 0; i < results.size(); ++i) {
    auto bytes = weights.get<BytePanels>(2 * i);
    auto scales = weights.get<ffi::Buffer<ffi::F32, 1>>(2 * i + 1);
    auto y = results.get<Matrix>(i);
    if (!bytes || !scales || !y || bytes->dimensions()[1] != padded / 4 || bytes->dimensions()[2] != kPanel ||
        bytes->dimensions()[3] != 4 || scales->dimensions()[0] != bytes->dimensions()[0] * kPanel ||
        !is_result(x, bytes->dimensions()[0], **y))
      return invalid("int8_linear: expected f32 x [T, D], u8 panels [F / 32, D / 4, 32, 4], scales [F], results [T, F]");
    clear_unused(**y, rows);
    Panels panels;
    panels.bytes = bytes->typed_data(), panels.scales = scales->typed_data();
    products.push_back({panels, (*y)->typed_data()});
    counts.push_back(bytes->dimensions()[0]);
  }
  multiply_all(pool, round_rows(pool, x.typed_data(), rows, depth), rows, products, counts);
  return ffi::Error::Success();
}

constexpr int64_t kTile = 16;  // tokens of a prompt that are processed together

// Some tokens of a row.
struct Tile {
  int64_t row, first, tokens;
};

// Tokens without a position, and those beyond the step or the page table, are in no tile.
std::vector<Tile> tiles(const Numbers& starts, const Numbers& positions, int64_t rows, int64_t context) {
  std::vector<Tile> found;
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t end = std::min<int64_t>(starts.typed_data()[row + 1], positions.dimensions()[0]);
    for (int64_t first = starts.typed_data()[row]; first < end; first += kTile) {
      const int64_t tokens = std::min(kTile, end - first), position = positions.typed_data()[first];
      if (position >= 0 && position + tokens <= context) found.push_back({row, first, tokens});
    }
  }
  return found;
}

// q [T, N, H], pool [P, page, 2K, H] with scales [P, page, 2K] if it is int8, and the batch's positions [T],
// tables [B, M], starts [B + 1] and rows [].
ffi::Error attention(ffi::ThreadPool pool, Cube q, ffi::AnyBuffer values,
                     Cube scales, Numbers positions,
                     Tables tables, Numbers starts, Number rows,
                     ffi::Result<Cube> result, int64_t window, float scale) {
  const auto shape = values.dimensions();
  const int64_t tokens = q.dimensions()[0], heads = q.dimensions()[1], head = q.dimensions()[2];
  const bool int8 = values.element_type() == ffi::S8;
  if (shape.size() != 4 || shape[3] != head || head % kPanel || shape[2] % 2 || heads % (shape[2] / 2) ||
      (int8 && scales.dimensions()[2] != shape[2]) || positions.dimensions()[0] != tokens ||
      starts.dimensions()[0] != tables.dimensions()[0] + 1)
    return invalid("attention: the shapes of q, pool and batch do not belong together");
  const int64_t kv_heads = shape[2] / 2, group = heads / kv_heads;
  AttendArguments common = {};
  common.query_stride = heads * head, common.group = group, common.head = head;
  common.window = window, common.scale = scale, common.page_size = shape[1];
  common.pool_stride = shape[2] * head, common.scale_stride = shape[2];
  common.type = int8                                 ? AttendArguments::kInt8
                : values.element_type() == ffi::BF16 ? AttendArguments::kBf16
                                                     : AttendArguments::kF32;
  const int64_t width = int8 ? 1 : common.type == AttendArguments::kBf16 ? 2 : 4;
  const auto found = tiles(starts, positions, std::min<int64_t>(*rows.typed_data(), tables.dimensions()[0]),
                           tables.dimensions()[1] * shape[1]);
  float* to = result->typed_data();
  std::memset(to, 0, tokens * heads * head * sizeof(float));
  parallel_for(pool, static_cast<int64_t>(found.size()) * kv_heads, 1, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> scratch;
    scratch.resize(attend_scratch(kTile * group, head));
    for (int64_t i = begin; i < end; ++i) {
      const Tile& tile = found[i / kv_heads];
      const int64_t k = i % kv_heads, offset = (tile.first * heads + k * group) * head;
      AttendArguments a = common;
      a.query = q.typed_data() + offset, a.result = to + offset;
      a.tokens = tile.tokens, a.position = positions.typed_data()[tile.first];
      a.pages = tables.typed_data() + tile.row * tables.dimensions()[1];
      a.pool = static_cast<const char*>(values.untyped_data()) + 2 * k * head * width;
      a.scales = int8 ? scales.typed_data() + 2 * k : nullptr;
      a.scratch = scratch.data();
      kernels().attend(a);
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace distaff

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(distaff_linear, distaff::linear, distaff::linear_binding());

XLA_FFI_DEFINE_HANDLER_SYMBOL(distaff_int8_linear, distaff::int8_linear, distaff::linear_binding());

XLA_FFI_DEFINE_HANDLER_SYMBOL(distaff_attention, distaff::attention,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<Cube>()
                                  .Arg<ffi::AnyBuffer>()
                                  .Arg<Cube>()
                                  .Arg<Numbers>()
                                  .Arg<Tables>()
                                  .Arg<Numbers>()
                                  .Arg<distaff::Number>()
                                  .Ret<Cube>()
                                  .Attr<int64_t>("window")
                                  .Attr<float>("scale"));

// The names of the instruction sets that this CPU can run, the best first, separated by spaces.
extern "C" const char* distaff_instruction_sets() {
  static const std::string names = [] {
    std::string joined;
    for (const distaff::Kernels* each : distaff::usable()) joined += (joined.empty() ? "" : " ") + std::string(each->name);
    return joined;
  }();
  return names.c_str();
}

// Uses the index-th of these instead of the first, for tests.
extern "C" void distaff_select(int index) { distaff::selected = distaff::usable().at(index); }

#pragma GCC visibility pop
