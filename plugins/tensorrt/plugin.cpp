#include "plugin.h"

#include <algorithm>
#include <new>

#include "host.h"
#include "trt_resa/status.h"

namespace trt_resa {
namespace {

using namespace nvinfer1;

constexpr int32_t kOk = 0;
constexpr int32_t kFailed = -1;
// Where a size cannot be known: more than any device has, so that the build fails instead of the
// first run. TensorRT may round sizes up, so not the largest number.
constexpr size_t kImpossibleSize = size_t{1} << 60;

bool succeeded(int32_t status, const char* what) {
  if (status == TRT_RESA_OK) return true;
  host::log(host::Severity::kERROR, "%s: %s (status %d)", what, trt_resa_status_string(status),
            status);
  return false;
}

}  // namespace

IPluginCapability* AttentionPlugin::getCapabilityInterface(PluginCapabilityType type) noexcept {
  switch (type) {
    case PluginCapabilityType::kCORE:
      return static_cast<IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD:
      return static_cast<IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME:
      return static_cast<IPluginV3OneRuntime*>(this);
  }
  return nullptr;
}

IPluginV3* AttentionPlugin::clone() noexcept {
  return new (std::nothrow) AttentionPlugin(attributes_);
}

int32_t AttentionPlugin::getOutputDataTypes(DataType* output_types, int32_t num_outputs,
                                            const DataType* input_types,
                                            int32_t num_inputs) const noexcept {
  if (num_outputs != kNumOutputs || !is_input_count(attributes_, num_inputs)) return kFailed;
  output_types[0] = input_types[kQkv];
  return kOk;
}

int32_t AttentionPlugin::getOutputShapes(const DimsExprs* inputs, int32_t num_inputs,
                                         const DimsExprs*, int32_t, DimsExprs* outputs,
                                         int32_t num_outputs, IExprBuilder& builder) noexcept {
  if (num_outputs != kNumOutputs || !is_input_count(attributes_, num_inputs)) return kFailed;
  if (inputs[kQkv].nbDims != 2) {
    host::log(host::Severity::kERROR, "qkv has %d dimensions; it must have 2", inputs[kQkv].nbDims);
    return kFailed;
  }
  outputs[0].nbDims = 2;
  outputs[0].d[0] = inputs[kQkv].d[0];
  outputs[0].d[1] = builder.constant(attributes_.attention_size());
  return kOk;
}

bool AttentionPlugin::supportsFormatCombination(int32_t position,
                                                const DynamicPluginTensorDesc* tensors,
                                                int32_t num_inputs, int32_t num_outputs) noexcept {
  return num_outputs == kNumOutputs && is_input_count(attributes_, num_inputs) && position >= 0 &&
         position < num_inputs + num_outputs && supports_format(position, tensors, num_inputs);
}

// The largest shape of a profile.
bool AttentionPlugin::read_profile(const DynamicPluginTensorDesc* inputs, int32_t count,
                                   Shape& shape) const noexcept {
  if (!is_input_count(attributes_, count)) return false;
  PluginTensorDesc largest[kMaxInputs];
  for (int32_t i = 0; i < count; ++i) {
    largest[i] = inputs[i].desc;
    largest[i].dims = inputs[i].max;
  }
  return read_shape(attributes_, largest, count, shape);
}

int32_t AttentionPlugin::configurePlugin(const DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                                         const DynamicPluginTensorDesc*,
                                         int32_t num_outputs) noexcept {
  Shape shape;
  return num_outputs == kNumOutputs && read_profile(inputs, num_inputs, shape) ? kOk : kFailed;
}

size_t AttentionPlugin::getWorkspaceSize(const DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                                         const DynamicPluginTensorDesc*, int32_t) const noexcept {
  Shape shape;
  if (!read_profile(inputs, num_inputs, shape)) return kImpossibleSize;
  // Both phases of a profile share one workspace.
  Workspace sparse;
  if (!succeeded(lay_out(attributes_, shape, false, sparse), "workspace of a sparse step")) {
    return kImpossibleSize;
  }
  if (!shape.dense) return sparse.bytes;
  Workspace dense;
  if (!succeeded(lay_out(attributes_, shape, true, dense), "workspace of a dense pass")) {
    return kImpossibleSize;
  }
  return std::max(sparse.bytes, dense.bytes);
}

int32_t AttentionPlugin::onShapeChange(const PluginTensorDesc* inputs, int32_t num_inputs,
                                       const PluginTensorDesc*, int32_t num_outputs) noexcept {
  sized_ = num_outputs == kNumOutputs && read_shape(attributes_, inputs, num_inputs, shape_) &&
           succeeded(lay_out(attributes_, shape_, shape_.dense, workspace_), "workspace");
  return sized_ ? kOk : kFailed;
}

int32_t AttentionPlugin::enqueue(const PluginTensorDesc* input_descs, const PluginTensorDesc*,
                                 const void* const* inputs, void* const* outputs, void* workspace,
                                 cudaStream_t stream) noexcept {
  Shape shape;
  if (!sized_ || !read_shape(attributes_, input_descs, shape_.norm ? kMaxInputs : kQNorm, shape) ||
      !(shape == shape_)) {
    host::log(host::Severity::kERROR, "enqueue was not preceded by onShapeChange with its shapes");
    return kFailed;
  }
  const int32_t status =
      launch(attributes_, shape_, workspace_, inputs, outputs[0], workspace, stream);
  return succeeded(status, shape_.dense ? "dense pass" : "sparse step") ? kOk : kFailed;
}

// An engine reserves the workspace that its build asked for. On a device with more multiprocessors
// a dense pass would write behind it.
IPluginV3* AttentionPlugin::attachToContext(IPluginResourceContext*) noexcept {
  size_t needed;
  if (attributes_.dense_workspace > 0) {
    if (!succeeded(dense_workspace_bytes(attributes_, needed), "workspace of a dense pass")) {
      return nullptr;
    }
    if (needed > static_cast<size_t>(attributes_.dense_workspace)) {
      host::log(
          host::Severity::kERROR,
          "the engine was built on a device where a dense pass takes %lld bytes of workspace; "
          "here it takes %zu: build the engine on this device",
          static_cast<long long>(attributes_.dense_workspace), needed);
      return nullptr;
    }
  }
  return clone();
}

const PluginFieldCollection* AttentionPlugin::getFieldsToSerialize() noexcept {
  size_t bytes = 0;
  if (dense_workspace_bytes(attributes_, bytes) == TRT_RESA_OK) {
    attributes_.dense_workspace = static_cast<int64_t>(bytes);
  }
  fields_ = serialized_fields(attributes_);
  collection_ = {kNumSerialized, fields_.data()};
  return &collection_;
}

}  // namespace trt_resa
