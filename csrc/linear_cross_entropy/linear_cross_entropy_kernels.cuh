// Softmax cross-entropy on the GPU: a block has a row of logits, which comes once from memory, stays in shared memory
// where it fits, and leaves as its gradient (fastssl/ops/linear_cross_entropy/README.md).
#pragma once

#include "cuda/rows.cuh"

namespace fastssl::cuda {

// One chunk of rows. With l = logits + bias, or softcap * tanh((logits + bias) / softcap), rounded to their dtype:
// loss = lse - (1 - label_smoothing) * l[target] - label_smoothing * mean(l) + z_loss * lse^2.
struct SoftmaxCrossEntropy {
  void* logits;            // (rows, classes): becomes the gradient of row_grads . losses
  int64_t row_stride;      // elements
  const float* bias;       // (classes), or null
  const int64_t* targets;  // (rows), each in [0, classes): the loss and the gradient of another one are NaN
  const float* row_grads;  // (rows), or null for ones
  float* losses;           // (rows)
  float* lse;              // (rows)
  bool* correct;           // (rows): the target is the first largest logit
  int64_t rows;
  int classes;
  float label_smoothing;
  float z_loss;
  float softcap;  // 0: none
  bool with_gradient;
};

inline constexpr float kLog2E = 1.44269504f;

// exp(x) for x <= 0, or a little above.
__device__ __forceinline__ float exp_approx(float x) {
  return exp2_approx(x * kLog2E);
}

// The logits of a row, vector by vector. A thread reads what it has fetched itself, so there is nothing to synchronise.
template <class Logit, int kThreads, bool kInShared>
struct LogitRow {
  Logit* row;
  const float* bias;
  int classes;
  float softcap, inverse_cap;

  __device__ LogitRow(const SoftmaxCrossEntropy& a, int64_t index)
      : row(static_cast<Logit*>(a.logits) + index * a.row_stride),
        bias(a.bias),
        classes(a.classes),
        softcap(a.softcap),
        inverse_cap(a.softcap > 0.0f ? 1.0f / a.softcap : 0.0f) {}

  template <class Body>
  __device__ __forceinline__ void for_each(Body body) const {
    for_each_vector(classes, threadIdx.x, kThreads, body);
  }

  __device__ __forceinline__ uint4* shared(int v, int word) const {
    return reinterpret_cast<uint4*>(dynamic_shared()) + word * ((classes + kVector - 1) / kVector) + v;
  }
  __device__ __forceinline__ void store_shared(int v, const Packed<Logit>& packed) const {
#pragma unroll
    for (int word = 0; word < Packed<Logit>::kWords; ++word) *shared(v, word) = packed.words[word];
  }

  // Brings the row to shared memory: what is whole and aligned, without registers.
  __device__ __forceinline__ void fetch() const {
    if constexpr (!kInShared) return;
    const bool aligned = reinterpret_cast<uintptr_t>(row) % sizeof(uint4) == 0;
    for_each([&](int v, int count) {
      if (aligned && count == kVector) {
#pragma unroll
        for (int word = 0; word < Packed<Logit>::kWords; ++word)
          copy_async_16(shared(v, word), words_at(row + v * kVector) + word);
      } else {
        float values[kVector];
        load_any(row + v * kVector, count, values);
        store_shared(v, narrow<Logit>(values));
      }
    });
    copy_async_commit();
    copy_async_wait<0>();
  }

  __device__ __forceinline__ void load(int v, int count, float (&logits)[kVector]) const {
    if constexpr (kInShared) {
      Packed<Logit> packed;
#pragma unroll
      for (int word = 0; word < Packed<Logit>::kWords; ++word) packed.words[word] = *shared(v, word);
      widen(packed, logits);
    } else {
      load_any(row + v * kVector, count, logits);
    }
  }

  // The logits with bias and softcap. What is in shared memory has them after form().
  __device__ __forceinline__ void form(int v, int count, float (&logits)[kVector]) const {
    load(v, count, logits);
    if (!bias && softcap == 0.0f) return;
    if (bias) {
      float b[kVector];
      load_any(bias + v * kVector, count, b);
#pragma unroll
      for (int i = 0; i < kVector; ++i) logits[i] += b[i];
    }
    if (softcap > 0.0f) {
#pragma unroll
      for (int i = 0; i < kVector; ++i) logits[i] = softcap * tanhf(logits[i] * inverse_cap);
    }
    const Packed<Logit> rounded = narrow<Logit>(logits);
    if constexpr (kInShared) store_shared(v, rounded);
    widen(rounded, logits);
  }
  __device__ __forceinline__ void formed(int v, int count, float (&logits)[kVector]) const {
    if constexpr (kInShared)
      load(v, count, logits);
    else
      form(v, count, logits);
  }
};

// Sums over logits as they come, relative to the largest so far (Milakov, Gimelshein 2018, arXiv 1805.02867).
struct OnlineSums {
  float maximum = -INFINITY;
  float exponentials = 0.0f;
  float below = 0.0f;  // of logit - reference(): the mean logit, without its rounding where logits are large
  float count = 0.0f;

  // What is subtracted from the logits; any number does as long as all of them are -inf.
  __device__ __forceinline__ float reference() const {
    return maximum > -INFINITY ? maximum : 0.0f;
  }
  __device__ __forceinline__ void raise_to(float larger) {
    const float before = reference();
    exponentials *= maximum > -INFINITY ? exp_approx(maximum - larger) : 0.0f;
    maximum = larger;
    below += count * (before - reference());
  }
  __device__ __forceinline__ void add(const float (&logits)[kVector], int added) {
    float largest = maximum;
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      if (i < added) largest = fmaxf(largest, logits[i]);
    if (largest > maximum) raise_to(largest);
    const float from = reference();
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i < added) {
        exponentials += exp_approx(logits[i] - from);
        below += logits[i] - from;
      }
    }
    count += static_cast<float>(added);
  }
};

// Turns the logits l of a vector into the gradient of grad * loss:
// grad * ((1 + 2 z lse) softmax(l) - smoothing / classes - (1 - smoothing) [j = target]) * dl / d(uncapped logit).
struct LogitGradient {
  float maximum, log_sum, probability_factor, uniform, target_part, inverse_cap;

  __device__ LogitGradient(const SoftmaxCrossEntropy& a, float maximum, float log_sum, float grad)
      : maximum(maximum),
        log_sum(log_sum),
        probability_factor(grad * (1.0f + 2.0f * a.z_loss * (maximum + log_sum))),
        uniform(grad * a.label_smoothing / static_cast<float>(a.classes)),
        target_part(grad * (1.0f - a.label_smoothing)),
        inverse_cap(a.softcap > 0.0f ? 1.0f / a.softcap : 0.0f) {}

  // `target` counts from the first logit of the vector.
  __device__ __forceinline__ void form(float (&logits)[kVector], int target) const {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      float gradient = exp_approx(logits[i] - maximum - log_sum) * probability_factor - uniform;
      if (i == target) gradient -= target_part;
      const float capped = logits[i] * inverse_cap;
      logits[i] = inverse_cap > 0.0f ? gradient * (1.0f - capped * capped) : gradient;  // -inf has no cap
    }
  }
};

// Three blocks of 512 threads a multiprocessor: one computes while the others wait for memory.
constexpr int softmax_blocks_per_multiprocessor(int threads) {
  return threads == 512 ? 3 : 1;
}

template <class Logit, int kThreads, bool kInShared>
__global__ void __launch_bounds__(kThreads, softmax_blocks_per_multiprocessor(kThreads))
    softmax_cross_entropy(const SoftmaxCrossEntropy a) {
  using Group = RowGroup<kThreads, 1>;
  __shared__ float shared_target_logit;
  const int64_t row = blockIdx.x, given = a.targets[row];
  const bool in_range = given >= 0 && given < a.classes;
  const int target = in_range ? static_cast<int>(given) : -1;
  const LogitRow<Logit, kThreads, kInShared> logits(a, row);
  logits.fetch();
  OnlineSums sums;
  if (threadIdx.x == 0 && !in_range) shared_target_logit = NAN;
  logits.for_each([&](int v, int count) {
    float l[kVector];
    logits.form(v, count, l);
    sums.add(l, count);
#pragma unroll
    for (int i = 0; i < kVector; ++i)
      if (v * kVector + i == target) shared_target_logit = l[i];
  });
  const float maximum = Group::maximum(sums.maximum, 0);
  if (maximum > sums.maximum) sums.raise_to(maximum);
  float totals[2] = {sums.exponentials, sums.below};
  Group::sum(totals, 0);
  const float log_sum = logf(totals[0]), lse = maximum + log_sum, target_logit = shared_target_logit;

  int earlier = 0;  // whether a class before the target has as large a logit
  if (target_logit == maximum)
    logits.for_each([&](int v, int count) {
      if (v * kVector >= target) return;
      float l[kVector];
      logits.formed(v, count, l);
#pragma unroll
      for (int i = 0; i < kVector; ++i)
        if (v * kVector + i < target && l[i] == maximum) earlier = 1;
    });
  earlier = __syncthreads_or(earlier);
  if (threadIdx.x == 0) {
    float loss = log_sum - (1.0f - a.label_smoothing) * (target_logit - maximum) + a.z_loss * lse * lse;
    if (a.label_smoothing > 0.0f) loss -= a.label_smoothing * (totals[1] / static_cast<float>(a.classes));
    a.losses[row] = loss;
    a.lse[row] = lse;
    a.correct[row] = target_logit == maximum && !earlier;
  }
  if (!a.with_gradient) return;
  const float grad = !in_range ? NAN : a.row_grads ? a.row_grads[row] : 1.0f;
  const LogitGradient gradient(a, maximum, log_sum, grad);
  logits.for_each([&](int v, int count) {
    float l[kVector];
    logits.formed(v, count, l);
    gradient.form(l, target - v * kVector);
    store_any(logits.row + v * kVector, count, l);
  });
}

}  // namespace fastssl::cuda
