// The plugin's attributes, in one table that names, parses, checks and serialises them.
#pragma once

#include <array>
#include <cstdint>

#include "abi/plugin_abi.h"

namespace trt_resa {

struct Attributes {
  int32_t layer;  // index into kv_pool and summary_pool
  int32_t q_heads;
  int32_t kv_heads;
  int32_t head_dim;
  int32_t block_size;
  int32_t rotary_dim;
  int32_t min_blocks;
  int32_t local_blocks;
  int32_t sink_blocks;
  int32_t dense_below;
  float rope_scale;
  float norm_eps;  // of QK norm, which the number of inputs decides about
  float softmax_scale;
  float keep_ratio;

  // Bytes of workspace that the dense pass takes on the device of the build, which the engine
  // reserves; 0 where that could not be known. Serialised, but not an attribute that users give.
  int64_t dense_workspace;

  // keep_ratio as the decimal fraction that was meant: PluginFields made of ONNX attributes have 32
  // bits, and 0.1f taken as a double is above 0.1, which changes the selection's rounding up.
  double exact_keep_ratio;

  int64_t qkv_size() const { return (static_cast<int64_t>(q_heads) + 2 * kv_heads) * head_dim; }
  int64_t attention_size() const { return static_cast<int64_t>(q_heads) * head_dim; }
};

constexpr int kNumAttributes = 14;
constexpr int kNumSerialized = kNumAttributes + 1;

// Fields that a user gives: names, types and lengths, without data.
const nvinfer1::PluginFieldCollection& attribute_fields() noexcept;

// Reads exactly the fields of the phase, and checks them. On failure logs the reason.
bool parse_attributes(const nvinfer1::PluginFieldCollection* fields, nvinfer1::TensorRTPhase phase,
                      Attributes& attributes) noexcept;

// Fields that point into `attributes`, as the runtime phase parses them.
std::array<nvinfer1::PluginField, kNumSerialized> serialized_fields(
    const Attributes& attributes) noexcept;

}  // namespace trt_resa
