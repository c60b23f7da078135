// The kernels of one instruction set, as a table of functions on plain memory.
//
// kernels.inc implements them; it is compiled once for each instruction set, with that set's compiler flags. Files
// compiled so include nothing from the standard library but C headers: the linker may keep any copy of an inline
// function, also one with instructions that the CPU lacks.
//
// Weights are panels of 32 outputs; a panel of F32 is [inputs][32], one of u8 [inputs / 4][32][4], where a weight w is
// stored as w + 128, one of fp8 (e4m3) [inputs][32]. The order in which a row's products are added depends on neither the number of rows nor the threads.

#ifndef DISTAFF_KERNELS_H_
#define DISTAFF_KERNELS_H_

#include <stdint.h>

namespace distaff {

constexpr int64_t kPanel = 32;

constexpr int64_t kNarrow = 16;  // columns of a panel of few outputs

constexpr int64_t kBlock = 64;  // positions of keys that are processed together

struct AttendArguments {
  enum Type { kF32, kBf16, kInt8 };
  // Of the first token and head: [tokens][query_stride], a token's `group` heads side by side.
  const float* query;
  float* result;
  int64_t tokens, query_stride, group, head;
  // The first token's position; the others follow. window 0: all earlier positions are visible.
  int64_t position, window;
  float scale;
  const int32_t* pages;
  int64_t page_size;
  // The key head's keys; a value is behind its key, and a position's next entry is pool_stride values away.
  const void* pool;
  const float* scales;  // of an int8 pool: key and value, scale_stride apart; or null
  int64_t pool_stride, scale_stride;
  Type type;
  float* scratch;  // attend_scratch(tokens * group, head) floats
};

constexpr int64_t attend_scratch(int64_t queries, int64_t head) {
  return queries * (2 * head + kBlock + 2) + 3 * kBlock * head;
}

constexpr int64_t kGroup = 32;  // inputs that share a scale
constexpr int64_t kSpan = 128;  // of fp8 in blocks

// Rows rounded to int8 in groups: [rows][groups * 32] values, and [rows][groups] of each other.
struct RoundedGroups {
  int8_t* values;
  float* scales;
  int32_t* sums;  // of the values
  float* shares;  // scale * sum
  int64_t groups;
};

// A panel of weights in groups of 32 inputs: u8 [groups][4][32][4] with 4 bits, where a byte's halves are inputs
// 4 p + i and 16 + 4 p + i of the group, or [groups][8][32][4] with 8 bits, w + 128. Scales and lows (4 bits) are
// f16 [groups][32].
struct GroupedPanel {
  const uint8_t* weights;
  const uint16_t* scales;
  const uint16_t* lows;
};

constexpr int64_t kRacing = 128;  // ids that race at once; few blocks have one that can still win

struct Kernels {
  const char* name;
  // One panel's 32 columns of y[rows][stride]: x[rows][depth] times the panel.
  void (*linear)(const float* x, const float* panel, float* y, int64_t rows, int64_t depth, int64_t stride);
  void (*linear_bf16)(const float* x, const uint16_t* panel, float* y, int64_t rows, int64_t depth, int64_t stride);
  // The same with a panel of fp8, of which `span` inputs share the 32 scales of a row of `scales`.
  void (*fp8_linear)(const float* x, const uint8_t* panel, const float* scales, int64_t span, float* y, int64_t rows,
                     int64_t depth, int64_t stride);
  // Rounds a row to int8 with one scale, which it returns; `sum` is that of the rounded values.
  float (*quantize)(const float* x, int8_t* rounded, int64_t depth, int32_t* sum);
  // As `linear`, with rounded rows, their scales and sums, a panel of u8 and its 32 scales.
  void (*int8_linear)(const int8_t* x, const float* scales, const int32_t* sums, const uint8_t* panel,
                      const float* panel_scales, float* y, int64_t rows, int64_t depth, int64_t stride);
  // Rounds a row.
  void (*quantize_groups)(const float* x, const RoundedGroups& to, int64_t row);
  // As `linear`, with rounded rows and a panel in groups of 4 or of 8 bits.
  void (*grouped4)(const RoundedGroups& x, const GroupedPanel& panel, float* y, int64_t rows, int64_t stride);
  void (*grouped8)(const RoundedGroups& x, const GroupedPanel& panel, float* y, int64_t rows, int64_t stride);
  // Attention of some tokens of a sequence to its pages; the head size is a multiple of 32.
  void (*attend)(const AttendArguments& arguments);
  // The sum of a row, and a row divided by its root mean square, times `scale`.
  float (*sum)(const float* x, int64_t count);
  void (*rms_norm)(const float* x, const float* scale, float epsilon, float* y, int64_t depth);
  // The weights e^((x - largest) / temperature), and the id that is drawn from those of at least `floor`. Behind
  // `count` the weights are 0 up to a multiple of kRacing. A key is two words.
  void (*temper)(const float* x, int64_t count, float temperature, float* weights);
  int64_t (*race)(const float* weights, int64_t count, float floor, const uint32_t* key);
  // A panel's 32 columns of gate[rows][stride] become silu(gate) * up[rows][32].
  void (*swiglu)(float* gate, const float* up, int64_t rows, int64_t stride);
  // y += weight * x; `count` is a multiple of 32.
  void (*add_weighted)(float* y, const float* x, float weight, int64_t count);
  // A narrow panel's 16 columns of y[rows][stride]: x[rows][depth] times the panel [depth][16].
  void (*narrow)(const float* x, const float* panel, float* y, int64_t rows, int64_t depth, int64_t stride);
  void (*narrow_bf16)(const float* x, const uint16_t* panel, float* y, int64_t rows, int64_t depth, int64_t stride);
  // Adds x[rows][depth] times `count` panels [depth][32] to count * 32 columns of each row, from y[row][column] on.
  void (*add_panels)(const float* x, const float* panels, float* const* y, int64_t column, int64_t rows, int64_t depth,
                     int64_t count);
  void (*add_panels_bf16)(const float* x, const uint16_t* panels, float* const* y, int64_t column, int64_t rows,
                          int64_t depth, int64_t count);
};

extern const Kernels kPortable;
#if defined(__x86_64__)
extern const Kernels kAvx2;
extern const Kernels kAvxVnni __attribute__((weak));  // not built by a compiler that does not know AVX-VNNI
extern const Kernels kAvx512;
#elif defined(__aarch64__)
extern const Kernels kNeonDotprod;
#endif

}  // namespace distaff

#endif  // DISTAFF_KERNELS_H_
