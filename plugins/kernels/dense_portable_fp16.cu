#include "dense_portable_launch.cuh"

template int32_t trt_resa::dense::launch_portable<__half>(Args, const Device&, bool, void*);
