#include "host.h"

#include <dlfcn.h>
#include <link.h>

#include <atomic>
#include <cstdarg>
#include <cstdio>
#include <cstring>

namespace trt_resa::host {
namespace {

enum class Generation { kUnknown, k10, k11 };

// 101501 is TensorRT 10.15.1; 10400 is TensorRT-RTX 1.4.0, whose numbers start anew.
Generation generation_of(int32_t version) {
  if (version >= 110000 || (version >= 10500 && version < 20000)) return Generation::k11;
  if (version >= 100000 || (version >= 10000 && version < 20000)) return Generation::k10;
  return Generation::kUnknown;
}

using Version = int32_t (*)();

Generation generation_of(void* library) {
  const auto version = reinterpret_cast<Version>(dlsym(library, "getInferLibVersion"));
  return version == nullptr ? Generation::kUnknown : generation_of(version());
}

// Of the library that implements the object, which is where its table of functions lies. A process
// may hold several TensorRTs.
Generation generation_of_object(const void* object) {
  Dl_info info;
  if (dladdr(*static_cast<void* const*>(object), &info) != 0 && info.dli_fname != nullptr) {
    if (void* library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD)) {
      const Generation generation = generation_of(library);
      dlclose(library);
      if (generation != Generation::kUnknown) return generation;
    }
  }
  return generation_of(RTLD_DEFAULT);
}

std::atomic<void*> logger_finder{nullptr};
std::atomic<Generation> logger_generation{Generation::kUnknown};

bool log_to_host(Severity severity, const char* message) {
  void* finder = logger_finder.load();
  if (finder == nullptr) return false;
  const auto send = [&](auto* logger) {
    if (logger != nullptr) logger->log(severity, message);
    return logger != nullptr;
  };
  switch (logger_generation.load()) {
    case Generation::k10:
      return send(static_cast<v10::LoggerFinder*>(finder)->findLogger());
    case Generation::k11:
      return send(static_cast<v11::LoggerFinder*>(finder)->findLogger());
    default:
      return false;
  }
}

struct Registry {
  void* object = nullptr;
  Generation generation = Generation::kUnknown;
};

struct Path {
  char text[4096] = "";
};

// dl_iterate_phdr's callback: the first TensorRT. A host that a program loaded for itself alone (a
// Python module, a backend of Triton) is not in the global scope. Only the name is taken: the
// loader's lock is held here, and opening takes another.
int find_tensorrt(dl_phdr_info* info, size_t, void* found) {
  const char* slash = std::strrchr(info->dlpi_name, '/');
  const char* name = slash == nullptr ? info->dlpi_name : slash + 1;
  const auto starts_with = [&](const char* prefix) {
    return std::strncmp(name, prefix, std::strlen(prefix)) == 0;
  };
  if (!starts_with("libnvinfer.so") && !starts_with("libtensorrt_rtx.so")) return 0;
  Path& path = *static_cast<Path*>(found);
  std::snprintf(path.text, sizeof(path.text), "%s", info->dlpi_name);
  return 1;
}

Registry registry_of(void* library) {
  Registry registry;
  if (const auto get = reinterpret_cast<void* (*)()>(dlsym(library, "getPluginRegistry"))) {
    registry.generation = generation_of(library);
    registry.object = get();
  }
  return registry;
}

// Looked up by name, so that the library opens without a TensorRT and links to none.
Registry find_registry() {
  const Registry global = registry_of(RTLD_DEFAULT);
  if (global.object != nullptr) return global;
  Path path;
  if (dl_iterate_phdr(find_tensorrt, &path) == 0) return Registry{};
  void* library = dlopen(path.text, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return Registry{};
  const Registry registry = registry_of(library);
  dlclose(library);
  return registry;
}

template <typename Call>
bool with_registry(Call&& call) {
  const Registry registry = find_registry();
  if (registry.object == nullptr) return false;
  switch (registry.generation) {
    case Generation::k10:
      return call(*static_cast<v10::Registry*>(registry.object));
    case Generation::k11:
      return call(*static_cast<v11::Registry*>(registry.object));
    default:
      return false;
  }
}

// getCreator would tell too, but logs an error where there is none.
bool is_same_plugin(Creator& registered, nvinfer1::IPluginCreatorV3One& creator) {
  const nvinfer1::InterfaceInfo info = registered.getInterfaceInfo();
  if (std::strcmp(info.kind, creator.getInterfaceInfo().kind) != 0) return false;
  auto& other = static_cast<nvinfer1::IPluginCreatorV3One&>(registered);
  return std::strcmp(other.getPluginName(), creator.getPluginName()) == 0 &&
         std::strcmp(other.getPluginVersion(), creator.getPluginVersion()) == 0 &&
         std::strcmp(other.getPluginNamespace(), creator.getPluginNamespace()) == 0;
}

}  // namespace

void set_logger_finder(void* finder) noexcept {
  logger_generation = finder == nullptr ? Generation::kUnknown : generation_of_object(finder);
  logger_finder = finder;
}

void log(Severity severity, const char* format, ...) noexcept {
  char message[512];
  int used = std::snprintf(message, sizeof(message), "ReSAAttention: ");
  std::va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message + used, sizeof(message) - used, format, arguments);
  va_end(arguments);
  if (!log_to_host(severity, message)) std::fprintf(stderr, "%s\n", message);
}

bool register_with_host(nvinfer1::IPluginCreatorV3One& creator) noexcept {
  return with_registry([&](auto& registry) {
    int32_t count = 0;
    Creator* const* creators = registry.getAllCreators(&count);
    for (int32_t i = 0; creators != nullptr && i < count; ++i) {
      if (is_same_plugin(*creators[i], creator)) return false;
    }
    return registry.registerCreator(creator, creator.getPluginNamespace());
  });
}

void deregister_with_host(const nvinfer1::IPluginCreatorV3One& creator) noexcept {
  with_registry([&](auto& registry) { return registry.deregisterCreator(creator); });
}

}  // namespace trt_resa::host
