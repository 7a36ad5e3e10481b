// The linear map of few rows with an 8-bit weight: x is rounded to 16 bits, a high and a low byte, and both are
// multiplied with the bytes of the weight on their one way through the registers. All sums are exact.
#include "common/amx.h"
#include "common/bytes.h"
#include "common/vec.h"
#include "skinny_linear/outputs.h"
#include "skinny_linear/skinny_linear.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace {

using skinny::Call;
using skinny::kPanelColumns;
using skinny::RoundedRows;

constexpr float kLargest = 32639.0f;  // 256 * 127 + 127
constexpr int kHalves = 2;            // of a rounded number
constexpr int64_t kAhead = 4096;      // bytes of the weight behind those that are read, asked of the memory

// Rows that are multiplied with a panel at a time.
#if defined(__AVX512F__)
constexpr int kRows = 8;
#else
constexpr int kRows = 2;
#endif

// sums[r][half][c] = the products of row r with the panel's column c, of the high bytes and of the low ones.
using Sums = int32_t[kRows][kHalves][kPanelColumns];

template <int kCount>
void multiply_panel(const RoundedRows& in, int64_t row, const uint8_t* panel, Sums& sums) {
  const int8_t* x = in.row(row);
  for (int64_t column = 0; column < kPanelColumns; column += kLanes) {
    VecI sum[kCount][kHalves] = {};
    for (int64_t k = 0; k < in.row_bytes; k += 4) {
      const UnsignedBytes weights(load_quads(panel + k * kPanelColumns + column * 4));
#pragma GCC unroll 8
      for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 2
        for (int half = 0; half < kHalves; ++half) {
          const SignedBytes inputs(load_quad(x + (r * kHalves + half) * in.stride + k));
          sum[r][half] += multiply_pairs(weights.even, inputs.even) + multiply_pairs(weights.odd, inputs.odd);
        }
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) {
      std::memcpy(sums[r][0] + column, &sum[r][0], sizeof(VecI));
      std::memcpy(sums[r][1] + column, &sum[r][1], sizeof(VecI));
    }
  }
}

#if defined(__AVX512F__)
// The same by instructions that some processors with AVX-512 lack.
template <int kCount>
__attribute__((target("avx512vnni"))) void multiply_panel_vnni(const RoundedRows& in, int64_t row, const uint8_t* panel,
                                                               Sums& sums) {
  const int8_t* x = in.row(row);
  __m512i sum[kCount][kHalves] = {};
  for (int64_t k = 0; k < in.row_bytes; k += 4) {
    const __m512i weights = _mm512_loadu_si512(panel + k * kPanelColumns);
    _mm_prefetch(reinterpret_cast<const char*>(panel + k * kPanelColumns + kAhead), _MM_HINT_T0);
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 2
      for (int half = 0; half < kHalves; ++half) {
        int32_t quad;
        __builtin_memcpy(&quad, x + (r * kHalves + half) * in.stride + k, sizeof quad);
        sum[r][half] = _mm512_dpbusd_epi32(sum[r][half], weights, _mm512_set1_epi32(quad));
      }
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kCount; ++r) {
    _mm512_storeu_si512(sums[r][0], sum[r][0]);
    _mm512_storeu_si512(sums[r][1], sum[r][1]);
  }
}
#endif

template <int kCount>
FASTSSL_INLINE void multiply(bool vnni, const RoundedRows& in, int64_t row, const uint8_t* panel, Sums& sums) {
#if defined(__AVX512F__)
  if (vnni) return multiply_panel_vnni<kCount>(in, row, panel, sums);
#endif
  (void)vnni;
  multiply_panel<kCount>(in, row, panel, sums);
}

// The same for a number of rows that is known only here.
void multiply_any(int64_t count, bool vnni, const RoundedRows& in, int64_t row, const uint8_t* panel, Sums& sums) {
  switch (count) {
    case 1:
      return multiply<1>(vnni, in, row, panel, sums);
    case 2:
      return multiply<2>(vnni, in, row, panel, sums);
#if defined(__AVX512F__)
    case 3:
      return multiply<3>(vnni, in, row, panel, sums);
    case 4:
      return multiply<4>(vnni, in, row, panel, sums);
    case 5:
      return multiply<5>(vnni, in, row, panel, sums);
    case 6:
      return multiply<6>(vnni, in, row, panel, sums);
    case 7:
      return multiply<7>(vnni, in, row, panel, sums);
    default:
      return multiply<8>(vnni, in, row, panel, sums);
#endif
  }
}

#if defined(__AVX512F__)
// Tiles 0 to 3 hold sums, high and low bytes of eight rows of x each; 4 these bytes and 5 the weights, 16 quads of all
// 16 columns, which stand in memory just so; 6 and 7 are their shorter selves at the end of the rows.
constexpr int kInputs = 4, kEnd = 6, kGroups = 4;

// The products of kCount times kRows rows with a panel, by the matrix unit.
template <int kCount>
void multiply_panel_amx(const RoundedRows& in, int64_t row, const uint8_t* panel, Sums* sums) {
  const int8_t* x = in.row(row);
  static_assert(kRows * kHalves == kTileRows && sizeof(Sums) == kTileRows * kTileBytes);
  const auto add = [&](int64_t k, auto inputs) {
    constexpr int kLeft = decltype(inputs)::value;
    load_tile<kLeft + 1>(panel + k * kPanelColumns, kTileBytes);
    for_each_tile<kCount>([&](auto group) {
      load_tile<kLeft>(x + group.value * kTileRows * in.stride + k, in.stride);
      multiply_bytes<group.value, kLeft, kLeft + 1>();
    });
  };
  for_each_tile<kCount>([](auto group) { clear_tile<group.value>(); });
  int64_t k = 0;
  for (; k + kTileBytes <= in.row_bytes; k += kTileBytes) {
    for (int64_t line = 0; line < kTileRows; ++line)
      _mm_prefetch(reinterpret_cast<const char*>(panel + k * kPanelColumns + kAhead + line * kTileBytes), _MM_HINT_T0);
    add(k, Count<kInputs>{});
  }
  if (k < in.row_bytes) add(k, Count<kEnd>{});
  for_each_tile<kCount>([&](auto group) { store_tile<group.value>(sums + group.value, kTileBytes); });
}

void multiply_groups(int64_t count, const RoundedRows& in, int64_t row, const uint8_t* panel, Sums* sums) {
  if (count == 1) return multiply_panel_amx<1>(in, row, panel, sums);
  if (count == 2) return multiply_panel_amx<2>(in, row, panel, sums);
  if (count == 3) return multiply_panel_amx<3>(in, row, panel, sums);
  return multiply_panel_amx<kGroups>(in, row, panel, sums);
}
#endif

// Products of rows [row, row + count) with the `columns` columns from `column`, a whole panel but for the last.
void scale_sums(const Call& a, const Sums& sums, int64_t row, int64_t count, int64_t column, int64_t columns) {
  for (int64_t r = 0; r < count; ++r) {
    // The weights were stored plus 128.
    const int32_t high_shift = 128 * a.rounded.sums[(row + r) * kHalves];
    const int32_t low_shift = 128 * a.rounded.sums[(row + r) * kHalves + 1];
    float* out = a.products + (row + r) * a.outputs + column;
    for_each_vector(columns, [&](int64_t c, auto part) {
      const VecF high = __builtin_convertvector(load_quads(sums[r][0] + c) - high_shift, VecF);
      const VecF low = __builtin_convertvector(load_quads(sums[r][1] + c) - low_shift, VecF);
      const VecF scale = load(a.weight_scale + column + c, part) * a.rounded.scales[row + r];
      store(out + c, (high * 256.0f + low) * scale, part);
    });
  }
}

// body(panel, its first column, how many it has) for columns [begin, end).
template <class Body>
FASTSSL_INLINE void for_each_panel(const Call& a, int64_t begin, int64_t end, Body body) {
  for (int64_t column = begin; column < end; column += kPanelColumns) {
    want_ahead(a, column);
    body(static_cast<const uint8_t*>(a.weight) + column * a.rounded.row_bytes, column,
         end - column < kPanelColumns ? end - column : kPanelColumns);
  }
}

#if defined(__AVX512F__)
void run_tiles(const Call& a, int64_t begin, int64_t end) {
  const int64_t rest = a.rounded.row_bytes % kTileBytes;
  const int64_t rows = a.rows < kRows ? a.rows * kHalves : kTileRows;  // fewer are loaded and multiplied sooner
  const TileShape inputs{rows, kTileBytes}, weights{kTileRows, kTileBytes};
  const Tiles tiles({inputs, inputs, inputs, inputs, inputs, weights, {rows, rest}, {rest / 4, kTileBytes}});
  Sums sums[kGroups];
  for_each_panel(a, begin, end, [&](const uint8_t* panel, int64_t column, int64_t columns) {
    for (int64_t row = 0; row < a.rows; row += kGroups * kRows) {
      const int64_t left = a.rows - row;
      multiply_groups((left + kRows - 1) / kRows, a.rounded, row, panel, sums);
      for (int64_t r = 0; r < left && r < kGroups * kRows; r += kRows)
        scale_sums(a, sums[r / kRows], row + r, left - r < kRows ? left - r : kRows, column, columns);
    }
  });
}
#endif

}  // namespace

void skinny_round(const float* x, int64_t rows, int64_t width, const RoundedRows& out) {
  for (int64_t row = 0; row < rows; ++row, x += width) {
    VecF poison{};
    const float largest = max_over_row(width, [&](int64_t j, auto part) {
      const VecF value = load(x + j, part);
      poison += value - value;
      return as_float(as_bits(value) & 0x7fffffffu);
    });
    const float broken = reduce_add(poison);  // NaN where a number is not finite, else 0
    const float factor = largest < 1e-30f || broken != broken ? 0.0f : kLargest / largest;
    int8_t* high_bytes = out.row(row);
    VecI high_sum{}, low_sum{};
    for_each_vector(width, [&](int64_t j, auto part) {
      const VecI value = rounded(load(x + j, part) * factor);
      const VecI low = (value << 24) >> 24, high = (value - low) >> 8;
      high_sum += high;
      low_sum += low;
      const VecI8 narrow_high = __builtin_convertvector(high, VecI8), narrow_low = __builtin_convertvector(low, VecI8);
      const int64_t room = out.row_bytes - j;  // the lanes past the end are zero and fill the last quad
      const auto size = static_cast<uint64_t>(room < kLanes ? room : kLanes);
      std::memcpy(high_bytes + j, &narrow_high, size);
      std::memcpy(high_bytes + out.stride + j, &narrow_low, size);
    });
    int32_t sums[kHalves] = {};
    for (int i = 0; i < kLanes; ++i) {
      sums[0] += high_sum[i];
      sums[1] += low_sum[i];
    }
    std::memcpy(out.sums + row * kHalves, sums, sizeof sums);
    out.scales[row] = largest / kLargest + broken;
  }
  const int64_t padded = (rows + skinny::kRowPadding - 1) / skinny::kRowPadding * skinny::kRowPadding;
  std::memset(out.row(rows), 0, static_cast<uint64_t>(out.row(padded) - out.row(rows)));
}

void skinny_products_int8(const Call& a, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
  if (a.instructions == skinny::Instructions::amx) return run_tiles(a, begin, end);
#endif
  Sums sums;
  for_each_panel(a, begin, end, [&](const uint8_t* panel, int64_t column, int64_t columns) {
    for (int64_t row = 0; row < a.rows; row += kRows) {
      const int64_t count = a.rows - row < kRows ? a.rows - row : kRows;
      multiply_any(count, a.instructions != skinny::Instructions::general, a.rounded, row, panel, sums);
      scale_sums(a, sums, row, count, column, columns);
    }
  });
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
