// XLA's call for a mixture of experts: groups the step's rows by expert, and shares (expert, panel) pairs among the threads.
//
// A row is one choice of a token. Each expert multiplies its own rows as a linear map does, so a row's bits depend on no
// other row. Everything is computed in f32, whatever the type of the weights; experts in u8 round their inputs to int8, and
// those in groups round them by groups.

#include <algorithm>
#include <vector>

#include "handlers.h"

namespace distaff {
namespace {

using Choices = ffi::Buffer<ffi::S32, 2>;
using FloatStack = ffi::Buffer<ffi::F32, 4>;
using HalfStack = ffi::Buffer<ffi::BF16, 4>;
using ByteStack = ffi::Buffer<ffi::U8, 5>;
using Fp8Stack = ffi::Buffer<ffi::U8, 4>;
using BlockScaleStack = ffi::Buffer<ffi::F32, 4>;
using GroupedStack = ffi::Buffer<ffi::U8, 6>;
using ScaleStack = ffi::Buffer<ffi::F16, 4>;

// How a product's inputs are rounded, if at all; weights of kScaled have scales all the same.
enum Kind { kWide, kScaled, kRounded, kGrouped };

// All experts' weights for one of the three products.
struct Stack {
  Panels panels;
  int64_t experts = 0, inputs = 0, outputs = 0;  // outputs are whole panels

  // Reads the index-th of three operands, its scales three further on, and with groups of 4 bits its lows at `lows`,
  // which then moves on; whether they are right.
  bool read(const ffi::RemainingArgs& operands, size_t index, size_t& lows) {
    if (auto floats = operands.get<FloatStack>(index)) {
      panels.floats = floats->typed_data();
      return set_shape(floats->dimensions());
    }
    if (auto halves = operands.get<HalfStack>(index)) {
      panels.halves = reinterpret_cast<const uint16_t*>(halves->untyped_data());
      return set_shape(halves->dimensions());
    }
    if (auto weights = operands.get<Fp8Stack>(index)) {
      panels.fp8 = weights->typed_data();
      return set_shape(weights->dimensions()) && read_scales(operands, index + 3);
    }
    if (auto weights = operands.get<GroupedStack>(index)) return read_groups(operands, index, *weights, lows);
    auto bytes = operands.get<ByteStack>(index);
    auto scales = operands.get<Matrix>(index + 3);
    if (!bytes || !scales || bytes->dimensions()[4] != 4 || !set_shape(bytes->dimensions())) return false;
    panels.bytes = bytes->typed_data(), panels.scales = scales->typed_data(), inputs *= 4;
    return scales->dimensions()[0] == experts && scales->dimensions()[1] == outputs;
  }

  // The scales of fp8.
  bool read_scales(const ffi::RemainingArgs& operands, size_t index) {
    if (auto scales = operands.get<Matrix>(index)) {
      panels.scales = scales->typed_data(), panels.span = inputs;
      return scales->dimensions()[0] == experts && scales->dimensions()[1] == outputs;
    }
    auto scales = operands.get<BlockScaleStack>(index);
    if (!scales) return false;
    panels.scales = scales->typed_data(), panels.span = kSpan;
    const auto shape = scales->dimensions();
    return shape[0] == experts && shape[1] == outputs / kPanel && shape[2] * kSpan == inputs && shape[3] == kPanel;
  }

  bool read_groups(const ffi::RemainingArgs& operands, size_t index, const GroupedStack& weights, size_t& lows) {
    const auto shape = weights.dimensions();
    const int64_t loads = shape[3];
    if (shape[4] != kPanel || shape[5] != 4 || (loads != 4 && loads != 8)) return false;
    experts = shape[0], outputs = shape[1] * kPanel, inputs = shape[2] * kGroup;
    panels.grouped = {weights.typed_data(), halves(operands, index + 3), nullptr};
    if (loads == 4) panels.grouped.lows = halves(operands, lows++);
    return panels.grouped.scales && (loads == 8 || panels.grouped.lows);
  }

  const uint16_t* halves(const ffi::RemainingArgs& operands, size_t index) const {
    auto found = operands.get<ScaleStack>(index);
    if (!found) return nullptr;
    const auto shape = found->dimensions();
    const bool belong = shape[0] == experts && shape[1] == outputs / kPanel && shape[2] == inputs / kGroup;
    return belong && shape[3] == kPanel ? reinterpret_cast<const uint16_t*>(found->untyped_data()) : nullptr;
  }

  Kind kind() const {
    if (panels.fp8) return kScaled;
    return panels.bytes ? kRounded : panels.grouped.weights ? kGrouped : kWide;
  }

  bool set_shape(ffi::Span<const int64_t> shape) {
    experts = shape[0], outputs = shape[1] * kPanel, inputs = shape[2];
    return shape[3] == kPanel;
  }

  void multiply(const Rows& x, int64_t expert, int64_t panel, float* y, int64_t rows, int64_t stride) const {
    panels.multiply(x, expert * outputs / kPanel + panel, y, rows, stride);
  }
};

struct Weights {
  Stack gate, up, down;

  bool read(const ffi::RemainingArgs& operands, int64_t width) {
    size_t lows = 6;
    if (!gate.read(operands, 0, lows) || !up.read(operands, 1, lows) || !down.read(operands, 2, lows)) return false;
    if (operands.size() != (gate.kind() == kWide ? 3 : lows)) return false;
    for (const Stack* each : {&gate, &up, &down})
      if (each->experts != gate.experts || each->kind() != gate.kind()) return false;
    return gate.inputs == width && up.inputs == width && down.outputs == width && up.outputs == gate.outputs &&
           down.inputs == gate.outputs;
  }

  // Values as inputs of a product.
  Rows rows(ffi::ThreadPool& pool, const float* values, int64_t count, int64_t depth) const {
    if (gate.kind() == kGrouped) return round_groups(pool, values, count, depth);
    return gate.kind() == kRounded ? round_rows(pool, values, count, depth) : Rows{values, depth};
  }
};

// Consecutive rows of one expert.
struct Group {
  int64_t expert, first, rows;
};

// The rows in the order of their experts. Choices that are no expert's are in no group.
struct Routing {
  std::vector<Group> groups;    // the largest first, so that the threads end together
  std::vector<int64_t> places;  // of each choice: its row, or -1
  int64_t rows = 0;

  Routing(const int32_t* choices, int64_t count, int64_t experts) : places(count, -1) {
    const auto is_expert = [&](int64_t i) { return choices[i] >= 0 && choices[i] < experts; };
    std::vector<int64_t> next(experts);
    for (int64_t i = 0; i < count; ++i)
      if (is_expert(i)) ++next[choices[i]];
    for (int64_t expert = 0; expert < experts; ++expert) {
      const int64_t size = next[expert];
      if (size) groups.push_back({expert, rows, size});
      next[expert] = rows, rows += size;
    }
    for (int64_t i = 0; i < count; ++i)
      if (is_expert(i)) places[i] = next[choices[i]]++;
    std::stable_sort(groups.begin(), groups.end(), [](const Group& a, const Group& b) { return a.rows > b.rows; });
  }

  // Calls body(group, panel) for each of the `panels` of every expert with rows.
  template <typename Body>
  void for_each(ffi::ThreadPool& pool, int64_t panels, const Body& body) const {
    for_each_panel(pool, std::vector<int64_t>(groups.size(), panels),
                   [&](size_t group, int64_t panel) { body(groups[group], panel); });
  }
};

constexpr int64_t kGrain = 1 << 14;  // values of a piece that is copied or summed

// Copies each token's row to the places of its choices.
void gather(ffi::ThreadPool& pool, const Matrix& x, const Routing& routing, int64_t choices, float* to) {
  const int64_t width = x.dimensions()[1];
  parallel_for(pool, routing.places.size(), 1 + kGrain / (width + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      if (const int64_t place = routing.places[i]; place >= 0)
        std::memcpy(to + place * width, x.typed_data() + i / choices * width, width * sizeof(float));
  });
}

// hidden[rows][inner] = silu(x times gate) * (x times up)
void enter(ffi::ThreadPool& pool, const Rows& x, const Weights& weights, const Routing& routing, float* hidden) {
  const int64_t inner = weights.gate.outputs;
  routing.for_each(pool, inner / kPanel, [&](const Group& group, int64_t panel) {
    static thread_local std::vector<float> up;
    up.resize(group.rows * kPanel);
    const Rows own = x.from(group.first);
    float* gate = hidden + group.first * inner + panel * kPanel;
    weights.gate.multiply(own, group.expert, panel, gate, group.rows, inner);
    weights.up.multiply(own, group.expert, panel, up.data(), group.rows, kPanel);
    kernels().swiglu(gate, up.data(), group.rows, inner);
  });
}

// out[rows][width] = x times down
void leave(ffi::ThreadPool& pool, const Rows& x, const Weights& weights, const Routing& routing, float* out) {
  const int64_t width = weights.down.outputs;
  routing.for_each(pool, width / kPanel, [&](const Group& group, int64_t panel) {
    float* to = out + group.first * width + panel * kPanel;
    weights.down.multiply(x.from(group.first), group.expert, panel, to, group.rows, width);
  });
}

// Each token's outputs by weight, in the order of its choices.
void add_up(ffi::ThreadPool& pool, const float* out, const Matrix& factors, const Routing& routing, Matrix& y) {
  const int64_t tokens = y.dimensions()[0], width = y.dimensions()[1], choices = factors.dimensions()[1];
  std::memset(y.typed_data(), 0, tokens * width * sizeof(float));
  parallel_for(pool, tokens, 1 + kGrain / (width * choices + 1), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * choices; i < end * choices; ++i)
      if (const int64_t place = routing.places[i]; place >= 0)
        kernels().add_weighted(y.typed_data() + i / choices * width, out + place * width, factors.typed_data()[i], width);
  });
}

// x [T, D], each token's experts and their weights [T, X], the panels of gate, up and down, if they are u8 or fp8 the scales of
// each, and then the lows of those in groups of 4 bits. Gives [T, D].
ffi::Error experts(ffi::ThreadPool pool, Matrix x, Choices choices, Matrix factors, ffi::RemainingArgs operands,
                   ffi::Result<Matrix> result) {
  const int64_t tokens = x.dimensions()[0], width = x.dimensions()[1];
  Weights weights;
  if (!weights.read(operands, width) || !(choices.dimensions() == factors.dimensions()) ||
      choices.dimensions()[0] != tokens || !(result->dimensions() == x.dimensions()))
    return invalid(
        "experts: expected x and a result [T, D], choices and weights [T, X], panels [E, F / 32, D, 32] twice and "
        "[E, D / 32, F, 32], of f32, bf16, of u8 with scales (int8 [E, F / 32, D / 4, 32, 4]), or in groups of u8 with f16 scales and lows");
  const Routing routing(choices.typed_data(), choices.element_count(), weights.gate.experts);
  static thread_local std::vector<float> gathered, hidden, out;  // stay allocated
  const int64_t rows = routing.rows, inner = weights.gate.outputs;
  gathered.resize(rows * width), hidden.resize(rows * inner), out.resize(rows * width);
  gather(pool, x, routing, choices.dimensions()[1], gathered.data());
  enter(pool, weights.rows(pool, gathered.data(), rows, width), weights, routing, hidden.data());
  leave(pool, weights.rows(pool, hidden.data(), rows, inner), weights, routing, out.data());
  add_up(pool, out.data(), factors, routing, *result);
  return ffi::Error::Success();
}

}  // namespace
}  // namespace distaff

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(distaff_experts, distaff::experts,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<distaff::Matrix>()
                                  .Arg<distaff::Choices>()
                                  .Arg<distaff::Matrix>()
                                  .RemainingArgs()
                                  .Ret<distaff::Matrix>());

#pragma GCC visibility pop
