// The plan of a sparse step: whatever the lengths are, its items cover each block to be scored and
// each tile to be attended to once, and no more parts are in use than there are slots for.

#include "device_on_host.h"

#include "sparse_plan.cuh"

#include <cstdio>
#include <random>

namespace {

using namespace trt_resa::sparse;

struct Case {
  std::vector<int32_t> kv_lens, query_lens, counts;
  Args args = {};
  int thread_blocks = 132;
  int round_blocks = 64;
};

#define EXPECT(condition)                                       \
  if (!(condition)) {                                           \
    std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition); \
    return false;                                               \
  }

bool check(const Case& c) {
  const Args& a = c.args;
  auto plan = std::make_unique<Plan>();
  std::memset(static_cast<void*>(plan.get()), on_host::kGarbage, sizeof(Plan));
  gridDim.x = c.thread_blocks;
  on_host::launch(256, [&] { make_plan(a, c.round_blocks, *plan); });

  std::vector<std::vector<int>> tiles, blocks;  // how often each is covered, by row
  for (int seq = 0; seq < a.batch_size; ++seq) {
    const int kv_len = plan->kv_len[seq];
    EXPECT(kv_len == 0 || kv_len == c.kv_lens[seq]);
    const int all = blocks_of(a, kv_len);
    EXPECT(plan->selected[seq] <= all || a.given_counts != nullptr);
    const bool scored = (a.roles & kSelect) != 0 && plan->selected[seq] < all;
    for (int head = 0; head < a.kv_heads; ++head) {
      tiles.emplace_back(kv_len == 0 ? 0 : plan->selected[seq] * (a.block_size / kTileKeys));
      blocks.emplace_back(scored ? all : 0);
    }
  }
  std::vector<int> parts(tiles.size());
  for (int i = 0; i < plan->attend_items; ++i) {
    const RowItem item = find_row_item(a, plan->attend_end, i);
    const Part part = part_of(a, *plan, item);
    EXPECT(item.piece >= 0 && item.piece < item.pieces && item.first + item.piece == i);
    EXPECT(item.pieces <= kMaxParts);
    ++parts[item.row(a)];
    for (int tile = part.first_tile; tile < part.end_tile; ++tile) ++tiles[item.row(a)][tile];
    const int tiles_per_block = a.block_size / kTileKeys;
    EXPECT(part.first_block * tiles_per_block <= part.first_tile);
    EXPECT(part.end_block * tiles_per_block >= part.end_tile);
    if ((a.roles & kAttend) == 0) EXPECT(item.pieces == 1);
  }
  for (int i = 0; i < plan->score_items; ++i) {
    const RowItem item = find_row_item(a, plan->score_end, i);
    EXPECT(item.pieces == scored_items(a, *plan, item.seq));
    const int size = c.round_blocks * plan->score_rounds;
    auto& row = blocks[item.row(a)];
    for (int b = item.piece * size; b < (item.piece + 1) * size; ++b) {
      if (b < static_cast<int>(row.size())) ++row[b];
    }
  }
  int slots = 0;
  for (size_t row = 0; row < tiles.size(); ++row) {
    const bool used = plan->kv_len[row / a.kv_heads] > 0;
    EXPECT((parts[row] > 0) == used);
    slots += parts[row];
    for (int times : tiles[row]) EXPECT(times == 1);
    for (int times : blocks[row]) EXPECT(times == 1);
  }
  EXPECT(slots <= static_cast<int>(tiles.size()) + kMaxParts);
  EXPECT(plan->score_rounds >= 1 && plan->score_rounds <= kMaxScoreRounds);
  EXPECT(plan->append_items == ((a.roles & kAppend) != 0 ? a.batch_size * a.kv_heads : 0));
  return true;
}

}  // namespace

int main() {
  std::mt19937 random(11);
  const auto below = [&](int limit) { return static_cast<int>(random() % limit); };
  for (int round = 0; round < 400; ++round) {
    Case c;
    Args& a = c.args;
    const int roles[] = {kSelect, kAttend, kAppend | kSelect | kAttend};
    a.roles = roles[below(3)];
    a.batch_size = 1 + below(round % 4 == 0 ? kMaxBatch : 6);
    a.kv_heads = 1 + below(8);
    a.block_shift = 4 + below(3);
    a.block_size = 1 << a.block_shift;
    a.max_blocks_per_seq = round % 5 == 0 ? 20000 : 600;
    a.max_selected = a.max_blocks_per_seq;
    a.keep_ratio = below(2) ? 0.1 : 0.001 + 0.001 * below(1000);
    a.min_blocks = 1 + below(32);
    a.dense_below = below(3) ? 0 : below(4000);
    c.thread_blocks = below(2) ? 132 : 1 + below(300);
    c.round_blocks = below(2) ? 64 : 16;
    int64_t budget = 1 << 19;  // of blocks, for the test's own time
    for (int seq = 0; seq < a.batch_size; ++seq) {
      const int most = a.max_blocks_per_seq * a.block_size;
      int length = below(8) == 0 ? 0 : below(16) == 0 ? most + 1 : 1 + below(most);
      if (below(2)) length = std::min(length, 1 + below(200));
      if ((budget -= length / a.block_size * a.kv_heads) < 0) length = std::min(length, 40);
      c.kv_lens.push_back(length);
      c.counts.push_back(below(a.max_selected + 2) - 1);
    }
    if (a.roles == kAttend) {
      for (auto& count : c.counts) count = std::min(count, 300);
      a.given_counts = c.counts.data();
    }
    a.kv_lens = c.kv_lens.data();
    c.query_lens.assign(1, 0);
    for (int seq = 0; seq < a.batch_size; ++seq) {
      c.query_lens.push_back(c.query_lens.back() + (below(9) == 0 ? below(3) : 1));
    }
    if (a.roles & kAppend) {
      a.cu_query_lens = c.query_lens.data();
      a.append.num_rows = c.query_lens.back();
    }
    if (!check(c)) return 1;
  }
  return 0;
}
