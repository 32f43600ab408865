// From shapes and tensors to launches of the kernel library.
#pragma once

#include "tensors.h"

namespace trt_resa {

// Layout of the workspace: the rows of q at its start, then the counters of a sparse step, then the
// kernels' scratch.
//
// The counters could live from call to call and save their memset, but for one buffer to serve
// every call its batch size would have to be the same: their layout depends on it.
struct Workspace {
  size_t counters;  // offset
  size_t scratch;   // offset
  size_t bytes;
};

// The one place that knows the layout: for a sparse step or a dense pass of this shape. Returns a
// status of the kernel library; a dense pass is sized for the current device.
int32_t lay_out(const Attributes& attributes, const Shape& shape, bool dense,
                Workspace& workspace) noexcept;

// Bytes of scratch that a dense pass takes on the current device.
int32_t dense_workspace_bytes(const Attributes& attributes, size_t& bytes) noexcept;

// Enqueues one layer's attention: appends to the cache in place and writes the rows of `output`.
// `inputs` stand in the order of enum Input. Returns a status of the kernel library.
int32_t launch(const Attributes& attributes, const Shape& shape, const Workspace& layout,
               const void* const* inputs, void* output, void* workspace,
               cudaStream_t stream) noexcept;

}  // namespace trt_resa
