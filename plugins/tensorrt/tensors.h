// The plugin's inputs and output: order, types and shapes, checked in one place.
#pragma once

#include "attributes.h"

namespace trt_resa {

// Symbols: T rows, B sequences, M blocks per sequence, P phase extent, L layers, D head_dim.
enum Input : int32_t {
  kQkv,          // model [T, (q_heads + 2 * kv_heads) * D]; its type is the model's
  kPositionIds,  // int32 [T]
  kCuQueryLens,  // int32 [B + 1]
  kKvLens,       // int32 [B]
  kBlockTable,   // int32 [B, M]
  kPhase,        // int8 [P]: extent 0 is a sparse step, 1 a dense pass; contents are never read
  kKvPool,       // int64 [L], address of each layer's kv buffer
  kSummaryPool,  // int64 [L], address of each layer's summary buffer
  kInvFreq,      // float32 [rotary_dim / 2]
  kQNorm,        // model [D]; with kKNorm, or both left out where the model has no QK norm
  kKNorm,        // model [D]
  kMaxInputs
};

// Output 0: model [T, q_heads * D].
constexpr int32_t kNumOutputs = 1;

const char* input_name(int32_t index) noexcept;

// Without and with QK norm. On failure logs the reason.
bool is_input_count(const Attributes& attributes, int32_t count) noexcept;

// Whether the tensor at `position` may have its type and format, given those before it. The output
// stands behind the inputs.
bool supports_format(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                     int32_t num_inputs) noexcept;

// What differs between calls, read from the extents.
struct Shape {
  int32_t num_rows;
  int32_t batch_size;
  int32_t max_blocks_per_seq;
  int32_t dtype;  // enum trt_resa_dtype
  bool dense;     // of a profile: a dense pass is possible
  bool norm;      // the inputs have norm weights

  bool operator==(const Shape& other) const {
    return num_rows == other.num_rows && batch_size == other.batch_size &&
           max_blocks_per_seq == other.max_blocks_per_seq && dtype == other.dtype &&
           dense == other.dense && norm == other.norm;
  }
};

// Checks all inputs against one another and the attributes. On failure logs the reason.
bool read_shape(const Attributes& attributes, const nvinfer1::PluginTensorDesc* inputs,
                int32_t count, Shape& shape) noexcept;

}  // namespace trt_resa
