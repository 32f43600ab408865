// A host that drives the plugin as TensorRT does, for tests: a C API over the plugin's interface.
//
// Like TensorRT it hands out a logger, expressions of dimensions and fields whose memory does not
// outlive the call that they are passed to.

#include <dlfcn.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "abi/plugin_abi.h"

using namespace nvinfer1;

namespace {

int32_t reported_version = 0;
std::string messages;

struct Logger10 final : trt_resa::host::v10::Logger {
  void log(trt_resa::host::Severity, char const* message) noexcept override {
    messages.append(message).push_back('\n');
  }
};

struct Logger11 final : trt_resa::host::v11::Logger {
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILogger", 1, 0}; }
  void log(trt_resa::host::Severity, char const* message) noexcept override {
    messages.append(message).push_back('\n');
  }
};

struct Finder10 final : trt_resa::host::v10::LoggerFinder {
  Logger10 logger;
  trt_resa::host::v10::Logger* findLogger() override { return &logger; }
};

struct Finder11 final : trt_resa::host::v11::LoggerFinder {
  Logger11 logger;
  InterfaceInfo getInterfaceInfo() const noexcept override { return {"ILoggerFinder", 1, 0}; }
  trt_resa::host::v11::Logger* findLogger() override { return &logger; }
};

Finder10 finder10;
Finder11 finder11;

// Dimensions as TensorRT gives them to getOutputShapes: constants and, for a dimension that is not
// known yet, expressions that only have an identity.
struct Expression final : IDimensionExpr, private apiv::VDimensionExpr {
  int64_t value;  // -1: not constant
  explicit Expression(int64_t constant) : value(constant) { mImpl = this; }
  bool isConstant() const override { return value >= 0; }
  int64_t getConstantValue() const override { return value; }
  bool isSizeTensor() const override { return false; }
};

struct Expressions final : IExprBuilder, private apiv::VExprBuilder {
  std::vector<std::unique_ptr<Expression>> owned;
  Expressions() { mImpl = this; }
  IDimensionExpr const* make(int64_t value) {
    owned.push_back(std::make_unique<Expression>(value));
    return owned.back().get();
  }
  IDimensionExpr const* constant(int64_t value) override { return make(value); }
  IDimensionExpr const* operation(DimensionOperation, IDimensionExpr const&,
                                  IDimensionExpr const&) override {
    return make(-1);
  }
  IDimensionExpr const* declareSizeTensor(int32_t, IDimensionExpr const&,
                                          IDimensionExpr const&) override {
    return make(-1);
  }
};

struct Context final : IPluginResourceContext {
  IGpuAllocator* getGpuAllocator() const noexcept override { return nullptr; }
  IErrorRecorder* getErrorRecorder() const noexcept override { return nullptr; }
};

template <typename Capability>
Capability& capability(IPluginV3* plugin, PluginCapabilityType type) {
  return *static_cast<Capability*>(plugin->getCapabilityInterface(type));
}

IPluginV3OneBuild& build_of(IPluginV3* plugin) {
  return capability<IPluginV3OneBuild>(plugin, PluginCapabilityType::kBUILD);
}

IPluginV3OneRuntime& runtime_of(IPluginV3* plugin) {
  return capability<IPluginV3OneRuntime>(plugin, PluginCapabilityType::kRUNTIME);
}

size_t size_of(PluginFieldType type) {
  return type == PluginFieldType::kINT64 || type == PluginFieldType::kFLOAT64 ? 8 : 4;
}

}  // namespace

#define TRT_RESA_API extern "C" __attribute__((visibility("default")))

// The plugin reads it beside the finder that it is given, to learn the host's generation.
TRT_RESA_API int32_t getInferLibVersion() noexcept {
  return reported_version;
}

struct conformance_tensor {
  int32_t type;
  int32_t rank;
  int64_t dims[8];
};

namespace {

Dims dims_of(const conformance_tensor& tensor) {
  Dims dims = {};
  dims.nbDims = tensor.rank;
  std::memcpy(dims.d, tensor.dims, sizeof(dims.d));
  return dims;
}

std::vector<PluginTensorDesc> descs_of(const conformance_tensor* tensors, int32_t count) {
  std::vector<PluginTensorDesc> descs(count);
  for (int32_t i = 0; i < count; ++i) {
    descs[i] = {dims_of(tensors[i]), static_cast<DataType>(tensors[i].type), TensorFormat::kLINEAR,
                1.0f};
  }
  return descs;
}

// A profile in which the first dimension of each tensor is dynamic.
std::vector<DynamicPluginTensorDesc> profile_of(const conformance_tensor* largest, int32_t count) {
  std::vector<DynamicPluginTensorDesc> profile(count);
  const std::vector<PluginTensorDesc> descs = descs_of(largest, count);
  for (int32_t i = 0; i < count; ++i) {
    profile[i].desc = descs[i];
    profile[i].min = profile[i].opt = profile[i].max = descs[i].dims;
    profile[i].desc.dims.d[0] = -1;
    profile[i].min.d[0] = 0;
  }
  return profile;
}

}  // namespace

// Opens the plugin as a host of this version and returns its creator, or null with a message.
TRT_RESA_API IPluginCreatorV3One* conformance_open(const char* path, int32_t version) {
  messages.clear();
  reported_version = version;
  void* library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    messages = dlerror();
    return nullptr;
  }
  using SetFinder = void (*)(void*);
  using GetCreators = IPluginCreatorInterface* const* (*)(int32_t&);
  const auto set_finder = reinterpret_cast<SetFinder>(dlsym(library, "setLoggerFinder"));
  const auto get_creators = reinterpret_cast<GetCreators>(dlsym(library, "getCreators"));
  if (set_finder == nullptr || get_creators == nullptr) {
    messages = "setLoggerFinder or getCreators is not exported";
    return nullptr;
  }
  set_finder(version >= 110000
                 ? static_cast<void*>(static_cast<trt_resa::host::v11::LoggerFinder*>(&finder11))
                 : static_cast<trt_resa::host::v10::LoggerFinder*>(&finder10));
  int32_t count = 0;
  IPluginCreatorInterface* const* creators = get_creators(count);
  if (count != 1) {
    messages = "one creator was expected";
    return nullptr;
  }
  return static_cast<IPluginCreatorV3One*>(creators[0]);
}

// What the plugin logged since the last call.
TRT_RESA_API const char* conformance_messages() {
  static std::string taken;
  taken.swap(messages);
  messages.clear();
  return taken.c_str();
}

// Fields as arrays of one scalar each, of int32 or float32 where `is_float`.
TRT_RESA_API IPluginV3* conformance_create(IPluginCreatorV3One* creator, int32_t count,
                                           const char* const* names, const double* values,
                                           const int32_t* is_float) {
  std::vector<float> floats(values, values + count);
  std::vector<int32_t> integers(values, values + count);
  std::vector<PluginField> fields;
  for (int32_t i = 0; i < count; ++i) {
    const void* data = is_float[i] ? static_cast<void*>(&floats[i]) : &integers[i];
    fields.emplace_back(names[i], data,
                        is_float[i] ? PluginFieldType::kFLOAT32 : PluginFieldType::kINT32, 1);
  }
  const PluginFieldCollection collection = {count, fields.data()};
  return creator->createPlugin("attention", &collection, TensorRTPhase::kBUILD);
}

// As an engine does: the fields become bytes, packed without alignment, and a plugin again.
TRT_RESA_API IPluginV3* conformance_reload(IPluginCreatorV3One* creator, IPluginV3* plugin) {
  const PluginFieldCollection* saved = runtime_of(plugin).getFieldsToSerialize();
  if (saved == nullptr) return nullptr;
  std::vector<char> bytes(1);
  std::vector<size_t> offsets;
  for (int32_t i = 0; i < saved->nbFields; ++i) {
    const PluginField& field = saved->fields[i];
    offsets.push_back(bytes.size());
    const char* data = static_cast<const char*>(field.data);
    bytes.insert(bytes.end(), data, data + field.length * size_of(field.type));
  }
  std::vector<PluginField> fields;
  for (int32_t i = 0; i < saved->nbFields; ++i) {
    const PluginField& field = saved->fields[i];
    fields.emplace_back(field.name, bytes.data() + offsets[i], field.type, field.length);
  }
  const PluginFieldCollection collection = {saved->nbFields, fields.data()};
  return creator->createPlugin("attention", &collection, TensorRTPhase::kRUNTIME);
}

TRT_RESA_API void conformance_destroy(IPluginV3* plugin) {
  delete plugin;
}

TRT_RESA_API IPluginV3* conformance_clone(IPluginV3* plugin) {
  return plugin->clone();
}

TRT_RESA_API IPluginV3* conformance_attach(IPluginV3* plugin) {
  Context context;
  return runtime_of(plugin).attachToContext(&context);
}

// Every interface's own name and version, and the plugin's identity, in one line.
TRT_RESA_API const char* conformance_identity(IPluginV3* plugin) {
  static std::string text;
  text.clear();
  const auto add = [&](const IVersionedInterface& object) {
    const InterfaceInfo info = object.getInterfaceInfo();
    text += std::string(info.kind) + " " + std::to_string(info.major) + "." +
            std::to_string(info.minor) + ", ";
  };
  auto& core = capability<IPluginV3OneCore>(plugin, PluginCapabilityType::kCORE);
  add(*plugin);
  add(core);
  add(build_of(plugin));
  add(runtime_of(plugin));
  if (plugin->getCapabilityInterface(static_cast<PluginCapabilityType>(9)) != nullptr) {
    text += "unknown capability, ";
  }
  text += std::string(core.getPluginNamespace()) + "::" + core.getPluginName() + " " +
          core.getPluginVersion();
  return text.c_str();
}

// Whether the tensor at `position` is accepted; `formats` are numbers of TensorFormat. The tensors
// behind it are garbage, as they may be.
TRT_RESA_API int32_t conformance_format(IPluginV3* plugin, int32_t position,
                                        const conformance_tensor* tensors, const int32_t* formats,
                                        int32_t num_inputs) {
  const int32_t count = num_inputs + 1;
  std::vector<DynamicPluginTensorDesc> descs = profile_of(tensors, count);
  for (int32_t i = 0; i < count; ++i) {
    descs[i].desc.format = static_cast<TensorFormat>(formats[i]);
    if (i > position) std::memset(&descs[i], 0x5A, sizeof(descs[i]));
  }
  return build_of(plugin).supportsFormatCombination(position, descs.data(), num_inputs, 1);
}

// Type and shape of the output; a dimension that is neither constant nor an input's is -1,
// dimension d of input i is -2 - 8 i - d.
TRT_RESA_API int32_t conformance_output(IPluginV3* plugin, const conformance_tensor* inputs,
                                        int32_t num_inputs, conformance_tensor* output) {
  IPluginV3OneBuild& build = build_of(plugin);
  if (build.getNbOutputs() != 1) return -100;
  std::vector<DataType> types;
  std::vector<DimsExprs> shapes(num_inputs);
  Expressions expressions;
  for (int32_t i = 0; i < num_inputs; ++i) {
    types.push_back(static_cast<DataType>(inputs[i].type));
    shapes[i].nbDims = inputs[i].rank;
    for (int32_t d = 0; d < inputs[i].rank; ++d) {
      shapes[i].d[d] = expressions.make(inputs[i].dims[d]);
    }
  }
  DataType type = {};
  int32_t status = build.getOutputDataTypes(&type, 1, types.data(), num_inputs);
  if (status != 0) return status;
  DimsExprs shape = {};
  status = build.getOutputShapes(shapes.data(), num_inputs, nullptr, 0, &shape, 1, expressions);
  if (status != 0) return status;
  output->type = static_cast<int32_t>(type);
  output->rank = shape.nbDims;
  for (int32_t d = 0; d < shape.nbDims; ++d) {
    output->dims[d] = shape.d[d]->isConstant() ? shape.d[d]->getConstantValue() : -1;
    for (int32_t i = 0; i < num_inputs; ++i) {
      for (int32_t e = 0; e < inputs[i].rank; ++e) {
        if (shape.d[d] == shapes[i].d[e]) output->dims[d] = -2 - 8 * i - e;
      }
    }
  }
  return 0;
}

TRT_RESA_API int32_t conformance_configure(IPluginV3* plugin, const conformance_tensor* largest,
                                           int32_t num_inputs) {
  const std::vector<DynamicPluginTensorDesc> tensors = profile_of(largest, num_inputs + 1);
  return build_of(plugin).configurePlugin(tensors.data(), num_inputs, tensors.data() + num_inputs,
                                          1);
}

TRT_RESA_API uint64_t conformance_workspace(IPluginV3* plugin, const conformance_tensor* largest,
                                            int32_t num_inputs) {
  const std::vector<DynamicPluginTensorDesc> tensors = profile_of(largest, num_inputs + 1);
  return build_of(plugin).getWorkspaceSize(tensors.data(), num_inputs, tensors.data() + num_inputs,
                                           1);
}

TRT_RESA_API int32_t conformance_shape(IPluginV3* plugin, const conformance_tensor* tensors,
                                       int32_t num_inputs) {
  const std::vector<PluginTensorDesc> descs = descs_of(tensors, num_inputs + 1);
  return runtime_of(plugin).onShapeChange(descs.data(), num_inputs, descs.data() + num_inputs, 1);
}

TRT_RESA_API int32_t conformance_enqueue(IPluginV3* plugin, const conformance_tensor* tensors,
                                         int32_t num_inputs, const void* const* inputs,
                                         void* output, void* workspace, void* stream) {
  const std::vector<PluginTensorDesc> descs = descs_of(tensors, num_inputs + 1);
  return runtime_of(plugin).enqueue(descs.data(), descs.data() + num_inputs, inputs, &output,
                                    workspace, static_cast<cudaStream_t>(stream));
}
