// Scoring blocks from their summaries: the terms that scores are made of (sparse_keys.cuh).
//
// With c and r half the sum and half the difference of a block's extremes, the term of a block for
// a query head q is (c . q + sqrt(sum over d of (r_d q_d)^2)) * softmax_scale * log2(e): where the
// block's keys lie about their centre, and how far the best of them may stand out. Products are
// taken on tensor cores, with the minima and the maxima of eight blocks as rows and the queries as
// columns, and once more with the squared differences and the squared queries, both rounded to the
// model's type: that is an error of at most 2^-11 of the root for float16 and 2^-8 for bfloat16.
// Everything else is in fp32, in a fixed order.
#pragma once

#include "kv_append.cuh"
#include "mma.cuh"
#include "pool.cuh"
#include "softmax_state.cuh"
#include "sparse_args.h"
#include "sparse_plan.cuh"
#include "sparse_queries.cuh"
#include "vec.h"

namespace trt_resa {
namespace sparse {

// Squares of a type as narrow as float16 are those of numbers scaled down by this.
template <typename T>
constexpr float kSquareScale = 1.0f;
template <>
constexpr float kSquareScale<__half> = 1.0f / 16;

// The squares of eight scaled elements.
template <typename T>
__device__ __forceinline__ Vec<T> scaled_squares(const Vec<T>& x) {
  const auto scale = Pair<T>::from_float(kSquareScale<T>, kSquareScale<T>);
  Vec<T> out;
#pragma unroll
  for (int i = 0; i < kVecSize / 2; ++i) {
    const auto scaled = kSquareScale<T> == 1.0f ? x.pair(i) : __hmul2(x.pair(i), scale);
    out.set_pair(i, __hmul2(scaled, scaled));
  }
  return out;
}

// kRingBudget: bytes of shared memory for the summaries that are on their way. A warp scores eight
// blocks per round, four lanes per block; a lane's vectors of a row are 32 elements apart. Lanes
// copy otherwise, so that a copy of a warp touches as few lines as it can.
template <int kHeadDim_, int kHeadTiles_, int kWarps_, int kRingBudget>
struct ScoreShape {
  static constexpr int kHeadDim = kHeadDim_;
  static constexpr int kHeadTiles = kHeadTiles_;  // of 8 queries
  static constexpr int kHeads = 8 * kHeadTiles;
  static constexpr int kWarps = kWarps_;
  static constexpr int kPerWarp = 8;  // blocks per round
  static constexpr int kPerRound = kPerWarp * kWarps;
  static constexpr int kVecs = kHeadDim / (4 * kVecSize);  // of a lane in a row

  // Bytes of a stage that holds so many vectors of the minima and of the maxima.
  static constexpr int stage_bytes(int vecs) { return kWarps * vecs * 2 * 32 * 16; }
  static constexpr bool fits(int vecs) { return 3 * stage_bytes(vecs) <= kRingBudget; }
  static constexpr int kStageVecs = fits(kVecs)                         ? kVecs
                                    : kVecs % 2 == 0 && fits(kVecs / 2) ? kVecs / 2
                                                                        : 1;
  static constexpr int kStagesPerRound = kVecs / kStageVecs;
  static constexpr int kStageBytes = stage_bytes(kStageVecs);
  static constexpr int kFitting = kRingBudget / kStageBytes;
  static constexpr int kStages = kFitting > 8 ? 8 : kFitting;
  static_assert(kStages >= 3 && kVecs % kStageVecs == 0 && kHeadDim % (4 * kVecSize) == 0);

  // Of a block in a stage: its minima, and behind them its maxima.
  static constexpr int kBlockBytes = 2 * 4 * kStageVecs * 16;
  // What lanes copy at a time that follow one another: a line, where so much lies side by side.
  static constexpr int kPieceLanes = kStagesPerRound == 1 || kStageVecs % 2 == 0 ? 8 : 4;
  static constexpr int kPieceBytes = kPieceLanes * 16;
  static constexpr int kPieces = kBlockBytes / kPieceBytes;  // of a block
  static constexpr int kCopied = 32 / kPieceLanes;           // blocks, by a copy of a warp
  // Halves of lines are exchanged in every other block: what eight lanes read lies in as many
  // banks.
  static constexpr int kSkew = kPieceLanes == 8 ? 64 : 0;

  // Elements from a block's first one to a piece, of the `part`-th stage of a round.
  static __device__ constexpr int piece_begin(int piece, int part) {
    constexpr int kElements = kPieceBytes / 2;
    if (kStagesPerRound == 1) return piece * kElements;
    constexpr int kHalf = kPieces / 2;
    return piece / kHalf * kHeadDim + part * (kStageVecs * 4 * kVecSize) +
           piece % kHalf * kElements;
  }
};

// The queries of a group as the right side of products: of head tile t and the lane's j-th vector.
template <typename T, typename Shape>
struct ScoreQueries {
  Vec<T> plain[Shape::kHeadTiles][Shape::kVecs];
  Vec<T> squares[Shape::kHeadTiles][Shape::kVecs];

  // `q` are the group's queries in shared memory.
  __device__ void load(const T* q, int group) {
    const int lane = lane_index();
#pragma unroll
    for (int tile = 0; tile < Shape::kHeadTiles; ++tile) {
      const int head = tile * 8 + lane / 4;
#pragma unroll
      for (int j = 0; j < Shape::kVecs; ++j) {
        if (head < group) {
          plain[tile][j] =
              Vec<T>::load(q + head * kQueryPitch<Shape::kHeadDim> + (4 * j + lane % 4) * kVecSize);
        }
        squares[tile][j] = scaled_squares(plain[tile][j]);
      }
    }
  }
};

// What one thread block scores: blocks [begin, end) of a row of `blocks`.
struct ScoreRange {
  int seq;
  int blocks;
  int begin;
  int end;
  int rounds;  // that cover it
};

// Scores a range: each warp goes through its rounds of kPerWarp blocks, which follow one another.
// Of what it brings to shared memory a lane gives vectors of the minima and of the maxima of one
// block to the products.
template <typename T, typename Shape>
class ScoreItem {
  static constexpr int kHeadDim = Shape::kHeadDim;

 public:
  __device__ ScoreItem(const Args& a, const ScoreRange& range, void* ring)
      : a_(a),
        rounds_(range.rounds),
        scored_end_(min(range.end, range.blocks - a.local_blocks)),
        table_(table_of(a, range.seq)) {
    const int lane = lane_index(), column = lane % Shape::kPieceLanes;
    first_ = range.begin + own_first();
    summaries_ = pool<const T>(a.summary, a.append.indirect) + column * kVecSize;
    stride_ = keep_in_register(static_cast<uint32_t>(a.kv_heads * 2 * kHeadDim));
    ring_ = static_cast<char*>(ring) + warp_index() * (Shape::kPerWarp * Shape::kBlockBytes);
    const int copied = lane / Shape::kPieceLanes, read = lane / 4;
    target_ = copied * Shape::kBlockBytes + (column * 16 ^ copied % 2 * Shape::kSkew);
    source_ = read * Shape::kBlockBytes + lane % 4 * 16 + read % 2 * Shape::kSkew;
    odd_ = -2 * (read % 2 * Shape::kSkew);
    next_entries_ = rounds_ > 0 ? look_up(first_) : -1;
  }

  // Starts the first copies, of the summaries of this head.
  __device__ void begin(int kv_head) {
    summaries_ = keep_in_register(summaries_ + kv_head * 2 * kHeadDim);
    start(0);
  }

  // Starts as many as there is room for. Warps wait until their copies have been taken, so that
  // what is needed before comes first.
  __device__ void go_on() {
#pragma unroll 1
    for (int i = 1; i < Shape::kStages - 1; ++i) start(i);
  }

  // Writes the terms of block i of the range to `terms` [i, term_pitch], and each head's sum of
  // 2^term over a warp's blocks to `of_warps` in shared memory; without rounds neither. The group's
  // queries are in shared memory at `queries`.
  __device__ void finish(const T* queries, float* terms,
                         SoftmaxState (&of_warps)[Shape::kWarps][Shape::kHeads]) {
    if (rounds_ == 0) return;
    ScoreQueries<T, Shape> q;
    q.load(queries, a_.group);
    const int lane = lane_index(), head = lane % 4 * 2;
    const float scale = 0.5f * a_.score_scale;
    SoftmaxState sums[Shape::kHeadTiles][2];
    terms += (own_first() + lane / 4) * a_.term_pitch + head;
#pragma unroll 1
    for (int round = 0; round < rounds_; ++round) {
      float ends[Shape::kHeadTiles][4] = {};  // products with the minima, and with the maxima
      float spread[Shape::kHeadTiles][4] = {};
#pragma unroll
      for (int part = 0; part < Shape::kStagesPerRound; ++part) {
        const int i = round * Shape::kStagesPerRound + part;
        cp_async_wait<Shape::kStages - 2>();
        __syncwarp();
        multiply(i, part, q, ends, spread);
        start(i + Shape::kStages - 1);
      }
      const int block = first_ + round * Shape::kPerWarp + lane / 4;
      // So many rounds have been started since.
      constexpr int kAhead = (Shape::kStagesPerRound + Shape::kStages - 2) / Shape::kStagesPerRound;
      const bool weighs = is_scored(block) && (readable_ >> kAhead & 1) != 0;
#pragma unroll
      for (int tile = 0; tile < Shape::kHeadTiles; ++tile) {
        float both[2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          both[j] = (ends[tile][j] + ends[tile][j + 2] +
                     sqrt_approx(spread[tile][j]) / (kSquareScale<T> * kSquareScale<T>)) *
                    scale;
          softmax_add(sums[tile][j], weighs ? both[j] : kNoScore);
        }
        if (weighs && head + tile * 8 < a_.term_pitch) {
          *reinterpret_cast<float2*>(terms + tile * 8) = make_float2(both[0], both[1]);
        }
      }
      terms += Shape::kPerWarp * a_.term_pitch;
    }
#pragma unroll
    for (int tile = 0; tile < Shape::kHeadTiles; ++tile) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        const SoftmaxState all = softmax_merge_lanes(sums[tile][j], 4);
        if (lane < 4) of_warps[warp_index()][tile * 8 + head + j] = all;
      }
    }
  }

 private:
  // The warp's first block, from the range's first one on.
  __device__ int own_first() const { return warp_index() * rounds_ * Shape::kPerWarp; }
  __device__ char* stage(int i) const { return ring_ + i % Shape::kStages * Shape::kStageBytes; }

  // Blocks that are forced are not read: the append may be rewriting the last one's summary.
  __device__ bool is_scored(int block) const {
    return block >= a_.sink_blocks && block < scored_end_;
  }

  // The table's entry of this lane's one of 32 blocks, or -1 where its summary is not to be read.
  // Nothing waits for it yet.
  __device__ int look_up(int block) const {
    block += lane_index();
    return is_scored(block) ? table_[block] : -1;
  }

  // Starts the i-th stage's copies; an empty group behind the last one, so that the number of
  // groups in flight is constant.
  __device__ void start(int i) {
    const int round = i / Shape::kStagesPerRound;
    const bool begins = i % Shape::kStagesPerRound == 0;
    if (begins) readable_ <<= 1;
    if (round < rounds_) {
      const int begin = round * Shape::kPerWarp;
      if (begins && begin % 32 == 0) {
        entries_ = next_entries_;
        next_entries_ = begin + 32 < rounds_ * Shape::kPerWarp ? look_up(first_ + begin + 32) : -1;
      }
      const auto entry_of = [&](int block) {
        return __shfl_sync(append::kAllLanes, entries_, begin % 32 + block);
      };
      if (begins && is_pool_block(a_, entry_of(lane_index() / 4))) readable_ |= 1;
      const uint32_t target = opaque_address(shared_address(stage(i)) + target_);
#pragma unroll
      for (int block = 0; block < Shape::kPerWarp; block += Shape::kCopied) {
        const int entry = entry_of(block + lane_index() / Shape::kPieceLanes);
        const bool usable = is_pool_block(a_, entry);
        const T* summary =
            summaries_ + static_cast<uint64_t>(static_cast<uint32_t>(entry)) * stride_;
#pragma unroll
        for (int piece = 0; piece < Shape::kPieces; ++piece) {
          cp_async_16_once(target + block * Shape::kBlockBytes + piece * Shape::kPieceBytes,
                           summary + Shape::piece_begin(piece, i % Shape::kStagesPerRound), usable);
        }
      }
    }
    cp_async_commit();
  }

  // Adds the products of the i-th stage, which holds a part of the columns of its round.
  __device__ void multiply(int i, int part, const ScoreQueries<T, Shape>& q,
                           float (&ends)[Shape::kHeadTiles][4],
                           float (&spread)[Shape::kHeadTiles][4]) const {
    const char* even = stage(i) + source_;
    const char* odd = even + odd_;
    const auto vec = [&](int j) {
      return Vec<T>::load(reinterpret_cast<const T*>((j % 2 == 0 ? even : odd) + j * 64));
    };
#pragma unroll
    for (int j = 0; j < Shape::kStageVecs; ++j) {
      const auto low = vec(j);
      const auto high = vec(Shape::kStageVecs + j);
      Vec<T> squares;
#pragma unroll
      for (int k = 0; k < kVecSize / 2; ++k) {
        squares.set_pair(k, __hsub2(high.pair(k), low.pair(k)));
      }
      squares = scaled_squares(squares);
      const int at = part * Shape::kStageVecs + j;
#pragma unroll
      for (int k = 0; k < kVecSize / 2; k += 2) {
        const uint32_t both[4] = {low.words[k], high.words[k], low.words[k + 1], high.words[k + 1]};
        const uint32_t squared[4] = {squares.words[k], 0, squares.words[k + 1], 0};
#pragma unroll
        for (int tile = 0; tile < Shape::kHeadTiles; ++tile) {
          const uint32_t (&plain)[kVecSize / 2] = q.plain[tile][at].words;
          const uint32_t (&square)[kVecSize / 2] = q.squares[tile][at].words;
          multiply_add<T>(ends[tile], both, plain[k], plain[k + 1]);
          multiply_add<T>(spread[tile], squared, square[k], square[k + 1]);
        }
      }
    }
  }

  const Args& a_;
  int rounds_;
  int scored_end_;         // blocks from here on are forced, or beyond the range
  int first_;              // block of the warp
  const int32_t* table_;   // of the sequence
  const T* summaries_;     // of the KV head, at the first column that this lane copies
  uint32_t stride_;        // from one block's to the next one's
  char* ring_;             // the warp's part of the first stage
  int target_;             // there, bytes: where this lane copies to,
  int source_;             // where it reads its first vector,
  int odd_;                // and how far behind every other one is shifted
  int entries_ = -1;       // lane l: of the l-th of 32 blocks
  int next_entries_;       // and of those behind them
  uint32_t readable_ = 0;  // a bit for each round started, the last one lowest
};

}  // namespace sparse
}  // namespace trt_resa
