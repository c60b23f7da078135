// Runs every kernel of one instruction set on buffers of exactly the size that it may touch, for the sanitizers, and
// compares with the plain formula. Exits with 1 at the first difference.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "kernels.h"

using distaff::kBlock;
using distaff::kGroup;
using distaff::kPanel;

namespace {

std::mt19937 random_bits(1);

std::vector<float> floats(int64_t count) {
  std::normal_distribution<float> normal;
  std::vector<float> drawn(count);
  for (float& each : drawn) each = normal(random_bits);
  return drawn;
}

void expect(bool right, const char* what) {
  if (right) return;
  std::printf("%s differs\n", what);
  std::exit(1);
}

void check_linear(const distaff::Kernels& kernels, int64_t rows, int64_t depth) {
  const auto x = floats(rows * depth), panel = floats(depth * kPanel);
  std::vector<float> y(rows * kPanel);
  kernels.linear(x.data(), panel.data(), y.data(), rows, depth, kPanel);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t f = 0; f < kPanel; ++f) {
      double sum = 0;
      for (int64_t d = 0; d < depth; ++d) sum += double(x[r * depth + d]) * panel[d * kPanel + f];
      expect(std::abs(sum - y[r * kPanel + f]) < 1e-4 * depth, "linear");
    }
}

void check_int8(const distaff::Kernels& kernels, int64_t rows, int64_t depth) {
  const int64_t padded = (depth + 3) / 4 * 4;
  const auto x = floats(rows * depth), scales = floats(kPanel);
  std::vector<uint8_t> panel(padded * kPanel);
  for (uint8_t& each : panel) each = 1 + random_bits() % 255;
  std::vector<int8_t> rounded(rows * padded);
  std::vector<float> row_scales(rows), y(rows * kPanel);
  std::vector<int32_t> sums(rows);
  for (int64_t r = 0; r < rows; ++r)
    row_scales[r] = kernels.quantize(x.data() + r * depth, rounded.data() + r * padded, depth, &sums[r]);
  kernels.int8_linear(rounded.data(), row_scales.data(), sums.data(), panel.data(), scales.data(), y.data(), rows, depth,
                      kPanel);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t f = 0; f < kPanel; ++f) {
      int64_t sum = 0;
      for (int64_t d = 0; d < padded; ++d)
        sum += int64_t(rounded[r * padded + d]) * (int64_t(panel[d / 4 * 4 * kPanel + 4 * f + d % 4]) - 128);
      const float expected = float(sum) * row_scales[r] * scales[f];
      expect(std::abs(expected - y[r * kPanel + f]) <= 1e-5f * std::abs(expected), "int8_linear");
    }
}

float widen_fp8(uint8_t bits) {  // a finite number of e4m3
  const int exponent = bits >> 3 & 15, fraction = bits & 7;
  const float size = exponent ? std::ldexp(8.f + fraction, exponent - 10) : std::ldexp(float(fraction), -9);
  return bits & 128 ? -size : size;
}

void check_fp8(const distaff::Kernels& kernels, int64_t rows, int64_t depth, int64_t span) {
  const auto x = floats(rows * depth), scales = floats(depth / span * kPanel);
  std::vector<uint8_t> panel(depth * kPanel);
  for (uint8_t& each : panel) each = random_bits() % 127 | (random_bits() & 128);
  std::vector<float> y(rows * kPanel);
  kernels.fp8_linear(x.data(), panel.data(), scales.data(), span, y.data(), rows, depth, kPanel);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t f = 0; f < kPanel; ++f) {
      double sum = 0, size = 0;
      for (int64_t d = 0; d < depth; ++d) {
        const double scale = scales[d / span * kPanel + f];
        const double term = double(x[r * depth + d]) * widen_fp8(panel[d * kPanel + f]) * scale;
        sum += term, size += std::abs(term);
      }
      expect(std::abs(sum - y[r * kPanel + f]) <= 1e-5 * size, "fp8_linear");
    }
}

void check_rows(const distaff::Kernels& kernels, int64_t depth) {
  const auto x = floats(depth), scale = floats(depth);
  std::vector<float> y(depth);
  kernels.rms_norm(x.data(), scale.data(), 1e-5f, y.data(), depth);
  double sum = 0, squares = 0;
  for (float each : x) sum += each, squares += double(each) * each;
  expect(std::abs(sum - kernels.sum(x.data(), depth)) < 1e-4, "sum");
  for (int64_t d = 0; d < depth; ++d)
    expect(std::abs(x[d] / std::sqrt(squares / depth + 1e-5) * scale[d] - y[d]) < 1e-4, "rms_norm");
}

float widen(uint16_t half) {  // a positive normal number of f16
  return std::ldexp(1024.f + (half & 1023), (half >> 10) - 25);
}

// The result's rows are `stride` apart, and the numbers between its columns and the next row stay as they are.
void check_grouped(const distaff::Kernels& kernels, int64_t rows, int64_t groups, bool nibbles, int64_t stride) {
  const int64_t depth = groups * kGroup;
  const auto x = floats(rows * depth);
  std::vector<int8_t> values(rows * depth);
  std::vector<float> scales(rows * groups), shares(rows * groups), y((rows - 1) * stride + kPanel, 7);
  std::vector<int32_t> sums(rows * groups);
  const distaff::RoundedGroups rounded = {values.data(), scales.data(), sums.data(), shares.data(), groups};
  for (int64_t r = 0; r < rows; ++r) kernels.quantize_groups(x.data() + r * depth, rounded, r);
  std::vector<uint8_t> weights(depth * kPanel / (nibbles ? 2 : 1));
  std::vector<uint16_t> factors(groups * kPanel), lows(nibbles ? groups * kPanel : 0);
  for (uint8_t& each : weights) each = random_bits();
  for (uint16_t& each : factors) each = 0x2c00 + random_bits() % 0x1000;
  for (uint16_t& each : lows) each = 0x2c00 + random_bits() % 0x1000;
  const distaff::GroupedPanel panel = {weights.data(), factors.data(), nibbles ? lows.data() : nullptr};
  (nibbles ? kernels.grouped4 : kernels.grouped8)(rounded, panel, y.data(), rows, stride);
  for (int64_t at = 0; at < int64_t(y.size()); ++at) expect(at % stride < kPanel || y[at] == 7, "grouped's gap");
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t f = 0; f < kPanel; ++f) {
      double sum = 0;
      for (int64_t d = 0; d < depth; ++d) {
        const int64_t g = d / kGroup, load = d % kGroup / 4, high = nibbles && load >= 4;
        const int64_t at = g * (nibbles ? 4 : 8) + (high ? load - 4 : load);
        const int byte = weights[(at * kPanel + f) * 4 + d % 4];
        const double weight = nibbles ? double(high ? byte >> 4 : byte & 15) * widen(factors[g * kPanel + f]) +
                                            widen(lows[g * kPanel + f])
                                      : double(byte - 128) * widen(factors[g * kPanel + f]);
        sum += double(values[r * depth + d]) * scales[r * groups + g] * weight;
      }
      expect(std::abs(sum - y[r * stride + f]) < 1e-4 * depth, "grouped");
    }
}

void check_attention(const distaff::Kernels& kernels, int64_t tokens, int64_t position, int64_t page, int64_t window) {
  const int64_t head = 64, group = 3, end = position + tokens, pages = (end + page - 1) / page;
  const auto query = floats(tokens * group * head), pool = floats(pages * page * 2 * head);
  std::vector<float> result(query.size()), scratch(distaff::attend_scratch(tokens * group, head));
  std::vector<int32_t> table(pages);
  for (int64_t i = 0; i < pages; ++i) table[i] = pages - 1 - i;
  distaff::AttendArguments a = {};
  a.query = query.data(), a.result = result.data(), a.tokens = tokens, a.query_stride = group * head;
  a.group = group, a.head = head, a.position = position, a.window = window, a.scale = 0.125f;
  a.pages = table.data(), a.page_size = page, a.pool = pool.data(), a.pool_stride = 2 * head;
  a.type = distaff::AttendArguments::kF32, a.scratch = scratch.data();
  kernels.attend(a);
  for (int64_t i = 0; i < tokens * group; ++i) {
    const int64_t at = position + i / group, first = window && at >= window ? at - window + 1 : 0;
    std::vector<double> sums(head);
    double total = 0;
    for (int64_t key = first; key <= at; ++key) {
      const float* entry = pool.data() + (table[key / page] * page + key % page) * 2 * head;
      double score = 0;
      for (int64_t d = 0; d < head; ++d) score += double(query[i * head + d]) * entry[d];
      const double weight = std::exp(0.125 * score);
      total += weight;
      for (int64_t d = 0; d < head; ++d) sums[d] += weight * entry[head + d];
    }
    for (int64_t d = 0; d < head; ++d)
      expect(std::abs(sums[d] / total - result[i * head + d]) < 1e-4, "attention");
  }
}

void check_draw(const distaff::Kernels& kernels, int64_t size) {
  const auto x = floats(size);
  std::vector<float> weights((size + distaff::kRacing - 1) / distaff::kRacing * distaff::kRacing);
  kernels.temper(x.data(), size, 0.5f, weights.data());
  const float largest = *std::max_element(x.begin(), x.end());
  for (int64_t i = 0; i < size; ++i) expect(std::abs(std::exp(2 * (x[i] - largest)) - weights[i]) < 1e-6, "temper");
  const uint32_t key[2] = {static_cast<uint32_t>(size), 7};
  for (float floor : {0.0f, 0.3f, 1.0f}) {
    const int64_t id = kernels.race(weights.data(), size, floor, key);
    expect(id >= 0 && id < size && weights[id] >= floor, "race");
  }
}

void check_experts(const distaff::Kernels& kernels, int64_t rows, int64_t stride) {
  auto gate = floats((rows - 1) * stride + kPanel), up = floats(rows * kPanel);
  for (float& each : gate) each *= 30;
  const auto before = gate;
  kernels.swiglu(gate.data(), up.data(), rows, stride);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t i = 0; i < stride && r * stride + i < int64_t(gate.size()); ++i) {
      const double x = before[r * stride + i], expected = i < kPanel ? x / (1 + std::exp(-x)) * up[r * kPanel + i] : x;
      expect(std::abs(expected - gate[r * stride + i]) <= 1e-6 * (1 + std::abs(expected)), "swiglu");
    }
  auto y = floats(rows * kPanel);
  const auto sum = y;
  kernels.add_weighted(y.data(), up.data(), 0.7f, rows * kPanel);
  for (int64_t i = 0; i < rows * kPanel; ++i)
    expect(std::abs(sum[i] + 0.7f * up[i] - y[i]) <= 1e-6 * (1 + std::abs(y[i])), "add_weighted");
}

}  // namespace

int main() {
  const distaff::Kernels& kernels = distaff::TABLE;
  for (int64_t rows : {1, 2, 3, 7, 8, 13, 30})
    for (int64_t depth : {1, 3, 16, 37, 300}) {
      check_linear(kernels, rows, depth);
      check_int8(kernels, rows, depth);
      check_fp8(kernels, rows, depth, depth);
    }
  for (int64_t rows : {1, 13, 30})
    for (int64_t blocks : {1, 3}) check_fp8(kernels, rows, blocks * distaff::kSpan, distaff::kSpan);
  for (int64_t depth : {1, 15, 64, 300}) check_rows(kernels, depth);
  for (int64_t size : {1, 5, 127, 128, 300, 1000}) check_draw(kernels, size);
  for (int64_t rows : {1, 2, 7}) {
    check_experts(kernels, rows, kPanel);
    check_experts(kernels, rows, 3 * kPanel);
  }
  for (int64_t rows : {1, 2, 3, 7, 8, 13, 30})
    for (int64_t groups : {1, 3, 12, 13, 30})
      for (bool nibbles : {false, true})
        for (int64_t panels : {1, 3}) check_grouped(kernels, rows, groups, nibbles, panels * kPanel);
  for (int64_t page : {1, 8, 16, 100})
    for (int64_t window : {0, 5, 70}) {
      check_attention(kernels, 1, 0, page, window);
      check_attention(kernels, 1, 130, page, window);
      check_attention(kernels, 16, 60, page, window);
    }
  std::printf("%s\n", kernels.name);
}
