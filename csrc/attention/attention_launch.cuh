// Which attention kernel runs, and over what grid: a matter of shapes alone, so that the host never waits for lengths.
#pragma once

#include "attention/attention_forward_kernel.cuh"
#include "attention/attention_grad_kv_kernel.cuh"
#include "attention/attention_grad_q_kernel.cuh"
#include "common/element.h"

namespace fastssl::cuda {

// body(value of the element type, head width that the kernels have).
template <class Body>
void with_attention_kernel(Element element, int width, Body body) {
  const auto with_width = [&](auto value) {
    if (width <= 32)
      body(value, std::integral_constant<int, 32>{});
    else if (width <= 64)
      body(value, std::integral_constant<int, 64>{});
    else if (width <= 96)
      body(value, std::integral_constant<int, 96>{});
    else
      body(value, std::integral_constant<int, 128>{});
  };
  if (element == Element::bfloat16)
    with_width(BFloat16{});
  else
    with_width(Half{});
}

// Blocks along x for tiles of one side's rows, of which there are num_rows in all; see place_of.
inline unsigned attention_slots(const AttentionArguments& a, const SequenceRows& side, int64_t num_rows, int tile) {
  if (side.offsets) return a.sequences == 0 ? 0 : static_cast<unsigned>(num_rows / tile + a.sequences);
  return static_cast<unsigned>(int64_t{a.sequences} * ((side.length + tile - 1) / tile));
}

inline void launch_attention_forward(const AttentionArguments& a, int64_t num_queries, Element element,
                                     cudaStream_t stream) {
  with_attention_kernel(element, a.width, [&](auto value, auto width) {
    constexpr int kWidth = decltype(width)::value, kRowTiles = kWidth <= 64 ? 2 : 1;
    using Shape = AttentionForwardShape<kWidth, kRowTiles>;
    const dim3 blocks(attention_slots(a, a.queries, num_queries, Shape::kQueries), static_cast<unsigned>(a.heads));
    launch(attention_forward<decltype(value), kWidth, kRowTiles>, blocks, dim3(kAttentionThreads), Shape::kSharedBytes,
           stream, a);
  });
}

// Places of the statistics of one head's queries, of which there are num_queries in all sequences together.
inline int64_t attention_statistics_places(const AttentionArguments& a, int64_t num_queries) {
  int tile = 0;
  with_attention_kernel(Element::bfloat16, a.width,
                        [&](auto, auto width) { tile = AttentionGradShape<decltype(width)::value>::kKept; });
  return int64_t{attention_slots(a, a.queries, num_queries, tile)} * tile;
}

// The second kernel reads the statistics that the first one leaves.
inline void launch_attention_backward(const AttentionGradArguments& a, int64_t num_queries, int64_t num_keys,
                                      Element element, cudaStream_t stream) {
  with_attention_kernel(element, a.width, [&](auto value, auto width) {
    using Shape = AttentionGradShape<decltype(width)::value>;
    const dim3 threads(kAttentionThreads);
    const dim3 for_queries(attention_slots(a, a.queries, num_queries, Shape::kKept), static_cast<unsigned>(a.heads));
    const dim3 for_keys(attention_slots(a, a.keys, num_keys, Shape::kKept),
                        static_cast<unsigned>(a.heads / a.heads_per_key));
    launch(attention_grad_q<decltype(value), decltype(width)::value>, for_queries, threads, Shape::kSharedBytesForQ,
           stream, a);
    launch(attention_grad_kv<decltype(value), decltype(width)::value>, for_keys, threads, Shape::kSharedBytesForKV,
           stream, a);
  });
}

}  // namespace fastssl::cuda
