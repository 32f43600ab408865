// The TensorRT that hosts this library: its generation, its logger, its registry.
#pragma once

#include "abi/plugin_abi.h"

namespace trt_resa::host {

// Keeps what setLoggerFinder was given; null forgets it.
void set_logger_finder(void* finder) noexcept;

// Sends a formatted message to the host's logger, or to stderr where there is none. Allocates
// nothing; messages are cut at 511 bytes.
void log(Severity severity, const char* format, ...) noexcept __attribute__((format(printf, 2, 3)));

// Registers the creator with the registry of a TensorRT in this process, for hosts that only open
// the library. False where there is none, or where the registry has a plugin of that name.
bool register_with_host(nvinfer1::IPluginCreatorV3One& creator) noexcept;
void deregister_with_host(const nvinfer1::IPluginCreatorV3One& creator) noexcept;

}  // namespace trt_resa::host
