// The kernel of the sparse step for head_dim 256: one file each, so that they compile side by side.

#include "sparse_launch.cuh"

namespace trt_resa {
namespace sparse {

int32_t run_head_dim_256(const Args& args, void* stream) {
  return launch_for_type<256>(args, stream);
}

}  // namespace sparse
}  // namespace trt_resa
