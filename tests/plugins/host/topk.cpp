// The top-k of sparse_topk.cuh against a sort, over keys that are random, equal, NaN or forced.

#include "device_on_host.h"

#include "sparse_topk.cuh"

#include <cstdio>
#include <numeric>
#include <random>

namespace {

using namespace trt_resa::sparse;

constexpr int kThreads = 256;
constexpr int kListed = 512;  // small, so that intervals beyond it are cheap to test
using Kernel = TopK<kThreads, kListed>;

std::vector<int> expected(const std::vector<uint32_t>& keys, int wanted) {
  std::vector<int> order(keys.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return keys[a] > keys[b]; });
  order.resize(wanted);
  return order;
}

// `lists`: the ranks of the first interval are added one by one, and the keys not read where all of
// them have room.
bool check(const char* name, const std::vector<uint32_t>& keys, int wanted, bool lists) {
  const int blocks = static_cast<int>(keys.size());
  // As the workspace gives them: aligned, with room up to a multiple of four, garbage there.
  std::vector<uint4> room((blocks + 3) / 4, uint4{0xa5a5a5a5, 0xffffffff, 0, 0xa5a5a5a5});
  auto* row = reinterpret_cast<uint32_t*>(room.data());
  std::copy(keys.begin(), keys.end(), row);
  std::vector<int32_t> counted(kBins, 0);
  for (uint32_t key : keys) ++counted[bin_slot(bin_of(key))];
  auto shared = std::make_unique<Kernel>();
  std::memset(static_cast<void*>(shared.get()), 0xa5, sizeof(Kernel));
  uint32_t histogram[kBins];
  std::memset(histogram, 0xa5, sizeof histogram);
  std::vector<int32_t> selection(wanted, -1);
  Interval first = {};
  uint64_t least = 0;
  on_host::launch(kThreads, [&] {
    const Interval interval = shared->start(counted.data(), wanted, histogram, [] {});
    if (lists) {
      for (int i = threadIdx.x; i < blocks; i += kThreads) {
        if (interval.contains(rank_of(keys[i], i))) shared->add(rank_of(keys[i], i));
      }
      __syncthreads();
    }
    const bool listed = lists && shared->num_listed <= kListed;
    const uint64_t mine = shared->least(listed ? nullptr : row, blocks, interval, histogram);
    shared->write(row, blocks, mine, selection.data());
    if (threadIdx.x == 0) first = interval, least = mine;
  });
  std::vector<int> all = expected(keys, wanted);
  const uint64_t last = rank_of(keys[all.back()], all.back());
  // What is certain from the first interval on must be part of the selection, with the wanted.
  int above = 0;
  for (int i = 0; i < blocks; ++i) above += rank_of(keys[i], i) > first.last;
  std::sort(all.begin(), all.end());
  const bool right = selection == all && least <= last && above + first.wanted == wanted;
  if (!right) std::printf("%s: blocks %d wanted %d\n", name, blocks, wanted);
  return right;
}

}  // namespace

int main() {
  std::mt19937 random(7);
  const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
  std::normal_distribution<float> normal(0.0f, 20.0f);
  bool right = true;
  for (int blocks : {2, 3, 31, 127, 128, 129, 1000, 1025, 4096, 4097, 9001}) {
    std::vector<std::pair<const char*, std::vector<uint32_t>>> rows;
    const auto add = [&](const char* name, auto&& key) {
      std::vector<uint32_t> keys(blocks);
      for (int i = 0; i < blocks; ++i) keys[i] = key(i);
      rows.emplace_back(name, std::move(keys));
    };
    const auto score = [&](int) { return ordered_key(normal(random)); };
    add("random", score);
    add("all equal", [&](int) { return ordered_key(3.0f); });
    add("few values", [&](int) { return ordered_key(static_cast<float>(below(4))); });
    add("two halves of a bit", [&](int i) { return ordered_key(1.0f) + (i % 2); });
    add("NaN", [&](int) { return below(2) ? kNanKey : ordered_key(normal(random)); });
    add("all NaN", [&](int) { return kNanKey; });
    add("forced", [&](int i) { return i % 7 == 0 ? kForcedKey : ordered_key(normal(random)); });
    add("unreadable", [&](int i) { return i % 3 ? 0u : ordered_key(normal(random)); });
    add("bits", [&](int) { return static_cast<uint32_t>(random()); });
    add("large", [&](int) { return ordered_key(normal(random) * 1e30f); });
    for (const auto& [name, keys] : rows) {
      for (int wanted : {1, std::max(blocks / 10, 1), blocks / 2, blocks - 1}) {
        if (wanted < 1) continue;
        right &= check(name, keys, wanted, false) && check(name, keys, wanted, true);
      }
    }
  }
  return right ? 0 : 1;
}
