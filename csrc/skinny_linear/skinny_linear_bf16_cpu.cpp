// The linear map of few rows with a bfloat16 weight by the matrix unit, AMX. A row of x is the sum of three of
// bfloat16, exactly, whose products with the weight add up to those in float32. Weights are read as they are.
#include "common/amx.h"
#include "common/row_products.h"
#include "common/vec.h"
#include "skinny_linear/outputs.h"
#include "skinny_linear/skinny_linear.h"

namespace fastssl {
namespace FASTSSL_ISA {

#if defined(__AVX512F__)
namespace {

using skinny::Call;
using skinny::kPartRows;
using skinny::kParts;

constexpr int64_t kDepth = 32;  // numbers in a row of a tile
constexpr int64_t kWordsInRow = kParts * kPartRows, kBlockWords = kTileRows * kWordsInRow;
constexpr int64_t kAhead = 16;  // rows of the weight between those that are read and those that the memory is asked for

// Tiles 0 to 3 hold sums, 16 rows of the weight by three parts of four rows of x; 4 the rows of the weight and 5 the
// parts; 6 and 7 are their shorter selves at the end of the rows.
constexpr int kWeights = 4, kEnd = 6, kGroups = 4;

using Sums = float[kTileRows][kWordsInRow];

typedef uint64_t VecU64 __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(32)));
typedef uint32_t FourWords __attribute__((vector_size(16)));

// Splits x in three, each the nearest number to what is left; two neighbours in a word.
FASTSSL_INLINE void split(VecF x, Words (&parts)[kParts]) {
#pragma GCC unroll 3
  for (int64_t i = 0; i < kParts; ++i) {
    const VecU bits = as_bits(x), rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
    const VecU upper = x == x ? rounded : broadcast(0x7fc00000u);  // rounding would turn some NaNs into zeros
    const VecU64 pairs = (VecU64)upper;
    parts[i] = __builtin_convertvector(pairs >> 16 | (pairs >> 32 & 0xffff0000u), Words);
    x -= as_float(upper);
  }
}

// Words of four rows beside each other, kWordsInRow apart.
FASTSSL_INLINE void store_transposed(const FourWords (&rows)[kPartRows], uint32_t* out) {
  const FourWords ab_low = __builtin_shufflevector(rows[0], rows[1], 0, 4, 1, 5);
  const FourWords ab_high = __builtin_shufflevector(rows[0], rows[1], 2, 6, 3, 7);
  const FourWords cd_low = __builtin_shufflevector(rows[2], rows[3], 0, 4, 1, 5);
  const FourWords cd_high = __builtin_shufflevector(rows[2], rows[3], 2, 6, 3, 7);
  const FourWords columns[4] = {
      __builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5), __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
      __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5), __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) std::memcpy(out + i * kWordsInRow, &columns[i], sizeof columns[i]);
}

// The products of 16 rows of the weight with kCount groups of rows of x.
template <int kCount>
void multiply_rows_amx(const Call& a, const uint16_t* weights, const uint32_t* parts, Sums* sums) {
  const int64_t stride = a.inputs * 2, group_words = skinny::group_words(a.inputs);
  const auto add = [&](int64_t k, auto tile) {
    constexpr int kLeft = decltype(tile)::value;
    load_tile<kLeft>(weights + k, stride);
    for_each_tile<kCount>([&](auto group) {
      load_tile<kLeft + 1>(parts + group.value * group_words + k / kDepth * kBlockWords, kWordsInRow * 4);
      multiply_bfloat16<group.value, kLeft, kLeft + 1>();
    });
  };
  for_each_tile<kCount>([](auto group) { clear_tile<group.value>(); });
  int64_t k = 0;
  for (; k + kDepth <= a.inputs; k += kDepth) {
    for (int64_t row = 0; row < kTileRows; ++row)
      _mm_prefetch(reinterpret_cast<const char*>(weights + (kAhead + row) * a.inputs + k), _MM_HINT_T1);
    add(k, Count<kWeights>{});
  }
  if (k < a.inputs) add(k, Count<kEnd>{});
  for_each_tile<kCount>([&](auto group) { store_tile<group.value>(sums + group.value, kWordsInRow * 4); });
}

// Writes rows [first, kTileRows) of the sums as columns of the products of rows [row, row + count) of x.
void put_sums(const Call& a, const Sums& sums, int64_t first, int64_t column, int64_t row, int64_t count) {
  for (int64_t i = first; i < kTileRows; ++i) {
    Four parts[kParts];
    std::memcpy(parts, sums[i], sizeof parts);
    const Four total = parts[0] + (parts[1] + parts[2]);
    for (int64_t r = 0; r < count; ++r) a.products[(row + r) * a.outputs + column + i] = total[r];
  }
}

}  // namespace
#endif

void skinny_split(const float* x, int64_t rows, int64_t width, uint32_t* out) {
#if defined(__AVX512F__)
  for (int64_t row = 0; row < rows; row += kPartRows, out += skinny::group_words(width)) {
    for (int64_t k = 0; k < width; k += kLanes) {
      Words parts[kPartRows][kParts] = {};
      for (int64_t r = 0; r < kPartRows && row + r < rows; ++r) {
        const float* numbers = x + (row + r) * width + k;
        split(k + kLanes <= width ? load(numbers) : load(numbers, static_cast<int>(width - k)), parts[r]);
      }
      uint32_t* words = out + k / 2 * kWordsInRow;
      for (int64_t part = 0; part < kParts; ++part) {
        FourWords low[kPartRows], high[kPartRows];
        for (int64_t r = 0; r < kPartRows; ++r) {
          low[r] = __builtin_shufflevector(parts[r][part], parts[r][part], 0, 1, 2, 3);
          high[r] = __builtin_shufflevector(parts[r][part], parts[r][part], 4, 5, 6, 7);
        }
        store_transposed(low, words + part * kPartRows);
        store_transposed(high, words + part * kPartRows + 4 * kWordsInRow);
      }
    }
  }
#else
  (void)x, (void)rows, (void)width, (void)out;
#endif
}

void skinny_products_bf16(const skinny::Call& a, int64_t begin, int64_t end) {
#if defined(__AVX512F__)
  const TileShape sums_shape{kTileRows, kWordsInRow * 4}, weights_shape{kTileRows, kTileBytes};
  const int64_t rest = a.inputs % kDepth;
  const Tiles tiles({sums_shape,
                     sums_shape,
                     sums_shape,
                     sums_shape,
                     weights_shape,
                     sums_shape,
                     {kTileRows, rest * 2},
                     {rest / 2, kWordsInRow * 4}});
  Sums sums[kGroups];
  for (int64_t column = begin; column < end; column += kTileRows) {
    want_ahead(a, column);
    // The last rows are read together with some before them.
    const int64_t from = column + kTileRows <= a.outputs ? column : a.outputs - kTileRows;
    const uint16_t* weights = static_cast<const uint16_t*>(a.weight) + from * a.inputs;
    for (int64_t row = 0; row < a.rows; row += kGroups * kPartRows) {
      const uint32_t* parts = a.parts + row / kPartRows * skinny::group_words(a.inputs);
      const int64_t left = a.rows - row, count = (left + kPartRows - 1) / kPartRows;
      if (count == 1)
        multiply_rows_amx<1>(a, weights, parts, sums);
      else if (count == 2)
        multiply_rows_amx<2>(a, weights, parts, sums);
      else if (count == 3)
        multiply_rows_amx<3>(a, weights, parts, sums);
      else
        multiply_rows_amx<kGroups>(a, weights, parts, sums);
      for (int64_t r = 0; r < left && r < kGroups * kPartRows; r += kPartRows)
        put_sums(a, sums[r / kPartRows], column - from, from, row + r, left - r < kPartRows ? left - r : kPartRows);
    }
  }
#else
  (void)a, (void)begin, (void)end;
#endif
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
