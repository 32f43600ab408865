// Which row each cluster of a launch takes (sparse_team.cuh).
//
// How fast clusters read depends on where on the GPU they lie: best if half of them are in either
// half of it, and few in one GPC. So more are launched than there are rows, and each draws one for
// the place where it finds itself, while the kernel before may still run.
#pragma once

#include "cluster.cuh"
#include "sparse_args.h"

namespace trt_resa {
namespace sparse {

// How many rows are taken after so many draws in the GPCs of a half, a byte each.
__device__ inline int taken_of_half(const Placement& p, uint32_t drawn) {
  int taken = 0;
#pragma unroll
  for (int i = 0; i < kGpcsOfHalf; ++i) {
    taken += min(static_cast<int>(drawn >> 8 * i & 0xff), p.per_gpc);
  }
  return min(taken, p.per_half);
}

// The row of this cluster, or -1 for none. One thread of each cluster of the launch calls it; when
// all have, the counter is zero again.
__device__ inline int draw_row(const Placement& p, unsigned long long* counter, int rows) {
  const int multiprocessor = cluster::multiprocessor();
  const int gpc = multiprocessor < kMaxMultiprocessors ? p.map.gpc[multiprocessor] : 0;
  const auto before = atomicAdd(counter, 1ull << 8 * gpc);
  int drawn = 0;
#pragma unroll
  for (int i = 0; i < 2 * kGpcsOfHalf; ++i) drawn += static_cast<int>(before >> 8 * i & 0xff);
  const int left = cluster::count() - drawn - 1;  // clusters that draw after this one
  if (left == 0) {
    *counter = 0;
    __threadfence();  // the next launch may draw when this thread allows it
  }
  const auto taken = [&](unsigned long long draws) {
    return min(taken_of_half(p, static_cast<uint32_t>(draws)) +
                   taken_of_half(p, static_cast<uint32_t>(draws >> 8 * kGpcsOfHalf)),
               rows);
  };
  // Where too few are left to come, one is taken in any place.
  const int row = max(taken(before), rows - left - 1);
  return max(taken(before + (1ull << 8 * gpc)), rows - left) > row ? row : -1;
}

}  // namespace sparse
}  // namespace trt_resa
