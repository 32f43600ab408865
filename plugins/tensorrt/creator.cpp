#include "creator.h"

#include <new>

#include "plugin.h"

namespace trt_resa {

nvinfer1::IPluginV3* AttentionPluginCreator::createPlugin(
    const char*, const nvinfer1::PluginFieldCollection* fields,
    nvinfer1::TensorRTPhase phase) noexcept {
  Attributes attributes;
  if (!parse_attributes(fields, phase, attributes)) return nullptr;
  return new (std::nothrow) AttentionPlugin(attributes);
}

const nvinfer1::PluginFieldCollection* AttentionPluginCreator::getFieldNames() noexcept {
  return &attribute_fields();
}

const char* AttentionPluginCreator::getPluginName() const noexcept {
  return kPluginName;
}

const char* AttentionPluginCreator::getPluginVersion() const noexcept {
  return kPluginVersion;
}

const char* AttentionPluginCreator::getPluginNamespace() const noexcept {
  return kPluginNamespace;
}

}  // namespace trt_resa
