// The 8-bit linear map on the CPU: quantise a block of rows, multiply it with panels of packed weights, and leave each
// tile of the product scaled, shifted and activated.
#include "common/bytes.h"
#include "common/gelu.h"
#include "common/vec.h"
#include "quantized_linear/quantized_linear.h"

namespace fastssl {
namespace FASTSSL_ISA {
namespace {

// Accumulators of a tile fill most of the registers: 24 of 32, or 8 of 16.
#if defined(__AVX512F__)
constexpr int kTileRows = 12;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileColumns = 2 * kLanes;

// sums[r][c] = the product of row r of x with the weights of column c; (kRows, kTileColumns).
template <int kRows>
void multiply_tile(const int8_t* x, int64_t row_bytes, const uint8_t* left, const uint8_t* right, int32_t* sums) {
  VecI sum[kRows][2] = {};
  for (int64_t k = 0; k < row_bytes; k += 4) {
    const UnsignedBytes weights[2] = {UnsignedBytes(load_quads(left + k * kPanelColumns)),
                                      UnsignedBytes(load_quads(right + k * kPanelColumns))};
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const SignedBytes inputs(load_quad(x + r * row_bytes + k));
#pragma GCC unroll 2
      for (int c = 0; c < 2; ++c)
        sum[r][c] += multiply_pairs(weights[c].even, inputs.even) + multiply_pairs(weights[c].odd, inputs.odd);
    }
  }
  // One by one: a copy of the whole array would keep it in memory throughout the loop.
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    std::memcpy(sums + r * kTileColumns, &sum[r][0], sizeof(VecI));
    std::memcpy(sums + r * kTileColumns + kLanes, &sum[r][1], sizeof(VecI));
  }
}

#if defined(__AVX512F__)
// The same by instructions that some processors with AVX-512 lack.
template <int kRows>
__attribute__((target("avx512vnni"))) void multiply_tile_vnni(const int8_t* x, int64_t row_bytes, const uint8_t* left,
                                                              const uint8_t* right, int32_t* sums) {
  __m512i sum[kRows][2] = {};
  for (int64_t k = 0; k < row_bytes; k += 4) {
    const __m512i weights_left = _mm512_loadu_si512(left + k * kPanelColumns);
    const __m512i weights_right = _mm512_loadu_si512(right + k * kPanelColumns);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      int32_t quad;
      __builtin_memcpy(&quad, x + r * row_bytes + k, sizeof quad);
      const __m512i inputs = _mm512_set1_epi32(quad);
      sum[r][0] = _mm512_dpbusd_epi32(sum[r][0], weights_left, inputs);
      sum[r][1] = _mm512_dpbusd_epi32(sum[r][1], weights_right, inputs);
    }
  }
  // One by one: a copy of the whole array would keep it in memory throughout the loop.
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
    _mm512_storeu_si512(sums + r * kTileColumns, sum[r][0]);
    _mm512_storeu_si512(sums + r * kTileColumns + kLanes, sum[r][1]);
  }
}
#endif

// What turns the products of a block's rows back into numbers.
struct Rows {
  float* scales;
  float* centres;
  int32_t* corrections;  // 128 times the sum of a row's bytes: what the 128 in the weights added to each product
};

// What a row of bytes q stands for: x = scale q + centre.
struct Range {
  float scale, centre, factor;
};

// The range of a row's values; the scale is NaN if one of them is not finite.
template <class Element>
Range range_of_row(const Element* x, int64_t inputs) {
  VecF low = broadcast(__builtin_inff()), high = broadcast(-__builtin_inff()), poison{};
  for_each_vector(inputs, [&](int64_t j, auto part) {
    const VecF value = load(x + j, part);
    low = minimum(low, pad(value, __builtin_inff(), part));
    high = maximum(high, pad(value, -__builtin_inff(), part));
    poison += value - value;
  });
  const float lowest = -reduce_max(-low) * 0.5f, highest = reduce_max(high) * 0.5f;
  const float half = highest - lowest;
  return {half / 127.0f + reduce_add(poison), lowest + highest, half < 1e-30f ? 0.0f : 127.0f / half};
}

template <class Element>
void quantize_row(const Element* x, int64_t inputs, int8_t* bytes, float* scale, float* centre, int32_t* correction) {
  const Range range = range_of_row(x, inputs);
  VecI total{};
  for_each_vector(inputs, [&](int64_t j, auto part) {
    const VecF shifted = pad(load(x + j, part) - range.centre, 0.0f, part);
    const VecI quantized = rounded(shifted * range.factor);
    total += quantized;
    const VecI8 narrow = __builtin_convertvector(quantized, VecI8);
    const int64_t room = (inputs + 3) / 4 * 4 - j;  // the lanes past the end are zero and fill the last quad
    std::memcpy(bytes + j, &narrow, static_cast<uint64_t>(room < kLanes ? room : kLanes));
  });
  int32_t sum = 0;
  for (int i = 0; i < kLanes; ++i) sum += total[i];
  *scale = range.scale;
  *centre = range.centre;
  *correction = 128 * sum;
}

// Writes (kRows, kTileColumns) products as outputs, of which `rows` rows and the columns below a.outputs exist.
template <class Element>
void finish_tile(const QuantizedLinear& a, const int32_t* sums, const Rows& block, int64_t row, Element* y,
                 int64_t rows, int64_t column) {
  for (int c = 0; c < 2; ++c, column += kLanes) {
    const int64_t left = a.outputs - column;
    if (left <= 0) return;
    const auto finish = [&](auto part) {
      const VecF weight_scale = load(a.weight_scale + column, part);
      const VecF weight_sum = load(a.weight_sum + column, part);
      const VecF bias = a.bias ? load(a.bias + column, part) : VecF{};
      for (int64_t r = 0; r < rows; ++r) {
        const VecI products = load_quads(sums + r * kTileColumns + c * kLanes) - block.corrections[row + r];
        const VecF product = __builtin_convertvector(products, VecF) * block.scales[row + r];
        const VecF out = (product + weight_sum * block.centres[row + r]) * weight_scale + bias;
        store(y + (row + r) * a.outputs + column, a.gelu ? gelu(out) : out, part);
      }
    };
    if (left >= kLanes)
      finish(Whole{});
    else
      finish(Part{static_cast<int>(left)});
  }
}

template <int kRows>
FASTSSL_INLINE void multiply(const QuantizedLinear& a, const int8_t* x, int64_t row_bytes, int64_t column,
                             int32_t* sums) {
  const auto panel = [&](int64_t first) {
    return a.weight + first / kPanelColumns * kPanelColumns * row_bytes + first % kPanelColumns * 4;
  };
  const uint8_t *left = panel(column), *right = panel(column + kLanes);
#if defined(__AVX512F__)
  if (a.vnni) return multiply_tile_vnni<kRows>(x, row_bytes, left, right, sums);
#endif
  multiply_tile<kRows>(x, row_bytes, left, right, sums);
}

template <class Element>
void run_block(const QuantizedLinear& a, int64_t row_begin, int64_t row_end, int64_t column_begin, int64_t column_end,
               int8_t* scratch) {
  const int64_t rows = row_end - row_begin, padded = (rows + kRowAlignment - 1) / kRowAlignment * kRowAlignment;
  const int64_t row_bytes = quantized_row_bytes(a.inputs);
  Rows block;
  block.scales = reinterpret_cast<float*>(scratch);
  block.centres = block.scales + padded;
  block.corrections = reinterpret_cast<int32_t*>(block.centres + padded);
  int8_t* bytes = reinterpret_cast<int8_t*>(block.corrections + padded);
  const Element* x = static_cast<const Element*>(a.x) + row_begin * a.inputs;
  for (int64_t r = 0; r < rows; ++r)
    quantize_row(x + r * a.inputs, a.inputs, bytes + r * row_bytes, block.scales + r, block.centres + r,
                 block.corrections + r);
  std::memset(bytes + rows * row_bytes, 0, static_cast<uint64_t>((padded - rows) * row_bytes));
  Element* y = static_cast<Element*>(a.y) + row_begin * a.outputs;
  int32_t sums[kTileRows * kTileColumns];
  // A panel stays in L1 while the rows of the block pass by.
  for (int64_t column = column_begin; column < column_end; column += kTileColumns) {
    int64_t r = 0;
    for (; r + kTileRows <= padded; r += kTileRows) {
      multiply<kTileRows>(a, bytes + r * row_bytes, row_bytes, column, sums);
      finish_tile(a, sums, block, r, y, r + kTileRows <= rows ? kTileRows : rows - r, column);
    }
    for (; r < padded; r += kRowAlignment) {
      multiply<kRowAlignment>(a, bytes + r * row_bytes, row_bytes, column, sums);
      finish_tile(a, sums, block, r, y, r + kRowAlignment <= rows ? kRowAlignment : rows - r, column);
    }
  }
}

}  // namespace

void quantized_linear(const QuantizedLinear& a, int64_t row_begin, int64_t row_end, int64_t column_begin,
                      int64_t column_end, int8_t* scratch) {
  const auto run = a.bfloat16 ? run_block<BFloat16> : run_block<float>;
  run(a, row_begin, row_end, column_begin, column_end, scratch);
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
