// The linear map of few rows with an 8-bit weight: x is rounded to 16 bits, a high and a low byte, and both are
// multiplied with the bytes of the weight on their one way through the registers. All sums are exact.
#include "common/bytes.h"
#include "common/vec.h"
#include "skinny_linear/skinny_linear.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace {

using skinny::Call;
using skinny::kPanelColumns;
using skinny::RoundedRows;

constexpr float kLargest = 32639.0f;  // 256 * 127 + 127
constexpr int kHalves = 2;            // of a rounded number
constexpr int64_t kAhead = 2048;      // bytes of the weight behind those that are read, asked of the memory

// Rows that are multiplied with a panel at a time.
#if defined(__AVX512F__)
constexpr int kRows = 8;
#else
constexpr int kRows = 2;
#endif

// sums[r][half][c] = the products of row r with the panel's column c, of the high bytes and of the low ones.
using Sums = int32_t[kRows][kHalves][kPanelColumns];

template <int kCount>
void multiply_panel(const int8_t* x, int64_t row_bytes, const uint8_t* panel, Sums& sums) {
  for (int64_t column = 0; column < kPanelColumns; column += kLanes) {
    VecI sum[kCount][kHalves] = {};
    for (int64_t k = 0; k < row_bytes; k += 4) {
      const UnsignedBytes weights(load_quads(panel + k * kPanelColumns + column * 4));
#pragma GCC unroll 8
      for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 2
        for (int half = 0; half < kHalves; ++half) {
          const SignedBytes inputs(load_quad(x + (r * kHalves + half) * row_bytes + k));
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
__attribute__((target("avx512vnni"))) void multiply_panel_vnni(const int8_t* x, int64_t row_bytes, const uint8_t* panel,
                                                               Sums& sums) {
  __m512i sum[kCount][kHalves] = {};
  for (int64_t k = 0; k < row_bytes; k += 4) {
    const __m512i weights = _mm512_loadu_si512(panel + k * kPanelColumns);
    _mm_prefetch(reinterpret_cast<const char*>(panel + k * kPanelColumns + kAhead), _MM_HINT_T0);
#pragma GCC unroll 8
    for (int r = 0; r < kCount; ++r) {
#pragma GCC unroll 2
      for (int half = 0; half < kHalves; ++half) {
        int32_t quad;
        __builtin_memcpy(&quad, x + (r * kHalves + half) * row_bytes + k, sizeof quad);
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
FASTSSL_INLINE void multiply(bool vnni, const int8_t* x, int64_t row_bytes, const uint8_t* panel, Sums& sums) {
#if defined(__AVX512F__)
  if (vnni) return multiply_panel_vnni<kCount>(x, row_bytes, panel, sums);
#endif
  (void)vnni;
  multiply_panel<kCount>(x, row_bytes, panel, sums);
}

// The same for a number of rows that is known only here.
void multiply_any(int64_t count, bool vnni, const int8_t* x, int64_t row_bytes, const uint8_t* panel, Sums& sums) {
  switch (count) {
    case 1:
      return multiply<1>(vnni, x, row_bytes, panel, sums);
    case 2:
      return multiply<2>(vnni, x, row_bytes, panel, sums);
#if defined(__AVX512F__)
    case 3:
      return multiply<3>(vnni, x, row_bytes, panel, sums);
    case 4:
      return multiply<4>(vnni, x, row_bytes, panel, sums);
    case 5:
      return multiply<5>(vnni, x, row_bytes, panel, sums);
    case 6:
      return multiply<6>(vnni, x, row_bytes, panel, sums);
    case 7:
      return multiply<7>(vnni, x, row_bytes, panel, sums);
    default:
      return multiply<8>(vnni, x, row_bytes, panel, sums);
#endif
  }
}

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
    int8_t* high_bytes = out.bytes + row * kHalves * out.row_bytes;
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
      std::memcpy(high_bytes + out.row_bytes + j, &narrow_low, size);
    });
    int32_t sums[kHalves] = {};
    for (int i = 0; i < kLanes; ++i) {
      sums[0] += high_sum[i];
      sums[1] += low_sum[i];
    }
    std::memcpy(out.sums + row * kHalves, sums, sizeof sums);
    out.scales[row] = largest / kLargest + broken;
  }
}

void skinny_products_int8(const Call& a, int64_t begin, int64_t end) {
  const int64_t row_bytes = a.rounded.row_bytes;
  Sums sums;
  for (int64_t column = begin; column < end; column += kPanelColumns) {
    const uint8_t* panel = static_cast<const uint8_t*>(a.weight) + column * row_bytes;
    const int64_t columns = end - column < kPanelColumns ? end - column : kPanelColumns;
    for (int64_t row = 0; row < a.rows; row += kRows) {
      const int64_t count = a.rows - row < kRows ? a.rows - row : kRows;
      multiply_any(count, a.vnni, a.rounded.bytes + row * kHalves * row_bytes, row_bytes, panel, sums);
      scale_sums(a, sums, row, count, column, columns);
    }
  }
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
