// Teams: their shape, what they keep in shared memory and attend to, and when rows get them
// (sparse_team.cuh).
#pragma once

#include "cluster.cuh"
#include "sparse_args.h"
#include "sparse_attend.cuh"
#include "sparse_plan.cuh"
#include "sparse_scores.cuh"

namespace trt_resa {
namespace sparse {

constexpr int kMinTeamShift = 2;
constexpr int kMinTeam =
    1 << kMinTeamShift;  // ranks whose counts or results are added up at a time
static_assert(kMinTeam >= kLeastOfGpc);
constexpr int kMaxTeam = 16;
constexpr int kTeamBins = 512;           // of the histograms that a team adds up, see FirstBins
constexpr int kMaxRivals = 256;          // that are compared with one another,
constexpr int kMaxQuickRivals = 96;      // where nothing else is done meanwhile
constexpr int kLikelyBytes = 128 << 10;  // at most of K and V that come to the L2 cache early
constexpr int kTeamBlocks = 4096;        // of a row, per thread block
constexpr int kTeamSelected = 1024;      // of a selection, per thread block
constexpr int kMinTeamBlocks = 32;       // of all teams: fewer do not keep the memory busy
constexpr float kIdleBytes = 16 << 20;   // see TeamLengths

template <int kHeadDim, int kHeadTiles_, int kWarps>
struct TeamShape {
  static constexpr int kHeadTiles = kHeadTiles_;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kRingBudget = 128 * 1024;
  static constexpr int kColumns = 8 * kHeadTiles * (kHeadDim / 4);  // float4s of a group
  using Attend = AttendShape<kHeadDim, kHeadTiles, kWarps, kRingBudget>;
  using Score = ScoreShape<kHeadDim, kHeadTiles, kWarps, kRingBudget>;
};

// How many of a thread block's keys lie where, in a round of the search: in bins two to a word, and
// above all of them in the last word. When added up, a bin has those of all larger keys too.
struct alignas(16) TeamCounts {
  uint32_t words[kTeamBins / 2 + 1];

  __device__ void add(int bin) { atomicAdd(&words[bin / 2], bin % 2 == 0 ? 1u : 1u << 16); }
};

// A key of those among which the selection ends, and its block.
struct alignas(16) Rival {
  // Of two the larger one comes first: the key, and below it the block's complement.
  uint64_t order;
  int32_t entry;  // see TeamTiles
  int32_t rank;

  __device__ int block() const { return static_cast<int>(~static_cast<uint32_t>(order)); }
};

// cluster::send of a state.
__device__ inline void send_state(const SoftmaxState& target, const SoftmaxState& state,
                                  const uint64_t& barrier, int rank) {
  cluster::send(reinterpret_cast<const float2*>(&target), make_float2(state.max, state.sum),
                barrier, rank);
}

template <typename Shape>
struct TeamShared {
  using Attend = typename Shape::Attend;
  using Score = typename Shape::Score;
  union {
    char summaries[Score::kStages * Score::kStageBytes];
    AttendShared<Attend> attend;
  };
  alignas(16) uint32_t keys[kTeamBlocks];  // of the own blocks
  // The own blocks' entries in the block table; entries of what is attended to besides own blocks;
  // everybody's counts of every other round. As long as there are no keys, what is behind the first
  // part as far as it is in use holds terms.
  static constexpr int kCountWords = static_cast<int>(kMaxTeam * sizeof(TeamCounts) / 4);
  static constexpr int kWords = kTeamBlocks + kTeamSelected + kCountWords;
  alignas(16) int32_t pool_blocks[kWords];
  TeamCounts first_counts[kMaxTeam];
  // By head (sparse_keys.cuh): the sums over each warp's blocks, over each rank's, and the row's as
  // a log.
  SoftmaxState of_warps[Score::kWarps][Score::kHeads];
  SoftmaxState of_ranks[kMaxTeam][Score::kHeads];
  alignas(16) float head_logs[Score::kWarps][Score::kHeads];  // a copy for each warp
  int likely_bin;                                             // see TeamSearch::add_up
  Rival rivals[kMaxRivals];                                   // everybody's, in the order of ranks
  int own_rivals;                                             // that stand there
  int room_upto[kMaxTeam];  // blocks that can be handed on to the ranks up to each
  alignas(16) int warp_sums[Shape::kThreads / 32];
  // Everybody's results for this one's columns, [ranks, columns of a rank], and for each head.
  alignas(16) float4 parts[Shape::kColumns + kMaxTeam];
  SoftmaxState states[kMaxTeam][Score::kHeads];
  int row;          // of this cluster, or -1
  uint64_t placed;  // barriers
  uint64_t weighed;
  uint64_t counted[2];
  uint64_t rivals_sent;
  uint64_t handed_on;
  uint64_t merged;

  // Of the blocks that are attended to: the own ones take the place of the keys.
  __device__ int32_t* own_entries() { return reinterpret_cast<int32_t*>(keys); }
  __device__ int32_t* other_entries() { return pool_blocks + kTeamBlocks; }
  __device__ TeamCounts* counts(int round) {
    return round % 2 == 0 ? first_counts
                          : reinterpret_cast<TeamCounts*>(other_entries() + kTeamSelected);
  }
  static __device__ int held_begin(int own) { return (own + 3) / 4 * 4; }
  __device__ bool holds_terms(int own, int pitch) const {
    return held_begin(own) + own * pitch <= kWords;
  }
  __device__ float* held_terms(int own) {
    return reinterpret_cast<float*>(pool_blocks + held_begin(own));
  }
  // Terms from elsewhere come to where summaries were before.
  static constexpr int kFetchedTerms = Score::kStages * Score::kStageBytes / sizeof(float);
  __device__ float* fetched_terms() { return reinterpret_cast<float*>(summaries); }
};

// The blocks that one of a team attends to: its own ones, then those handed on to it, and rivals.
template <typename Shared>
struct TeamTiles {
  static constexpr int kLastBlock = 1 << 30;  // set in the entry of the sequence's last block

  const Args& a;
  Shared& shared;
  int last_tokens;  // in the last block
  int first;        // of the own entries: those before it are handed on
  int own;
  int blocks;              // in all
  int known_blocks = own;  // without a wait

  __device__ int shift() const { return a.block_shift - kTileShift; }
  __device__ int count() const { return blocks << shift(); }
  __device__ int known() const { return known_blocks << shift(); }
  __device__ void wait() {
    cluster::wait_for(shared.handed_on, 0);
    known_blocks = blocks;
  }

  static __device__ int entry(const Args& a, int pool_block, int block, int row_blocks) {
    return !is_pool_block(a, pool_block) ? -1
           : block == row_blocks - 1     ? pool_block | kLastBlock
                                         : pool_block;
  }

  __device__ Tile find(int i) const {
    const int index = i >> shift();
    const int entry =
        index < own ? shared.own_entries()[first + index] : shared.other_entries()[index - own];
    Tile tile;
    tile.slot = i * kTileKeys & (a.block_size - 1);
    tile.pool_block = entry < 0 ? -1 : entry & ~kLastBlock;
    tile.valid = ((entry & kLastBlock) != 0 ? last_tokens : a.block_size) - tile.slot;
    return tile;
  }
};

// What of a row is a thread block's own.
struct TeamRow {
  int seq;
  int kv_head;
  int kv_len;
  int query_row;
  int blocks;
  int wanted;
  int begin = 0;  // own blocks
  int end = 0;

  __device__ int64_t row(const Args& a) const {
    return static_cast<int64_t>(seq) * a.kv_heads + kv_head;
  }
  // The first of `count` things that are a rank's, in a team of 2^size_shift.
  static __device__ int share(int count, int rank, int size_shift) {
    return count * rank >> size_shift;
  }
  // Blocks that a rank attends to.
  __device__ int quota(int rank, int size_shift) const {
    return share(wanted, rank + 1, size_shift) - share(wanted, rank, size_shift);
  }
};

// How many of a rank's keys are above an interval, and inside.
struct RankKeys {
  int above;
  int inside;
};

// The lengths of all sequences, of which there are 32 at most: each warp has them all.
class TeamLengths {
 public:
  // The sequence whose length this lane knows: the last one where there is none of its own.
  static __device__ int seq_of_lane(const Args& a) { return min(lane_index(), a.batch_size - 1); }

  // `length` is that sequence's.
  __device__ TeamLengths(const Args& a, const SequenceLength& length)
      : a_(a),
        query_row_(length.query_row),
        kv_len_(length.usable(a)),
        blocks_(blocks_of(a, kv_len_)),
        wanted_(wanted_of(a, kv_len_)) {}

  // Whether every row is to have a team of its own. A team that is done waits for the longest one,
  // so that rows of unlike lengths are better divided as items; and it holds a limited number of
  // blocks.
  __device__ bool suit_teams(int size) const {
    if (a_.batch_size == 1) return blocks_ <= size * kTeamBlocks && wanted_ <= size * kTeamSelected;
    const int longest = __reduce_max_sync(0xffffffffu, blocks_);
    const int most = __reduce_max_sync(0xffffffffu, wanted_);
    const int own = lane_index() < a_.batch_size ? blocks_ : 0;
    const int idle = longest * a_.batch_size - warp_sum(own);
    // The time that teams would wait, as bytes: of summaries, and of an eighth of K and V.
    const float bytes = static_cast<float>(idle) * static_cast<float>(a_.block_size + 8) *
                        static_cast<float>(a_.kv_heads * a_.head_dim) * 0.5f;
    return longest <= size * kTeamBlocks && most <= size * kTeamSelected && bytes <= kIdleBytes;
  }

  // The row of this index, below 0 as the first.
  __device__ TeamRow row(int index) const {
    if (a_.batch_size == 1) return {0, index, kv_len_, query_row_, blocks_, wanted_};
    int seq = 0;
#pragma unroll 1
    for (; index >= a_.kv_heads; ++seq) index -= a_.kv_heads;
    const auto of_seq = [&](int value) { return __shfl_sync(0xffffffffu, value, seq); };
    return {seq, index, of_seq(kv_len_), of_seq(query_row_), of_seq(blocks_), of_seq(wanted_)};
  }

 private:
  const Args& a_;
  const int query_row_;
  const int kv_len_;
  const int blocks_;
  const int wanted_;
};

}  // namespace sparse
}  // namespace trt_resa
