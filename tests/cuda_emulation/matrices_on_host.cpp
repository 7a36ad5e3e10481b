// The matrix instructions of a warp behind cuda_on_host.h.
#include "cuda/platform.cuh"

namespace cuda_on_host {
namespace {

constexpr uint32_t kAllLanes = 0xffffffffu;

struct Load {
  const uint16_t* row;
  bool transposed;
  uint4 result;
};

void resolve_load(void* const all[kLanes], uint32_t) {
  for (int lane = 0; lane < kLanes; ++lane) {
    auto* mine = static_cast<Load*>(all[lane]);
    uint32_t words[4];
    for (int m = 0; m < 4; ++m) {
      const auto element = [&](int row, int column) -> uint32_t {
        return static_cast<const Load*>(all[8 * m + (mine->transposed ? column : row)])
            ->row[mine->transposed ? row : column];
      };
      words[m] = element(lane / 4, lane % 4 * 2) | element(lane / 4, lane % 4 * 2 + 1) << 16;
    }
    mine->result = make_uint4(words[0], words[1], words[2], words[3]);
  }
}

struct Transpose {
  uint32_t word, result;
};

void resolve_transpose(void* const all[kLanes], uint32_t) {
  const auto element = [&](int row, int column) {
    return static_cast<const Transpose*>(all[4 * row + column / 2])->word >> column % 2 * 16 & 0xffffu;
  };
  for (int lane = 0; lane < kLanes; ++lane)
    static_cast<Transpose*>(all[lane])->result = element(lane % 4 * 2, lane / 4) | element(lane % 4 * 2 + 1, lane / 4)
                                                                                       << 16;
}

struct Product {
  float* c;
  uint32_t a[4], b[2];
  float (*widen)(uint16_t);
};

// Gathers both matrices from all lanes, multiplies them, and hands C out again.
void resolve_product(void* const all[kLanes], uint32_t) {
  float a[16][16], b[8][16];  // b: its columns
  for (int lane = 0; lane < kLanes; ++lane) {
    const auto* from = static_cast<const Product*>(all[lane]);
    for (int half = 0; half < 2; ++half) {
      const auto value = [&](uint32_t word) { return from->widen(static_cast<uint16_t>(word >> 16 * half)); };
      const int row = lane / 4, column = lane % 4 * 2 + half;
      for (int m = 0; m < 4; ++m) a[row + m % 2 * 8][column + m / 2 * 8] = value(from->a[m]);
      for (int m = 0; m < 2; ++m) b[row][column + m * 8] = value(from->b[m]);
    }
  }
  for (int lane = 0; lane < kLanes; ++lane) {
    float* c = static_cast<Product*>(all[lane])->c;
    for (int i = 0; i < 4; ++i) {
      const float* row = a[lane / 4 + i / 2 * 8];
      const float* column = b[lane % 4 * 2 + i % 2];
      float sum = 0.0f;
      for (int k = 0; k < 16; ++k) sum += row[k] * column[k];
      c[i] += sum;
    }
  }
}

}  // namespace

uint4 load_matrices(const void* row, bool transposed) {
  Load load{static_cast<const uint16_t*>(row), transposed, {}};
  meet_lanes(kAllLanes, &load, resolve_load);
  return load.result;
}

uint32_t transpose_matrix(uint32_t word) {
  Transpose transpose{word, 0};
  meet_lanes(kAllLanes, &transpose, resolve_transpose);
  return transpose.result;
}

void multiply(float (&c)[4], const uint4& a, uint32_t b_0, uint32_t b_1, float (*widen)(uint16_t)) {
  Product product{c, {a.x, a.y, a.z, a.w}, {b_0, b_1}, widen};
  meet_lanes(kAllLanes, &product, resolve_product);
}

}  // namespace cuda_on_host
