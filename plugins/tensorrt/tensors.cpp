#include "tensors.h"

#include <cstdint>

#include "host.h"
#include "trt_resa/status.h"

namespace trt_resa {
namespace {

using nvinfer1::DataType;
using nvinfer1::DynamicPluginTensorDesc;
using nvinfer1::PluginTensorDesc;
using nvinfer1::TensorFormat;

struct Row {
  const char* name;
  DataType type;  // kHALF stands for the model's type
  int32_t rank;
};

constexpr Row kTable[kMaxInputs] = {
    {"qkv", DataType::kHALF, 2},
    {"position_ids", DataType::kINT32, 1},
    {"cu_query_lens", DataType::kINT32, 1},
    {"kv_lens", DataType::kINT32, 1},
    {"block_table", DataType::kINT32, 2},
    {"phase", DataType::kINT8, 1},
    {"kv_pool", DataType::kINT64, 1},
    {"summary_pool", DataType::kINT64, 1},
    {"inv_freq", DataType::kFLOAT, 1},
    {"q_norm", DataType::kHALF, 1},
    {"k_norm", DataType::kHALF, 1},
};

bool is_model_type(DataType type) {
  return type == DataType::kHALF || type == DataType::kBF16;
}

bool expect(int32_t input, int dimension, int64_t actual, int64_t expected) {
  if (actual == expected) return true;
  host::log(host::Severity::kERROR, "dimension %d of %s is %lld; it must be %lld", dimension,
            kTable[input].name, static_cast<long long>(actual), static_cast<long long>(expected));
  return false;
}

bool expect_range(int32_t input, int dimension, int64_t actual, int64_t low, int64_t high) {
  if (actual >= low && actual <= high) return true;
  host::log(host::Severity::kERROR, "dimension %d of %s is %lld; from %lld to %lld is allowed",
            dimension, kTable[input].name, static_cast<long long>(actual),
            static_cast<long long>(low), static_cast<long long>(high));
  return false;
}

}  // namespace

const char* input_name(int32_t index) noexcept {
  return index >= 0 && index < kMaxInputs ? kTable[index].name : "";
}

bool is_input_count(const Attributes& attributes, int32_t count) noexcept {
  if (count != kQNorm && count != kMaxInputs) {
    host::log(host::Severity::kERROR, "it has %d inputs; it takes %d, or %d with QK norm", count,
              kQNorm, kMaxInputs);
    return false;
  }
  if (count == kMaxInputs && !(attributes.norm_eps > 0.0f)) {
    host::log(host::Severity::kERROR, "it has weights of QK norm; norm_eps must be positive");
    return false;
  }
  return true;
}

bool supports_format(int32_t position, const DynamicPluginTensorDesc* tensors,
                     int32_t num_inputs) noexcept {
  const PluginTensorDesc& tensor = tensors[position].desc;
  if (tensor.format != TensorFormat::kLINEAR) return false;
  if (position == kQkv) return is_model_type(tensor.type);
  const DataType type = position < num_inputs ? kTable[position].type : DataType::kHALF;
  return tensor.type == (type == DataType::kHALF ? tensors[kQkv].desc.type : type);
}

bool read_shape(const Attributes& attributes, const PluginTensorDesc* inputs, int32_t count,
                Shape& shape) noexcept {
  if (!is_input_count(attributes, count)) return false;
  for (int32_t i = 0; i < count; ++i) {
    if (inputs[i].dims.nbDims != kTable[i].rank) {
      host::log(host::Severity::kERROR, "%s has %d dimensions; it must have %d", kTable[i].name,
                inputs[i].dims.nbDims, kTable[i].rank);
      return false;
    }
  }
  const auto extent = [&](int32_t input, int dimension) { return inputs[input].dims.d[dimension]; };
  const int64_t rows = extent(kQkv, 0);
  const int64_t batch = extent(kKvLens, 0);
  const int64_t blocks = extent(kBlockTable, 1);
  const bool valid =
      expect_range(kQkv, 0, rows, 0, INT32_MAX) &&
      expect(kQkv, 1, extent(kQkv, 1), attributes.qkv_size()) &&
      expect(kPositionIds, 0, extent(kPositionIds, 0), rows) &&
      expect_range(kKvLens, 0, batch, 0, INT32_MAX - 1) &&
      expect(kCuQueryLens, 0, extent(kCuQueryLens, 0), batch + 1) &&
      expect(kBlockTable, 0, extent(kBlockTable, 0), batch) &&
      expect_range(kBlockTable, 1, blocks, 1, INT32_MAX) &&
      expect_range(kPhase, 0, extent(kPhase, 0), 0, 1) &&
      expect_range(kKvPool, 0, extent(kKvPool, 0), attributes.layer + 1, INT32_MAX) &&
      expect(kSummaryPool, 0, extent(kSummaryPool, 0), extent(kKvPool, 0)) &&
      expect(kInvFreq, 0, extent(kInvFreq, 0), attributes.rotary_dim / 2) &&
      (count == kQNorm || (expect(kQNorm, 0, extent(kQNorm, 0), attributes.head_dim) &&
                           expect(kKNorm, 0, extent(kKNorm, 0), attributes.head_dim)));
  if (!valid) return false;
  if (!is_model_type(inputs[kQkv].type)) {
    host::log(host::Severity::kERROR, "qkv must be float16 or bfloat16");
    return false;
  }
  shape.num_rows = static_cast<int32_t>(rows);
  shape.batch_size = static_cast<int32_t>(batch);
  shape.max_blocks_per_seq = static_cast<int32_t>(blocks);
  shape.dtype = inputs[kQkv].type == DataType::kHALF ? TRT_RESA_FLOAT16 : TRT_RESA_BFLOAT16;
  shape.dense = extent(kPhase, 0) == 1;
  shape.norm = count == kMaxInputs;
  return true;
}

}  // namespace trt_resa
