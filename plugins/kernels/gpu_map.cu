// Multiprocessors that a cluster covers lie in one GPC. Atomics are carried out in the L2 cache of
// the half that the address belongs to, so that the times of one multiprocessor for many addresses
// show a pattern, and those of the other half the opposite one.

#include "gpu_map.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <map>
#include <mutex>
#include <numeric>
#include <vector>

#include "cluster.cuh"
#include "launch.h"

namespace trt_resa {
namespace {

constexpr int kMaxCluster = 16;
constexpr int kAddresses = 64;
constexpr int kWordsApart = 2048 + 32;  // from one address to the next
constexpr int kTries = 5;               // of which the shortest one counts
constexpr int kAlone = 120 << 10;  // bytes of shared memory that no two thread blocks have room for
constexpr float kClear = 0.5f;     // correlation

struct Finding {
  int32_t* found;  // [thread blocks] where each is
};

__global__ void find_multiprocessors(const __grid_constant__ Finding f) {
  if (threadIdx.x == 0) f.found[blockIdx.x] = cluster::multiprocessor();
}

struct Timing {
  uint32_t* words;  // [kAddresses, kWordsApart] zeros
  int32_t* cycles;  // [multiprocessors, kAddresses]
  int multiprocessors;
};

__global__ void time_atomics(const __grid_constant__ Timing t) {
  const int own = cluster::multiprocessor();
  if (threadIdx.x != 0 || own >= t.multiprocessors) return;
  for (int i = 0; i < kAddresses; ++i) {
    const int address = (i + own * 7) % kAddresses;  // others are at another one
    int least = 0x7fffffff;
    for (int again = 0; again < kTries; ++again) {
      const int64_t start = clock64();
      // The branch waits for the value.
      if (atomicAdd(t.words + address * kWordsApart, 0u) != 0) return;
      least = min(least, static_cast<int>(clock64() - start));
    }
    t.cycles[own * kAddresses + address] = least;
  }
}

// What is allocated and launched here lives in a stream of its own.
class Stream {
 public:
  Stream() {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    note(cudaThreadExchangeStreamCaptureMode(&mode));
    mode_ = mode;
    note(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  }
  ~Stream() {
    for (void* memory : memory_) note(cudaFree(memory));
    if (stream_ != nullptr) note(cudaStreamDestroy(stream_));
    note(cudaThreadExchangeStreamCaptureMode(&mode_));
    if (!ok_) static_cast<void>(cudaGetLastError());
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  bool ok() const { return ok_; }
  void note(cudaError_t error) { ok_ = ok_ && error == cudaSuccess; }

  template <typename T>
  T* zeros(size_t count) {
    void* memory = nullptr;
    note(cudaMalloc(&memory, count * sizeof(T)));
    if (memory != nullptr) {
      memory_.push_back(memory);
      note(cudaMemsetAsync(memory, 0, count * sizeof(T), stream_));
    }
    return static_cast<T*>(memory);
  }
  template <typename T>
  std::vector<T> read(const T* memory, size_t count) {
    std::vector<T> values(count);
    note(
        cudaMemcpyAsync(values.data(), memory, count * sizeof(T), cudaMemcpyDeviceToHost, stream_));
    note(cudaStreamSynchronize(stream_));
    return values;
  }
  template <typename Params>
  void launch(void (*kernel)(Params), int cluster_size, int clusters, const Params& params) {
    note(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
    if (!ok_) return;
    const dim3 grid(static_cast<unsigned>(cluster_size * clusters));
    ok_ = trt_resa::launch(kernel, grid, dim3(32), stream_, params,
                           LaunchOptions{kAlone, false, cluster_size}) == TRT_RESA_OK;
  }

 private:
  bool ok_ = true;
  cudaStreamCaptureMode mode_ = cudaStreamCaptureModeRelaxed;
  cudaStream_t stream_ = nullptr;
  std::vector<void*> memory_;
};

// For each multiprocessor the least one in the same GPC; none where their numbers have gaps.
std::vector<int> find_gpcs(Stream& stream, int multiprocessors) {
  std::vector<int> least(multiprocessors);
  std::iota(least.begin(), least.end(), 0);
  int32_t* found = stream.zeros<int32_t>(2 * multiprocessors);
  // Of several sizes, so that clusters overlap those of other launches.
  for (int size = kMaxCluster; size > 1 && stream.ok(); --size) {
    const int clusters = 2 * multiprocessors / size;
    stream.launch(find_multiprocessors, size, clusters, Finding{found});
    const std::vector<int32_t> at = stream.read(found, clusters * size);
    if (*std::max_element(at.begin(), at.end()) >= multiprocessors) return {};
    for (int i = 0; i < clusters * size && stream.ok(); ++i) {
      const int a = least[at[i]], b = least[at[i / size * size]];
      for (int& other : least) {
        if (other == a || other == b) other = a < b ? a : b;
      }
    }
  }
  return least;
}

// How much the GPC of multiprocessors `gpc` takes for each address, apart from what it takes for
// all and what all take for it.
using Pattern = std::array<float, kAddresses>;

std::map<int, Pattern> find_patterns(Stream& stream, const std::vector<int>& gpc_of) {
  const int multiprocessors = static_cast<int>(gpc_of.size());
  uint32_t* words = stream.zeros<uint32_t>(kAddresses * kWordsApart);
  int32_t* cycles = stream.zeros<int32_t>(multiprocessors * kAddresses);
  stream.launch(time_atomics, 1, multiprocessors, Timing{words, cycles, multiprocessors});
  const std::vector<int32_t> times = stream.read(cycles, multiprocessors * kAddresses);
  std::map<int, Pattern> sums;
  std::map<int, int> counts;
  for (int i = 0; i < multiprocessors; ++i) {
    if (times[i * kAddresses] == 0) continue;  // no thread block was there
    Pattern& sum = sums[gpc_of[i]];
    for (int a = 0; a < kAddresses; ++a) sum[a] += static_cast<float>(times[i * kAddresses + a]);
    ++counts[gpc_of[i]];
  }
  Pattern of_all = {};
  for (auto& [gpc, sum] : sums) {
    for (float& x : sum) x /= static_cast<float>(counts[gpc]);
    const float mean = std::accumulate(sum.begin(), sum.end(), 0.0f) / kAddresses;
    for (float& x : sum) x -= mean;
    for (int a = 0; a < kAddresses; ++a) of_all[a] += sum[a] / static_cast<float>(sums.size());
  }
  for (auto& [gpc, sum] : sums) {
    for (int a = 0; a < kAddresses; ++a) sum[a] -= of_all[a];
  }
  return sums;
}

float correlation(const Pattern& a, const Pattern& b) {
  const auto product = [](const Pattern& x, const Pattern& y) {
    return std::inner_product(x.begin(), x.end(), y.begin(), 0.0f);
  };
  return product(a, b) / std::sqrt(product(a, a) * product(b, b));
}

GpuMap measure(int multiprocessors) {
  if (multiprocessors > kMaxMultiprocessors) return {};
  Stream stream;
  const std::vector<int> gpc_of = find_gpcs(stream, multiprocessors);
  if (gpc_of.empty()) return {};
  const std::map<int, Pattern> patterns = find_patterns(stream, gpc_of);
  if (!stream.ok() || patterns.empty()) return {};
  std::map<int, int> sizes;
  for (const int gpc : gpc_of) ++sizes[gpc];
  int in_half[2] = {};
  std::map<int, int> numbers;
  for (const auto& [gpc, pattern] : patterns) {
    const float like_first = correlation(patterns.begin()->second, pattern);
    if (!(std::fabs(like_first) > kClear)) return {};
    const int half = like_first > 0 ? 0 : 1;
    numbers[gpc] = half * kGpcsOfHalf + in_half[half] % kGpcsOfHalf;
    if (sizes[gpc] >= kLeastOfGpc) ++in_half[half];
  }
  if (in_half[0] == 0 || in_half[1] == 0) return {};
  GpuMap map;
  for (int i = 0; i < multiprocessors; ++i) {
    map.gpc[i] = static_cast<uint8_t>(numbers[gpc_of[i]]);
  }
  map.multiprocessors = multiprocessors;
  map.gpcs = in_half[0] + in_half[1];
  return map;
}

}  // namespace

const GpuMap& gpu_map() {
  static std::mutex mutex;
  static std::map<int, GpuMap> maps;
  int device = 0, multiprocessors = 0;
  if (cudaGetDevice(&device) != cudaSuccess ||
      cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device) !=
          cudaSuccess) {
    static_cast<void>(cudaGetLastError());
    multiprocessors = 0;
  }
  const std::lock_guard<std::mutex> lock(mutex);
  const auto known = maps.find(device);
  if (known != maps.end()) return known->second;
  return maps[device] = multiprocessors > 0 ? measure(multiprocessors) : GpuMap{};
}

}  // namespace trt_resa
