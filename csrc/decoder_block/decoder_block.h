// A block of a decoder for one new token a sequence, in one call (fastssl/ops/decoder_block/README.md).
#pragma once

#include "cached_attention/call.h"
#include "skinny_linear/call.h"

namespace fastssl {

// Between its parts stand no tensors and no dispatch: whatever a call from Python touches has left the caches since the
// last one, and takes longer to come back than some of the parts take.
struct DecoderBlock {
  skinny::Call qkv, out, up, down;
  std::optional<skinny::Norm> attention_norm, mlp_norm;
  cached::Call attention;
};

}  // namespace fastssl
