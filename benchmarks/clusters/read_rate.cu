// What clusters read from memory, by which of those that fit the GPU read: 86 MB in pieces of 4 KB
// in random order, another region each launch. Prints where clusters lie by the numbers of their
// multiprocessors.
//
// nvcc -std=c++17 -O3 -arch=sm_90a -o read_rate read_rate.cu && ./read_rate
#include <cstdint>

#include "launch.h"

constexpr int kThreads = 512;
constexpr int kShared = 160 * 1024;  // one thread block per multiprocessor
constexpr int kChunks = 21000;       // of 4 KB
constexpr int kRegions = 8;

// Clusters whose bit is set in `mask` read.
__global__ void __launch_bounds__(kThreads, 1)
    read(const uint4* base, const int* order, unsigned mask, int cluster_size, int* multiprocessors,
         uint4* out) {
  const int cluster = blockIdx.x / cluster_size, rank = blockIdx.x % cluster_size;
  if (threadIdx.x == 0) {
    unsigned number;
    asm volatile("mov.u32 %0, %%smid;" : "=r"(number));
    multiprocessors[blockIdx.x] = number;
  }
  if (!(mask >> cluster & 1)) return;
  const int index = __popc(mask & ((1u << cluster) - 1));
  const int warps = __popc(mask) * cluster_size * (kThreads / 32);
  const int warp = (index * cluster_size + rank) * (kThreads / 32) + threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  uint4 all = make_uint4(0, 0, 0, 0);
  for (int chunk = warp; chunk < kChunks; chunk += 2 * warps) {
    uint4 words[16];
    const int second = chunk + warps < kChunks ? chunk + warps : chunk;
    const uint4* a = base + static_cast<size_t>(order[chunk]) * 256 + lane;
    const uint4* b = base + static_cast<size_t>(order[second]) * 256 + lane;
#pragma unroll
    for (int i = 0; i < 8; ++i) words[i] = __ldcs(a + i * 32);
#pragma unroll
    for (int i = 0; i < 8; ++i) words[8 + i] = __ldcs(b + i * 32);
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      all.x ^= words[i].x;
      all.y ^= words[i].y;
      all.z ^= words[i].z;
      all.w ^= words[i].w;
    }
  }
  if (all.x == 0x12345 && all.y == 77) out[0] = all;
}

int main() {
  uint4 *buffer, *out;
  int* multiprocessors;
  const size_t region = static_cast<size_t>(kChunks) * 4096;
  CHECK(cudaMalloc(&buffer, region * kRegions));
  CHECK(cudaMemset(buffer, 1, region * kRegions));
  CHECK(cudaMalloc(&multiprocessors, 4096));
  CHECK(cudaMalloc(&out, 64));
  const int* order = random_order(kChunks);
  allow(read, kShared);
  cudaStream_t stream;
  cudaEvent_t begin, end;
  CHECK(cudaStreamCreate(&stream));
  CHECK(cudaEventCreate(&begin));
  CHECK(cudaEventCreate(&end));

  const auto run = [&](int cluster_size, int clusters, unsigned mask, bool shows_place) {
    ClusterLaunch launch(cluster_size, clusters, kThreads, kShared, stream);
    std::vector<float> us;
    for (int replay = 0; replay < 7; ++replay) {
      CHECK(cudaEventRecord(begin, stream));
      for (int i = 0; i < kRegions; ++i) {
        CHECK(cudaLaunchKernelEx(&launch.config, read,
                                 const_cast<const uint4*>(buffer + i * region / 16), order, mask,
                                 cluster_size, multiprocessors, out));
      }
      CHECK(cudaEventRecord(end, stream));
      CHECK(cudaEventSynchronize(end));
      float ms;
      CHECK(cudaEventElapsedTime(&ms, begin, end));
      us.push_back(ms * 1000 / kRegions);
    }
    std::sort(us.begin(), us.end());
    std::printf("size %d clusters %d mask %x: %.2f us %.2f TB/s\n", cluster_size, clusters, mask,
                us[3], static_cast<double>(region) * 1e-6 / us[3]);
    if (!shows_place) return;
    std::vector<int> places(cluster_size * clusters);
    CHECK(cudaMemcpy(places.data(), multiprocessors, places.size() * sizeof(int),
                     cudaMemcpyDeviceToHost));
    for (int cluster = 0; cluster < clusters; ++cluster) {
      std::printf("  cluster %d:", cluster);
      for (int i = 0; i < cluster_size; ++i) std::printf(" %d", places[cluster * cluster_size + i]);
      std::printf("\n");
    }
  };

  ClusterLaunch sixteen(16, 8, kThreads, kShared, stream);
  int fit = 0;
  CHECK(cudaOccupancyMaxActiveClusters(&fit, read, &sixteen.config));
  std::printf("clusters of 16 that fit: %d\n", fit);
  run(16, 4, 0xf, true);   // as a selection of four rows is launched
  run(16, 5, 0x1e, true);  // as a step is, whose first cluster appends
  run(16, fit, (1u << fit) - 1, true);
  for (unsigned mask = 0; mask < 1u << fit; ++mask) {
    if (__builtin_popcount(mask) == 4) run(16, fit, mask, false);
  }
  run(8, 8, 0xff, true);
  for (unsigned mask : {1u, 3u, 7u, 0x1fu}) run(16, fit, mask, false);
}
