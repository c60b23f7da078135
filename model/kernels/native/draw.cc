// XLA's call for draws: a thread computes all of a row.
//
// Weights are between 0 and 1, so they are ordered as their bits are. A histogram over the upper half of the bits shows
// where a limit lies, and only the weights of one bin are sorted.

#include <algorithm>
#include <functional>
#include <limits>
#include <numeric>
#include <utility>
#include <vector>

#include "handlers.h"

namespace distaff {
namespace {

using Vector = ffi::Buffer<ffi::F32, 1>;
using Numbers = ffi::Buffer<ffi::S32, 1>;
using Keys = ffi::Buffer<ffi::U32, 2>;

constexpr uint32_t kOne = 0x3F800000;  // 1.0f
constexpr int64_t kBins = (kOne >> 16) + 1;

int64_t bin_of(float weight) {
  uint32_t bits;
  std::memcpy(&bits, &weight, sizeof bits);
  return std::min(bits, kOne) >> 16;
}

// The weights of a row by size, the largest first.
class Ranks {
 public:
  Ranks(const float* weights, int64_t size) : weights_(weights), size_(size), counts_(kBins), masses_(kBins) {
    for (int64_t i = 0; i < size; ++i) {
      if (!(weights[i] > 0)) continue;
      const int64_t bin = bin_of(weights[i]);
      ++counts_[bin], masses_[bin] += weights[i];
    }
  }

  // The smallest weight that is kept: of the k largest, those that make up the part top_p of their sum.
  float floor(int64_t k, float top_p) const {
    const auto [mass, smallest] = largest(k);
    return top_p < 1 ? std::max(smallest, reaching(top_p * mass)) : smallest;
  }

 private:
  // The sum of the k largest weights, and the last of them; 0 if there are fewer.
  std::pair<double, float> largest(int64_t k) const {
    double mass = 0;
    for (int64_t bin = kBins; bin-- > 0; k -= counts_[bin], mass += masses_[bin]) {
      if (counts_[bin] < k) continue;
      const std::vector<float> best = members(bin);
      return {std::accumulate(best.begin(), best.begin() + k, mass), best[k - 1]};
    }
    return {mass, 0.0f};
  }

  // The last of the largest weights whose sum is at least `mass`.
  float reaching(double mass) const {
    for (int64_t bin = kBins; bin-- > 0; mass -= masses_[bin]) {
      if (masses_[bin] == 0 || masses_[bin] < mass) continue;
      const std::vector<float> best = members(bin);
      for (float weight : best)
        if ((mass -= weight) <= 0) return weight;
      return best.back();
    }
    return 0;
  }

  std::vector<float> members(int64_t bin) const {
    std::vector<float> found;
    found.reserve(counts_[bin]);
    for (int64_t i = 0; i < size_; ++i)
      if (weights_[i] > 0 && bin_of(weights_[i]) == bin) found.push_back(weights_[i]);
    std::sort(found.begin(), found.end(), std::greater<float>());
    return found;
  }

  const float* weights_;
  int64_t size_;
  std::vector<int64_t> counts_;
  std::vector<double> masses_;
};

// logits [B, V]; for each row a temperature (0: nothing is drawn), top-k (0 for all), top-p, min-p and a key of two words.
// Gives the drawn id, and the smallest weight of an id that could be drawn.
ffi::Error draw(ffi::ThreadPool pool, Matrix logits, Vector temperatures, Numbers top_k, Vector top_p, Vector min_p,
                Keys keys, ffi::Result<Numbers> ids, ffi::Result<Vector> floors) {
  const int64_t rows = logits.dimensions()[0], size = logits.dimensions()[1];
  for (int64_t count : {temperatures.dimensions()[0], top_k.dimensions()[0], top_p.dimensions()[0],
                        min_p.dimensions()[0], keys.dimensions()[0], ids->dimensions()[0], floors->dimensions()[0]})
    if (count != rows || size < 1 || keys.dimensions()[1] != 2)
      return invalid("draw: expected logits [B, V] with V > 0, settings [B], keys [B, 2] and results [B]");
  parallel_for(pool, rows, 1, [&](int64_t begin, int64_t end) {
    static thread_local std::vector<float> weights;
    weights.assign((size + kRacing - 1) / kRacing * kRacing, 0);
    for (int64_t row = begin; row < end; ++row) {
      float& floor = floors->typed_data()[row] = 0;
      ids->typed_data()[row] = 0;
      const float temperature = temperatures.typed_data()[row], part = top_p.typed_data()[row];
      if (!(temperature > 0)) continue;
      kernels().temper(logits.typed_data() + row * size, size, temperature, weights.data());
      const int64_t most = top_k.typed_data()[row], k = most > 0 ? most : std::numeric_limits<int64_t>::max();
      if (k < size || part < 1) floor = Ranks(weights.data(), size).floor(k, part);
      floor = std::max(floor, min_p.typed_data()[row]);
      ids->typed_data()[row] = kernels().race(weights.data(), size, floor, keys.typed_data() + 2 * row);
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace distaff

#pragma GCC visibility push(default)

XLA_FFI_DEFINE_HANDLER_SYMBOL(distaff_draw, distaff::draw,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<distaff::Matrix>()
                                  .Arg<distaff::Vector>()
                                  .Arg<distaff::Numbers>()
                                  .Arg<distaff::Vector>()
                                  .Arg<distaff::Vector>()
                                  .Arg<distaff::Keys>()
                                  .Ret<distaff::Numbers>()
                                  .Ret<distaff::Vector>());

#pragma GCC visibility pop
