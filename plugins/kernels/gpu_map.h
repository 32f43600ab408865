// Where the multiprocessors of a GPU lie, which it does not tell and which is therefore measured.
//
// A GPU of compute capability 9.0 consists of GPCs, groups of multiprocessors in which a cluster
// lies, in two halves with an L2 cache each. What one half reads from the other's memory goes
// through a link, so that clusters read fastest if they lie in both halves.
#pragma once

#include <cstdint>

namespace trt_resa {

constexpr int kMaxMultiprocessors = 256;
constexpr int kGpcsOfHalf = 4;
constexpr int kLeastOfGpc = 4;  // multiprocessors: smaller groups do not count as GPCs

struct GpuMap {
  // The GPC of each multiprocessor: 0 to 3 lie in one half, 4 to 7 in the other.
  uint8_t gpc[kMaxMultiprocessors] = {};
  int multiprocessors = 0;  // of which that is known: all or none
  int gpcs = 0;
};

// Of the current device. The first call for a device takes some milliseconds, in which it launches
// kernels in a stream of its own and waits for them; it may be made while another stream is
// captured.
const GpuMap& gpu_map();

}  // namespace trt_resa
