#include "common/block_sums.h"
#include "common/vec.h"

namespace fastssl {
namespace FASTSSL_ISA {

void sum_blocks(const float* partials, int64_t blocks, int64_t width, bool accumulate, float* total, int64_t begin,
                int64_t end) {
  for_each_vector(end - begin, [&](int64_t j, auto part) {
    VecF sum = accumulate ? load(total + begin + j, part) : VecF{};
    for (int64_t block = 0; block < blocks; ++block) sum += load(partials + block * width + begin + j, part);
    store(total + begin + j, sum, part);
  });
}

}  // namespace FASTSSL_ISA
}  // namespace fastssl
