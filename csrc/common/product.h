// Products of matrices so small that they and their result stay in a core's own cache, by one thread.
#pragma once

#include "common/cpu_capability.h"
#include "common/vec.h"

namespace fastssl {
namespace FASTSSL_ISA {

// What will be wanted soon: rows of one length. The products ask the memory for them between their multiplications, a
// few lines at a time: rows that lie far apart no hardware prefetcher follows, and a core can wait for some sixteen
// lines at once, so that a burst would stall it. Of itself it wants nothing.
class Ahead {
 public:
  // Asks for the share of what is wanted that so many multiplications pay for.
  FASTSSL_INLINE void step(int64_t multiplications) {
    constexpr int64_t kLine = 64;
    for (credit_ += multiplications * end_; credit_ >= price_ && next_ < end_; credit_ -= price_, ++next_)
      for (int64_t byte = 0; byte < row_bytes_; byte += kLine) __builtin_prefetch(rows_[next_] + byte, 0, 2);
  }

 protected:
  // Begins anew with rows that will be asked for in the course of `multiplications`.
  void begin(int64_t row_bytes, int64_t multiplications) {
    row_bytes_ = row_bytes;
    end_ = next_ = 0;
    credit_ = 0;
    price_ = multiplications;
  }
  // Wants a row; returns whether there is room for it.
  bool want(const char* row) {
    if (end_ == kCapacity) return false;
    rows_[end_++] = row;
    return true;
  }
  int64_t row_bytes() const {
    return row_bytes_;
  }

 private:
  static constexpr int kCapacity = 1024;  // rows; more would not stay in the L2 cache beside a tile

  int64_t row_bytes_ = 0, credit_ = 0, price_ = 1, end_ = 0, next_ = 0;
  const char* rows_[kCapacity];
};

// c = factor a b, or c += a b: a is (rows, depth), b (depth, columns), c (rows, columns), columns a multiple of kLanes.
struct Product {
  float* c;
  int64_t ldc;
  const float* a;
  int64_t lda;
  const float* b;
  int64_t ldb;
  int64_t rows, columns, depth;
  bool accumulate = false;
  float factor = 1.0f;             // where nothing is accumulated
  const float* factors = nullptr;  // one a row, in the place of `factor`
};
void product(const Product& p, Ahead& ahead);
// The same with a stored as (depth, rows).
void product_transposed(const Product& p, Ahead& ahead);

// Rows of fp32 numbers, `ld` apart.
struct Matrix {
  float* data;
  int64_t ld;
};
// out (columns, rows) = in (rows, columns); both sizes multiples of the widest vector, out's distance of rows is
// `rows`.
void transpose(float* out, const float* in, int64_t ld_in, int64_t rows, int64_t columns);
// out += factor * the transpose of `in`, for any distance of out's rows; finite products stay finite.
void transpose_add(float* out, int64_t ld_out, const float* in, int64_t ld_in, int64_t rows, int64_t columns,
                   float factor);

}  // namespace FASTSSL_ISA
}  // namespace fastssl
