// The part of TensorRT's binary interface that the plugin uses.
//
// With TRT_RESA_TENSORRT_SDK the first half comes from NVIDIA's headers. Without, it is declared
// here from the public reference (TensorRT C++ API, IPluginV3 and its capabilities): names, order
// of virtual functions, members and enumerators are facts of the interface; tests compare every one
// of them with the official headers (conformance/facts.cpp). Plugin interfaces carry versions of
// their own, which stand in getInterfaceInfo: PLUGIN, PLUGIN_V3ONE_CORE, _BUILD and _RUNTIME,
// PLUGIN CREATOR_V3ONE are 1.0 and laid out alike in TensorRT 10 and 11.
//
// What the host gives to the plugin does differ: ILogger, ILoggerFinder and IPluginRegistry were
// rearranged from 10 to 11, without a version that one could ask for. The second half declares both
// layouts and host.cpp chooses at run time, so one library serves both.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(TRT_RESA_TENSORRT_SDK)

#include <NvInferRuntime.h>

#else

using cudaStream_t = struct CUstream_st*;

namespace nvinfer1 {

using AsciiChar = char;

enum class DataType : int32_t {
  kFLOAT = 0,
  kHALF = 1,
  kINT8 = 2,
  kINT32 = 3,
  kBF16 = 7,
  kINT64 = 8,
};

enum class TensorFormat : int32_t { kLINEAR = 0 };

enum class PluginFieldType : int32_t {
  kFLOAT16 = 0,
  kFLOAT32 = 1,
  kFLOAT64 = 2,
  kINT8 = 3,
  kINT16 = 4,
  kINT32 = 5,
  kCHAR = 6,
  kDIMS = 7,
  kUNKNOWN = 8,
  kBF16 = 9,
  kINT64 = 10,
};

enum class PluginCapabilityType : int32_t { kCORE = 0, kBUILD = 1, kRUNTIME = 2 };
enum class TensorRTPhase : int32_t { kBUILD = 0, kRUNTIME = 1 };
enum class APILanguage : int32_t { kCPP = 0, kPYTHON = 1 };

class Dims64 {
 public:
  static constexpr int32_t MAX_DIMS{8};
  int32_t nbDims;
  int64_t d[MAX_DIMS];
};
using Dims = Dims64;

class InterfaceInfo {
 public:
  char const* kind;
  int32_t major;
  int32_t minor;
};

class PluginField {
 public:
  AsciiChar const* name;
  void const* data;
  PluginFieldType type;
  int32_t length;
  PluginField(AsciiChar const* field_name = nullptr, void const* field_data = nullptr,
              PluginFieldType field_type = PluginFieldType::kUNKNOWN,
              int32_t field_length = 0) noexcept
      : name(field_name), data(field_data), type(field_type), length(field_length) {}
};

struct PluginFieldCollection {
  int32_t nbFields{};
  PluginField const* fields{};
};

struct PluginTensorDesc {
  Dims dims;
  DataType type;
  TensorFormat format;
  float scale;
};

struct DynamicPluginTensorDesc {
  PluginTensorDesc desc;
  Dims min;
  Dims max;
  Dims opt;
};

enum class DimensionOperation : int32_t {};  // passed through, never named

// Expressions and their builder are thin shells: a virtual destructor, then a pointer to the object
// whose virtual functions do the work.
class IDimensionExpr;

namespace apiv {

class VRoot {
 public:
  virtual ~VRoot() noexcept = default;
};

class VDimensionExpr : public VRoot {
 public:
  virtual bool isConstant() const = 0;
  virtual int64_t getConstantValue() const = 0;
  virtual bool isSizeTensor() const = 0;
};

class VExprBuilder : public VRoot {
 public:
  virtual IDimensionExpr const* constant(int64_t value) = 0;
  virtual IDimensionExpr const* operation(DimensionOperation op, IDimensionExpr const& first,
                                          IDimensionExpr const& second) = 0;
  virtual IDimensionExpr const* declareSizeTensor(int32_t index, IDimensionExpr const& opt,
                                                  IDimensionExpr const& upper) = 0;
};

}  // namespace apiv

class INoCopy {
 protected:
  INoCopy() = default;
  virtual ~INoCopy() = default;
  INoCopy(INoCopy const&) = delete;
  INoCopy& operator=(INoCopy const&) = delete;
};

class IDimensionExpr : public INoCopy {
 public:
  bool isConstant() const noexcept { return mImpl->isConstant(); }
  int64_t getConstantValue() const noexcept { return mImpl->getConstantValue(); }

 protected:
  apiv::VDimensionExpr* mImpl;
  ~IDimensionExpr() noexcept override = default;
};

class IExprBuilder : public INoCopy {
 public:
  IDimensionExpr const* constant(int64_t value) noexcept { return mImpl->constant(value); }

 protected:
  apiv::VExprBuilder* mImpl;
  ~IExprBuilder() noexcept override = default;
};

class DimsExprs {
 public:
  int32_t nbDims;
  IDimensionExpr const* d[Dims::MAX_DIMS];
};

class IVersionedInterface {
 public:
  virtual APILanguage getAPILanguage() const noexcept { return APILanguage::kCPP; }
  virtual InterfaceInfo getInterfaceInfo() const noexcept = 0;
  virtual ~IVersionedInterface() noexcept = default;
};

namespace v_1_0 {

class IErrorRecorder;
class IGpuAllocator;

class IPluginCapability : public IVersionedInterface {};

class IPluginCreatorInterface : public IVersionedInterface {};

class IPluginV3 : public IVersionedInterface {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN", 1, 0}; }
  virtual IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept = 0;
  virtual IPluginV3* clone() noexcept = 0;
};

}  // namespace v_1_0

using IErrorRecorder = v_1_0::IErrorRecorder;
using IGpuAllocator = v_1_0::IGpuAllocator;
using IPluginCapability = v_1_0::IPluginCapability;
using IPluginCreatorInterface = v_1_0::IPluginCreatorInterface;
using IPluginV3 = v_1_0::IPluginV3;

class IPluginResourceContext {
 public:
  virtual IGpuAllocator* getGpuAllocator() const noexcept = 0;
  virtual IErrorRecorder* getErrorRecorder() const noexcept = 0;
  virtual ~IPluginResourceContext() noexcept = default;
};

namespace v_1_0 {

class IPluginV3OneCore : public IPluginCapability {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_CORE", 1, 0}; }
  virtual AsciiChar const* getPluginName() const noexcept = 0;
  virtual AsciiChar const* getPluginVersion() const noexcept = 0;
  virtual AsciiChar const* getPluginNamespace() const noexcept = 0;
};

class IPluginV3OneBuild : public IPluginCapability {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"PLUGIN_V3ONE_BUILD", 1, 0}; }
  virtual int32_t configurePlugin(DynamicPluginTensorDesc const* in, int32_t nbInputs,
                                  DynamicPluginTensorDesc const* out,
                                  int32_t nbOutputs) noexcept = 0;
  virtual int32_t getOutputDataTypes(DataType* outputTypes, int32_t nbOutputs,
                                     const DataType* inputTypes,
                                     int32_t nbInputs) const noexcept = 0;
  virtual int32_t getOutputShapes(DimsExprs const* inputs, int32_t nbInputs,
                                  DimsExprs const* shapeInputs, int32_t nbShapeInputs,
                                  DimsExprs* outputs, int32_t nbOutputs,
                                  IExprBuilder& exprBuilder) noexcept = 0;
  virtual bool supportsFormatCombination(int32_t pos, DynamicPluginTensorDesc const* inOut,
                                         int32_t nbInputs, int32_t nbOutputs) noexcept = 0;
  virtual int32_t getNbOutputs() const noexcept = 0;
  virtual size_t getWorkspaceSize(DynamicPluginTensorDesc const*, int32_t,
                                  DynamicPluginTensorDesc const*, int32_t) const noexcept {
    return 0;
  }
  virtual int32_t getValidTactics(int32_t*, int32_t) noexcept { return 0; }
  virtual int32_t getNbTactics() noexcept { return 0; }
  virtual char const* getTimingCacheID() noexcept { return nullptr; }
  virtual int32_t getFormatCombinationLimit() noexcept { return 100; }
  virtual char const* getMetadataString() noexcept { return nullptr; }
};

class IPluginV3OneRuntime : public IPluginCapability {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override {
    return {"PLUGIN_V3ONE_RUNTIME", 1, 0};
  }
  virtual int32_t setTactic(int32_t) noexcept { return 0; }
  virtual int32_t onShapeChange(PluginTensorDesc const* in, int32_t nbInputs,
                                PluginTensorDesc const* out, int32_t nbOutputs) noexcept = 0;
  virtual int32_t enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const* outputDesc,
                          void const* const* inputs, void* const* outputs, void* workspace,
                          cudaStream_t stream) noexcept = 0;
  virtual IPluginV3* attachToContext(IPluginResourceContext* context) noexcept = 0;
  virtual PluginFieldCollection const* getFieldsToSerialize() noexcept = 0;
};

class IPluginCreatorV3One : public IPluginCreatorInterface {
 public:
  InterfaceInfo getInterfaceInfo() const noexcept override {
    return {"PLUGIN CREATOR_V3ONE", 1, 0};
  }
  virtual IPluginV3* createPlugin(AsciiChar const* name, PluginFieldCollection const* fc,
                                  TensorRTPhase phase) noexcept = 0;
  virtual PluginFieldCollection const* getFieldNames() noexcept = 0;
  virtual AsciiChar const* getPluginName() const noexcept = 0;
  virtual AsciiChar const* getPluginVersion() const noexcept = 0;
  virtual AsciiChar const* getPluginNamespace() const noexcept = 0;
};

}  // namespace v_1_0

using IPluginV3OneCore = v_1_0::IPluginV3OneCore;
using IPluginV3OneBuild = v_1_0::IPluginV3OneBuild;
using IPluginV3OneRuntime = v_1_0::IPluginV3OneRuntime;
using IPluginCreatorV3One = v_1_0::IPluginCreatorV3One;

}  // namespace nvinfer1

#endif  // TRT_RESA_TENSORRT_SDK

// Interfaces that the host implements, in both layouts. Functions that the plugin does not call
// are placeholders: they only hold their place in the table.
namespace trt_resa::host {

using Creator = nvinfer1::IPluginCreatorInterface;

enum class Severity : int32_t { kERROR = 1 };

namespace v10 {  // TensorRT 10, TensorRT-RTX up to 1.4

class Logger {
 public:
  virtual void log(Severity severity, char const* message) noexcept = 0;

 protected:
  virtual ~Logger() = default;
};

class LoggerFinder {
 public:
  virtual Logger* findLogger() = 0;

 protected:
  virtual ~LoggerFinder() = default;
};

class Registry {
  virtual void registerCreatorV1() = 0;
  virtual void getPluginCreatorList() = 0;
  virtual void getPluginCreator() = 0;

 protected:
  virtual ~Registry() noexcept = default;

 private:
  virtual void setErrorRecorder() = 0;
  virtual void getErrorRecorder() = 0;
  virtual void deregisterCreatorV1() = 0;
  virtual void isParentSearchEnabled() = 0;
  virtual void setParentSearchEnabled() = 0;
  virtual void loadLibrary() = 0;
  virtual void deregisterLibrary() = 0;

 public:
  virtual bool registerCreator(Creator& creator, char const* name_space) noexcept = 0;
  virtual Creator* const* getAllCreators(int32_t* count) const noexcept = 0;
  virtual Creator* getCreator(char const* name, char const* version,
                              char const* name_space) noexcept = 0;
  virtual bool deregisterCreator(Creator const& creator) noexcept = 0;
};

}  // namespace v10

namespace v11 {  // TensorRT 11, TensorRT-RTX from 1.6

class Logger : public nvinfer1::IVersionedInterface {
 public:
  virtual void log(Severity severity, char const* message) noexcept = 0;
};

class LoggerFinder : public nvinfer1::IVersionedInterface {
 public:
  virtual Logger* findLogger() = 0;
};

class Registry {
 protected:
  virtual ~Registry() noexcept = default;

 private:
  virtual void setErrorRecorder() = 0;
  virtual void getErrorRecorder() = 0;
  virtual void isParentSearchEnabled() = 0;
  virtual void setParentSearchEnabled() = 0;
  virtual void loadLibrary() = 0;
  virtual void deregisterLibrary() = 0;

 public:
  virtual bool registerCreator(Creator& creator, char const* name_space) noexcept = 0;
  virtual Creator* const* getAllCreators(int32_t* count) const noexcept = 0;
  virtual Creator* getCreator(char const* name, char const* version,
                              char const* name_space) noexcept = 0;
  virtual bool deregisterCreator(Creator const& creator) noexcept = 0;
};

}  // namespace v11

}  // namespace trt_resa::host
