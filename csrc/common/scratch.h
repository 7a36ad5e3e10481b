// Uninitialised memory for the length of a call.
#pragma once

#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <new>

namespace fastssl {

class Scratch {
 public:
  explicit Scratch(int64_t bytes)
      : memory_(::operator new(static_cast<size_t>(bytes), std::align_val_t(kAlignment), std::nothrow)) {
    STD_TORCH_CHECK(memory_ != nullptr, "fastssl: no memory for ", bytes, " bytes of scratch");
  }
  ~Scratch() {
    ::operator delete(memory_, std::align_val_t(kAlignment));
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;

  // The next `count` numbers of it; the size of all that is taken is the sum of their bytes_of().
  template <class T>
  T* take(int64_t count) {
    T* const taken = reinterpret_cast<T*>(static_cast<char*>(memory_) + used_);
    used_ += bytes_of<T>(count);
    return taken;
  }
  template <class T>
  static int64_t bytes_of(int64_t count) {
    return (count * static_cast<int64_t>(sizeof(T)) + kAlignment - 1) / kAlignment * kAlignment;
  }

 private:
  static constexpr int64_t kAlignment = 64;  // bytes
  void* memory_;
  int64_t used_ = 0;
};

}  // namespace fastssl
