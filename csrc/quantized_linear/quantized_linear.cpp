#include "quantized_linear/quantized_linear.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <atomic>
#include <memory>
#include <new>
#include <optional>

namespace fastssl {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int64_t kGrain = 1 << 20;        // multiplications that are worth a thread
constexpr int64_t kMaxRowsPerBlock = 240;  // a multiple of every tile; as many quantised rows stay in L2

int64_t divided_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

struct AlignedDelete {
  void operator()(int8_t* memory) const {
    ::operator delete(memory, std::align_val_t(64));
  }
};

// Blocks of rows, and blocks of columns where the rows alone would leave threads idle.
struct Blocks {
  int64_t rows, columns, count_rows, count_columns;

  Blocks(const QuantizedLinear& a, int64_t threads) {
    constexpr int64_t kTile = 12;
    const int64_t even = divided_up(divided_up(a.rows, divided_up(a.rows, kMaxRowsPerBlock)), kTile) * kTile;
    rows = std::min(kMaxRowsPerBlock, std::max(kTile, std::min(even, divided_up(a.rows, threads * kTile) * kTile)));
    count_rows = divided_up(a.rows, rows);
    const int64_t panels = divided_up(a.outputs, kColumnAlignment);
    columns = divided_up(panels, std::min(panels, divided_up(threads, count_rows))) * kColumnAlignment;
    count_columns = divided_up(a.outputs, columns);
  }
};

void run(const QuantizedLinear& a) {
  const int64_t useful =
      std::min<int64_t>(torch::stable::get_num_threads(), 1 + a.rows * a.inputs * a.outputs / kGrain);
  const Blocks blocks(a, useful);
  const int64_t count = blocks.count_rows * blocks.count_columns;
  const auto scratch_bytes = static_cast<size_t>(quantized_linear_scratch_bytes(blocks.rows, a.inputs));
  const auto kernel = FASTSSL_KERNEL(quantized_linear);
  std::atomic<int64_t> next{0};
  std::atomic<bool> out_of_memory{false};
  torch::stable::parallel_for(0, std::min(useful, count), 1, [&](int64_t begin, int64_t end) {
    for (int64_t worker = begin; worker < end; ++worker) {
      const std::unique_ptr<int8_t, AlignedDelete> scratch(
          static_cast<int8_t*>(::operator new(scratch_bytes, std::align_val_t(64), std::nothrow)));
      if (!scratch) {
        out_of_memory = true;
        return;
      }
      for (int64_t index = next++; index < count; index = next++) {
        const int64_t row = index / blocks.count_columns * blocks.rows;
        const int64_t column = index % blocks.count_columns * blocks.columns;
        kernel(a, row, std::min(a.rows, row + blocks.rows), column, std::min(a.outputs, column + blocks.columns),
               scratch.get());
      }
    }
  });
  STD_TORCH_CHECK(!out_of_memory, "quantized_linear: no memory for ", scratch_bytes, " bytes of scratch");
}

Tensor quantized_linear_forward(const Tensor& x_in, const Tensor& packed, const Tensor& scale, const Tensor& sum,
                                const std::optional<Tensor>& bias, bool gelu, bool vnni) {
  const Tensor x = x_in.is_contiguous() ? x_in : torch::stable::contiguous(x_in);
  const int64_t inputs = x.size(-1), rows = x.numel() / inputs, outputs = scale.numel();
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::BFloat16,
                  "quantized_linear: dtype of x");
  STD_TORCH_CHECK(
      packed.scalar_type() == ScalarType::Byte && packed.is_contiguous() &&
          packed.numel() == divided_up(outputs, kColumnAlignment) * kColumnAlignment * quantized_row_bytes(inputs),
      "quantized_linear: packed weight");
  STD_TORCH_CHECK(scale.scalar_type() == ScalarType::Float && scale.is_contiguous(), "quantized_linear: scale");
  STD_TORCH_CHECK(
      !bias || (bias->scalar_type() == ScalarType::Float && bias->is_contiguous() && bias->numel() == outputs),
      "quantized_linear: bias");
  STD_TORCH_CHECK(sum.scalar_type() == ScalarType::Float && sum.is_contiguous() && sum.numel() == outputs,
                  "quantized_linear: sum");
  Tensor y = torch::stable::new_empty(x, {rows, outputs});
  const QuantizedLinear args{
      .x = x.const_data_ptr(),
      .weight = packed.const_data_ptr<uint8_t>(),
      .weight_scale = scale.const_data_ptr<float>(),
      .weight_sum = sum.const_data_ptr<float>(),
      .bias = bias ? bias->const_data_ptr<float>() : nullptr,
      .y = y.mutable_data_ptr(),
      .rows = rows,
      .inputs = inputs,
      .outputs = outputs,
      .bfloat16 = x.scalar_type() == ScalarType::BFloat16,
      .gelu = gelu,
      .vnni = vnni && machine_has_vnni(),
  };
  if (rows > 0) run(args);
  return y;
}

}  // namespace
}  // namespace fastssl

STABLE_TORCH_LIBRARY_IMPL(fastssl, CPU, m) {
  m.impl("quantized_linear", TORCH_BOX(&fastssl::quantized_linear_forward));
}
