// Random numbers of the data code; the scheme is written down in fastssl/data/numpy_host/philox.py.
#pragma once

#include <cstdint>

namespace fastssl::host {

enum class Purpose : uint32_t { kDocument = 1, kExampleOrder = 2, kBatchOrder = 3, kMasking = 4 };

// The draws of one item, one after the other.
class Stream {
 public:
  Stream(uint64_t seed, uint32_t purpose, uint32_t epoch, uint64_t item)
      : seed_(seed),
        item_low_(static_cast<uint32_t>(item)),
        epoch_(epoch),
        high_(purpose + (static_cast<uint32_t>(item >> 32) << 8)) {}
  Stream(uint64_t seed, Purpose purpose, uint32_t epoch, uint64_t item)
      : Stream(seed, static_cast<uint32_t>(purpose), epoch, item) {}

  // 64 random bits.
  uint64_t next() {
    waiting_ = !waiting_;
    if (!waiting_) return second_;
    uint32_t c0 = block_++, c1 = item_low_, c2 = epoch_, c3 = high_;
    uint32_t key_0 = static_cast<uint32_t>(seed_), key_1 = static_cast<uint32_t>(seed_ >> 32);
    for (int round = 0; round < 10; ++round) {
      const uint64_t product_0 = uint64_t{0xD2511F53u} * c0, product_1 = uint64_t{0xCD9E8D57u} * c2;
      c0 = static_cast<uint32_t>(product_1 >> 32) ^ c1 ^ key_0;
      c1 = static_cast<uint32_t>(product_1);
      c2 = static_cast<uint32_t>(product_0 >> 32) ^ c3 ^ key_1;
      c3 = static_cast<uint32_t>(product_0);
      key_0 += 0x9E3779B9u;
      key_1 += 0xBB67AE85u;
    }
    second_ = c2 | uint64_t{c3} << 32;
    return c0 | uint64_t{c1} << 32;
  }

  // A uniform integer in [0, n).
  uint64_t below(uint64_t n) {
    return static_cast<uint64_t>(static_cast<unsigned __int128>(next()) * n >> 64);
  }

  // True with probability threshold / 2^32.
  bool happens(uint64_t threshold) {
    return next() >> 32 < threshold;
  }

 private:
  uint64_t seed_;
  uint32_t item_low_, epoch_, high_;
  uint32_t block_ = 0;
  bool waiting_ = false;  // whether second_ has not been handed out
  uint64_t second_ = 0;
};

}  // namespace fastssl::host
