// The top-k of sparse_topk.cuh against a sort, over keys that are random, equal, NaN or forced.

#include "device_on_host.h"

#include "sparse_keys.cuh"
#include "sparse_topk.cuh"

#include <cstdio>
#include <numeric>
#include <random>

namespace {

using namespace trt_resa::sparse;

constexpr int kThreads = 256;
constexpr int kHeld = 4096;  // small, so that rows beyond it are cheap to test
using Kernel = TopK<kThreads, kHeld>;

std::vector<int> expected(const std::vector<uint32_t>& keys, int wanted) {
  std::vector<int> order(keys.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return keys[a] > keys[b]; });
  order.resize(wanted);
  std::sort(order.begin(), order.end());
  return order;
}

bool check(const char* name, const std::vector<uint32_t>& keys, int wanted, int begin, int end) {
  const int blocks = static_cast<int>(keys.size());
  // As the workspace gives them: aligned, with room up to a multiple of four, garbage there.
  std::vector<uint4> room((blocks + 3) / 4, uint4{0xa5a5a5a5, 0xffffffff, 0, 0xa5a5a5a5});
  auto* row = reinterpret_cast<uint32_t*>(room.data());
  std::copy(keys.begin(), keys.end(), row);
  std::vector<int32_t> counted(kBins, 0);
  for (uint32_t key : keys) ++counted[bin_slot(bin_of(key, bins_begin(blocks)))];
  auto shared = std::make_unique<Kernel>();
  std::memset(static_cast<void*>(shared.get()), on_host::kGarbage, sizeof(Kernel));
  trt_resa::shared_memory = reinterpret_cast<char*>(shared.get());
  uint32_t histogram[kBins];
  std::memset(histogram, on_host::kGarbage, sizeof histogram);
  std::vector<int32_t> selection(end - begin, -1);
  on_host::launch(kThreads, [&] {
    shared->select(row, counted.data(), blocks, wanted, begin, end, selection.data(), histogram);
  });
  const std::vector<int> all = expected(keys, wanted);
  const bool right = std::equal(selection.begin(), selection.end(), all.begin() + begin);
  if (!right) std::printf("%s: blocks %d wanted %d [%d, %d)\n", name, blocks, wanted, begin, end);
  return right;
}

}  // namespace

int main() {
  std::mt19937 random(7);
  const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
  std::lognormal_distribution<float> scores(-8.0f, 6.0f);
  bool right = true;
  for (int blocks : {2, 3, 31, 127, 128, 129, 1000, 1025, 4096, 4097, 9001}) {
    std::vector<std::pair<const char*, std::vector<uint32_t>>> rows;
    const auto add = [&](const char* name, auto&& key) {
      std::vector<uint32_t> keys(blocks);
      for (int i = 0; i < blocks; ++i) keys[i] = key(i);
      rows.emplace_back(name, std::move(keys));
    };
    const auto score = [&](int) { return ordered_key(scores(random)); };
    add("random", score);
    add("all equal", [&](int) { return ordered_key(3.0f); });
    add("few values", [&](int) { return ordered_key(static_cast<float>(below(4))); });
    add("two halves of a bit", [&](int i) { return ordered_key(1.0f) + (i % 2); });
    add("NaN", [&](int) { return below(2) ? kNanKey : ordered_key(scores(random)); });
    add("all NaN", [&](int) { return kNanKey; });
    add("forced", [&](int i) { return i % 7 == 0 ? kForcedKey : ordered_key(scores(random)); });
    add("unreadable", [&](int i) { return i % 3 ? 0u : ordered_key(scores(random)); });
    add("bits", [&](int) { return static_cast<uint32_t>(random()); });
    add("large", [&](int) { return ordered_key(scores(random) * 1e30f); });
    for (const auto& [name, keys] : rows) {
      for (int wanted : {1, std::max(blocks / 10, 1), blocks / 2, blocks - 1}) {
        if (wanted < 1) continue;
        right &= check(name, keys, wanted, 0, wanted);
        const int begin = below(wanted);
        right &= check(name, keys, wanted, begin, begin + 1 + below(wanted - begin));
      }
    }
  }
  return right ? 0 : 1;
}
