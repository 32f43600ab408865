// The plugin: one layer's attention as TensorRT's IPluginV3.
#pragma once

#include <array>

#include "launch.h"

namespace trt_resa {

inline constexpr char kPluginName[] = "ReSAAttention";
inline constexpr char kPluginVersion[] = "1";
inline constexpr char kPluginNamespace[] = "trt_resa";

// TensorRT makes one per layer, clones it freely, and attaches a clone to every execution context.
// Between calls a plugin keeps the shape that onShapeChange announced and no device memory: two
// contexts, or two captured graphs, share nothing.
class AttentionPlugin final : public nvinfer1::IPluginV3,
                              public nvinfer1::v_1_0::IPluginV3OneCore,
                              public nvinfer1::v_1_0::IPluginV3OneBuild,
                              public nvinfer1::v_1_0::IPluginV3OneRuntime {
 public:
  explicit AttentionPlugin(const Attributes& attributes) : attributes_(attributes) {}

  // IPluginV3. Nothing here overrides getInterfaceInfo: each base must answer for itself.
  nvinfer1::IPluginCapability* getCapabilityInterface(
      nvinfer1::PluginCapabilityType type) noexcept override;
  nvinfer1::IPluginV3* clone() noexcept override;

  // IPluginV3OneCore
  const char* getPluginName() const noexcept override { return kPluginName; }
  const char* getPluginVersion() const noexcept override { return kPluginVersion; }
  const char* getPluginNamespace() const noexcept override { return kPluginNamespace; }

  // IPluginV3OneBuild
  int32_t getNbOutputs() const noexcept override { return kNumOutputs; }
  int32_t getOutputDataTypes(nvinfer1::DataType* output_types, int32_t num_outputs,
                             const nvinfer1::DataType* input_types,
                             int32_t num_inputs) const noexcept override;
  int32_t getOutputShapes(const nvinfer1::DimsExprs* inputs, int32_t num_inputs,
                          const nvinfer1::DimsExprs* shape_inputs, int32_t num_shape_inputs,
                          nvinfer1::DimsExprs* outputs, int32_t num_outputs,
                          nvinfer1::IExprBuilder& builder) noexcept override;
  bool supportsFormatCombination(int32_t position, const nvinfer1::DynamicPluginTensorDesc* tensors,
                                 int32_t num_inputs, int32_t num_outputs) noexcept override;
  int32_t configurePlugin(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t num_outputs) noexcept override;
  size_t getWorkspaceSize(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t num_inputs,
                          const nvinfer1::DynamicPluginTensorDesc* outputs,
                          int32_t num_outputs) const noexcept override;

  // IPluginV3OneRuntime
  int32_t onShapeChange(const nvinfer1::PluginTensorDesc* inputs, int32_t num_inputs,
                        const nvinfer1::PluginTensorDesc* outputs,
                        int32_t num_outputs) noexcept override;
  int32_t enqueue(const nvinfer1::PluginTensorDesc* input_descs,
                  const nvinfer1::PluginTensorDesc* output_descs, const void* const* inputs,
                  void* const* outputs, void* workspace, cudaStream_t stream) noexcept override;
  nvinfer1::IPluginV3* attachToContext(nvinfer1::IPluginResourceContext* context) noexcept override;
  const nvinfer1::PluginFieldCollection* getFieldsToSerialize() noexcept override;

 private:
  bool read_profile(const nvinfer1::DynamicPluginTensorDesc* inputs, int32_t count,
                    Shape& shape) const noexcept;

  Attributes attributes_;

  bool sized_ = false;  // onShapeChange has set the two below
  Shape shape_ = {};
  Workspace workspace_ = {};

  // What getFieldsToSerialize returned last.
  std::array<nvinfer1::PluginField, kNumSerialized> fields_;
  nvinfer1::PluginFieldCollection collection_ = {};
};

}  // namespace trt_resa
