// Prints the facts of the plugin ABI, one a line: sizes and offsets, enumerators, places in tables
// of virtual functions, interface versions. Compiled with NVIDIA's headers and with
// abi/plugin_abi.h it must print the same.

#include <cstdio>
#include <cstring>

#include "abi/plugin_abi.h"

using namespace nvinfer1;

namespace {

// In the Itanium C++ ABI a pointer to a virtual function holds one more than its offset.
template <typename Function>
long slot(Function function) {
  long offset;
  std::memcpy(&offset, &function, sizeof(offset));
  return (offset - 1) / static_cast<long>(sizeof(void*));
}

void print(const char* name, long value) {
  std::printf("%s %ld\n", name, value);
}

void print(const char* name, const InterfaceInfo& info) {
  std::printf("%s %s %d.%d\n", name, info.kind, info.major, info.minor);
}

#define SIZE(type) print("sizeof " #type, sizeof(type))
#define OFFSET(type, member) print("offset " #type "::" #member, offsetof(type, member))
#define VALUE(enumerator) print("value " #enumerator, static_cast<long>(enumerator))
#define SLOT(function) print("slot " #function, slot(&function))

void structs() {
  SIZE(Dims);
  OFFSET(Dims, d);
  SIZE(PluginField);
  OFFSET(PluginField, name);
  OFFSET(PluginField, data);
  OFFSET(PluginField, type);
  OFFSET(PluginField, length);
  SIZE(PluginFieldCollection);
  OFFSET(PluginFieldCollection, fields);
  SIZE(PluginTensorDesc);
  OFFSET(PluginTensorDesc, dims);
  OFFSET(PluginTensorDesc, type);
  OFFSET(PluginTensorDesc, format);
  OFFSET(PluginTensorDesc, scale);
  SIZE(DynamicPluginTensorDesc);
  OFFSET(DynamicPluginTensorDesc, min);
  OFFSET(DynamicPluginTensorDesc, max);
  OFFSET(DynamicPluginTensorDesc, opt);
  SIZE(DimsExprs);
  OFFSET(DimsExprs, d);
  SIZE(InterfaceInfo);
  OFFSET(InterfaceInfo, major);
  OFFSET(InterfaceInfo, minor);
  SIZE(IDimensionExpr);
  SIZE(IExprBuilder);
}

void enums() {
  VALUE(DataType::kFLOAT);
  VALUE(DataType::kHALF);
  VALUE(DataType::kINT8);
  VALUE(DataType::kINT32);
  VALUE(DataType::kBF16);
  VALUE(DataType::kINT64);
  VALUE(TensorFormat::kLINEAR);
  VALUE(PluginFieldType::kFLOAT16);
  VALUE(PluginFieldType::kFLOAT32);
  VALUE(PluginFieldType::kFLOAT64);
  VALUE(PluginFieldType::kINT8);
  VALUE(PluginFieldType::kINT16);
  VALUE(PluginFieldType::kINT32);
  VALUE(PluginFieldType::kCHAR);
  VALUE(PluginFieldType::kDIMS);
  VALUE(PluginFieldType::kUNKNOWN);
  VALUE(PluginFieldType::kBF16);
  VALUE(PluginFieldType::kINT64);
  VALUE(PluginCapabilityType::kCORE);
  VALUE(PluginCapabilityType::kBUILD);
  VALUE(PluginCapabilityType::kRUNTIME);
  VALUE(TensorRTPhase::kBUILD);
  VALUE(TensorRTPhase::kRUNTIME);
  VALUE(APILanguage::kCPP);
  VALUE(APILanguage::kPYTHON);
}

void tables() {
  SLOT(IVersionedInterface::getAPILanguage);
  SLOT(IVersionedInterface::getInterfaceInfo);
  SLOT(IPluginV3::getCapabilityInterface);
  SLOT(IPluginV3::clone);
  SLOT(IPluginV3OneCore::getPluginName);
  SLOT(IPluginV3OneCore::getPluginVersion);
  SLOT(IPluginV3OneCore::getPluginNamespace);
  SLOT(IPluginV3OneBuild::configurePlugin);
  SLOT(IPluginV3OneBuild::getOutputDataTypes);
  SLOT(IPluginV3OneBuild::getOutputShapes);
  SLOT(IPluginV3OneBuild::supportsFormatCombination);
  SLOT(IPluginV3OneBuild::getNbOutputs);
  SLOT(IPluginV3OneBuild::getWorkspaceSize);
  SLOT(IPluginV3OneBuild::getValidTactics);
  SLOT(IPluginV3OneBuild::getNbTactics);
  SLOT(IPluginV3OneBuild::getTimingCacheID);
  SLOT(IPluginV3OneBuild::getFormatCombinationLimit);
  SLOT(IPluginV3OneBuild::getMetadataString);
  SLOT(IPluginV3OneRuntime::setTactic);
  SLOT(IPluginV3OneRuntime::onShapeChange);
  SLOT(IPluginV3OneRuntime::enqueue);
  SLOT(IPluginV3OneRuntime::attachToContext);
  SLOT(IPluginV3OneRuntime::getFieldsToSerialize);
  SLOT(v_1_0::IPluginCreatorV3One::createPlugin);
  SLOT(v_1_0::IPluginCreatorV3One::getFieldNames);
  SLOT(v_1_0::IPluginCreatorV3One::getPluginName);
  SLOT(v_1_0::IPluginCreatorV3One::getPluginVersion);
  SLOT(v_1_0::IPluginCreatorV3One::getPluginNamespace);
  SLOT(IPluginResourceContext::getGpuAllocator);
  SLOT(IPluginResourceContext::getErrorRecorder);
  SLOT(apiv::VDimensionExpr::isConstant);
  SLOT(apiv::VDimensionExpr::getConstantValue);
  SLOT(apiv::VDimensionExpr::isSizeTensor);
  SLOT(apiv::VExprBuilder::constant);
  SLOT(apiv::VExprBuilder::operation);
  SLOT(apiv::VExprBuilder::declareSizeTensor);
}

struct Core final : IPluginV3OneCore {
  const char* getPluginName() const noexcept override { return ""; }
  const char* getPluginVersion() const noexcept override { return ""; }
  const char* getPluginNamespace() const noexcept override { return ""; }
};

// The interfaces' own answers, by calls that no override catches.
template <typename Interface>
InterfaceInfo info_of(const Interface& object) {
  return object.Interface::getInterfaceInfo();
}

struct Build final : IPluginV3OneBuild {
  int32_t configurePlugin(DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*,
                          int32_t) noexcept override {
    return 0;
  }
  int32_t getOutputDataTypes(DataType*, int32_t, const DataType*, int32_t) const noexcept override {
    return 0;
  }
  int32_t getOutputShapes(DimsExprs const*, int32_t, DimsExprs const*, int32_t, DimsExprs*, int32_t,
                          IExprBuilder&) noexcept override {
    return 0;
  }
  bool supportsFormatCombination(int32_t, DynamicPluginTensorDesc const*, int32_t,
                                 int32_t) noexcept override {
    return false;
  }
  int32_t getNbOutputs() const noexcept override { return 0; }
};

struct Runtime final : IPluginV3OneRuntime {
  int32_t onShapeChange(PluginTensorDesc const*, int32_t, PluginTensorDesc const*,
                        int32_t) noexcept override {
    return 0;
  }
  int32_t enqueue(PluginTensorDesc const*, PluginTensorDesc const*, void const* const*,
                  void* const*, void*, cudaStream_t) noexcept override {
    return 0;
  }
  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return nullptr; }
  PluginFieldCollection const* getFieldsToSerialize() noexcept override { return nullptr; }
};

struct Plugin final : IPluginV3 {
  IPluginCapability* getCapabilityInterface(PluginCapabilityType) noexcept override {
    return nullptr;
  }
  IPluginV3* clone() noexcept override { return nullptr; }
};

struct CreatorOfNothing final : v_1_0::IPluginCreatorV3One {
  IPluginV3* createPlugin(char const*, PluginFieldCollection const*,
                          TensorRTPhase) noexcept override {
    return nullptr;
  }
  PluginFieldCollection const* getFieldNames() noexcept override { return nullptr; }
  const char* getPluginName() const noexcept override { return ""; }
  const char* getPluginVersion() const noexcept override { return ""; }
  const char* getPluginNamespace() const noexcept override { return ""; }
};

void interfaces() {
  print("interface IPluginV3", info_of<IPluginV3>(Plugin{}));
  print("interface IPluginV3OneCore", info_of<IPluginV3OneCore>(Core{}));
  print("interface IPluginV3OneBuild", info_of<IPluginV3OneBuild>(Build{}));
  print("interface IPluginV3OneRuntime", info_of<IPluginV3OneRuntime>(Runtime{}));
  print("interface IPluginCreatorV3One", info_of<v_1_0::IPluginCreatorV3One>(CreatorOfNothing{}));
  print("format combinations", Build{}.getFormatCombinationLimit());
}

// What the host implements, which the two generations arrange differently.
#if defined(TRT_RESA_TENSORRT_SDK)
using HostRegistry = IPluginRegistry;
using HostLogger = ILogger;
using HostFinder = ILoggerFinder;
#elif TRT_RESA_HOST_GENERATION == 10
using namespace trt_resa::host::v10;
using HostRegistry = Registry;
using HostLogger = Logger;
using HostFinder = LoggerFinder;
#else
using namespace trt_resa::host::v11;
using HostRegistry = Registry;
using HostLogger = Logger;
using HostFinder = LoggerFinder;
#endif

void host() {
  bool (HostRegistry::*register_creator)(IPluginCreatorInterface&, char const*) noexcept =
      &HostRegistry::registerCreator;
  bool (HostRegistry::*deregister_creator)(IPluginCreatorInterface const&) noexcept =
      &HostRegistry::deregisterCreator;
  print("slot host registerCreator", slot(register_creator));
  print("slot host deregisterCreator", slot(deregister_creator));
  print("slot host getAllCreators", slot(&HostRegistry::getAllCreators));
  print("slot host getCreator", slot(&HostRegistry::getCreator));
  print("slot host log", slot(&HostLogger::log));
  print("slot host findLogger", slot(&HostFinder::findLogger));
}

}  // namespace

int main() {
  structs();
  enums();
  tables();
  interfaces();
  host();
}
