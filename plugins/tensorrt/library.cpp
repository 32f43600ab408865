// What the library exports, and what it does when it is opened and closed.

#include "creator.h"
#include "host.h"

namespace {

// Registers itself for hosts that only open the library. IPluginRegistry::loadLibrary opens it too,
// asks getCreators for the creators next, and fails on one that is registered already: there the
// registration is taken back.
class Library {
 public:
  Library() noexcept : registered_(trt_resa::host::register_with_host(creator)) {}
  ~Library() { take_back(); }
  Library(const Library&) = delete;
  Library& operator=(const Library&) = delete;

  void take_back() noexcept {
    if (registered_) trt_resa::host::deregister_with_host(creator);
    registered_ = false;
  }

  trt_resa::AttentionPluginCreator creator;

 private:
  bool registered_;
};

Library library;

}  // namespace

#define TRT_RESA_EXPORT extern "C" __attribute__((visibility("default")))

TRT_RESA_EXPORT void setLoggerFinder(void* finder) noexcept {
  trt_resa::host::set_logger_finder(finder);
}

TRT_RESA_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) noexcept {
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&library.creator};
  library.take_back();
  count = 1;
  return creators;
}
