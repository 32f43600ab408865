// Attention of one group of query heads over a part of a row's selection.
//
// A part is dealt out to the warps in tiles of 16 keys. Each warp streams its tiles through a ring
// of its own in shared memory (a unit is the K or the V of a tile) and keeps its own softmax state,
// so warps meet only at the end. Products are taken transposed, with keys and then head_dim as the
// 16 rows of a tensor core tile and 8 query heads as its columns: a group of up to 8 pads nothing
// but columns. Keys of the last block beyond kv_len are zeros in shared memory, never read, and
// masked: what lies there may be NaN.
#pragma once

#include "mma.cuh"
#include "sparse_args.h"
#include "sparse_queries.cuh"
#include "sparse_tiles.cuh"
#include "vec.h"

namespace trt_resa {
namespace sparse {

// What a warp has gathered: lane l holds query heads 8 * t + 2 * (l % 4) + {0, 1}, and of their
// accumulators the elements 16 * m + l / 4 + {0, 8}, in the layout of a tensor core tile.
template <typename T, typename Shape>
struct WarpAttention {
  static constexpr int kSteps = Shape::kHeadDim / 16;

  static constexpr int kQuerySteps = Shape::kQueryInShared ? 1 : kSteps;

  uint32_t query[kQuerySteps][Shape::kHeadTiles][2];
  float accumulator[kSteps][Shape::kHeadTiles][4] = {};
  SoftmaxState state[Shape::kHeadTiles][2];  // sums are this lane's share until `finish`

  __device__ void load_query(const T* q, int group) {
    const int lane = lane_index();
#pragma unroll
    for (int tile = 0; tile < Shape::kHeadTiles; ++tile) {
      const int head = tile * 8 + lane / 4;
      const T* row = q + head * kQueryPitch<Shape::kHeadDim> + lane % 4 * 2;
#pragma unroll
      for (int step = 0; step < kQuerySteps; ++step) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          query[step][tile][half] =
              head < group ? *reinterpret_cast<const uint32_t*>(row + step * 16 + half * 8) : 0u;
        }
      }
    }
  }

  // Scores of a tile's keys, of which the first `valid` count, times `scale`; then the new maxima
  // and the weights of the keys, as the right-hand operand of the product with V.
  // `queries` are the group's, in shared memory; what other heads have there stays with them.
  __device__ void weigh_keys(uint32_t keys, uint32_t queries, int valid, float scale,
                             uint32_t (&weights)[Shape::kHeadTiles][2]) {
    const int lane = lane_index();
    const int row = lane % 16, half = lane / 16;
    const uint32_t first = keys + unit_offset<Shape::kChunks>(row, half);
    float scores[Shape::kHeadTiles][4] = {};
    float odd[Shape::kHeadTiles][4] = {};
#pragma unroll(Shape::kQueryInShared ? 4 : kSteps)
    for (int step = 0; step < kSteps; ++step) {
      uint32_t matrix[4];
      load_matrices(behind<Shape::kChunks>(first, step, row, half), matrix);
      if constexpr (Shape::kQueryInShared) {
        uint32_t pieces[4];  // two tiles of two halves
        const int at = (lane % 8 + lane / 16 * 8) * kQueryPitch<Shape::kHeadDim> +
                       (step * 2 + lane / 8 % 2) * kVecSize;
        load_matrices(queries + at * static_cast<int>(sizeof(T)), pieces);
        multiply_add<T>(scores[0], matrix, pieces[0], pieces[1]);
        multiply_add<T>(scores[1], matrix, pieces[2], pieces[3]);
      } else {
#pragma unroll
        for (int tile = 0; tile < Shape::kHeadTiles; ++tile) {
          multiply_add<T>(step % 2 == 0 ? scores[tile] : odd[tile], matrix, query[step][tile][0],
                          query[step][tile][1]);
        }
      }
    }
#pragma unroll
    for (int tile = 0; tile < Shape::kHeadTiles; ++tile) {
      float (&s)[4] = scores[tile];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int key = lane / 4 + (i < 2 ? 0 : 8);
        s[i] = key < valid ? (s[i] + odd[tile][i]) * scale : kNoScore;
      }
      float rescale[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        float max = fmaxf(s[i], s[i + 2]);
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) {
          max = fmaxf(max, __shfl_xor_sync(0xffffffffu, max, mask));
        }
        SoftmaxState& mine = state[tile][i];
        max = fmaxf(max, mine.max);
        rescale[i] = softmax_rescale(mine.max, max);
        const float base = softmax_base(max);
        s[i] = exp2_approx(s[i] - base);
        s[i + 2] = exp2_approx(s[i + 2] - base);
        mine.sum = mine.sum * rescale[i] + s[i] + s[i + 2];
        mine.max = max;
      }
#pragma unroll
      for (int step = 0; step < kSteps; ++step) {
#pragma unroll
        for (int i = 0; i < 4; ++i) accumulator[step][tile][i] *= rescale[i % 2];
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const auto pair = Pair<T>::from_float(s[2 * half], s[2 * half + 1]);
        weights[tile][half] = transpose_matrix(reinterpret_cast<const uint32_t&>(pair));
      }
    }
  }

  __device__ void add_values(uint32_t values, const uint32_t (&weights)[Shape::kHeadTiles][2]) {
    const int lane = lane_index();
    const int row = lane % 8 + lane / 16 * 8, half = lane / 8 % 2;
    const uint32_t first = values + unit_offset<Shape::kChunks>(row, half);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      uint32_t matrix[4];
      load_matrices_transposed(behind<Shape::kChunks>(first, step, row, half), matrix);
#pragma unroll
      for (int tile = 0; tile < Shape::kHeadTiles; ++tile) {
        multiply_add<T>(accumulator[step][tile], matrix, weights[tile][0], weights[tile][1]);
      }
    }
  }

  // Leaves sums complete and writes state and accumulators of the first `group` heads to shared
  // memory: states [kHeads], accumulators [kHeads, kMergeStride].
  __device__ void finish(int group, SoftmaxState* states, float* accumulators) {
    const int lane = lane_index();
#pragma unroll
    for (int tile = 0; tile < Shape::kHeadTiles; ++tile) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        SoftmaxState& mine = state[tile][i];
#pragma unroll
        for (int mask = 4; mask < 32; mask *= 2) {
          mine.sum += __shfl_xor_sync(0xffffffffu, mine.sum, mask);
        }
        const int head = tile * 8 + lane % 4 * 2 + i;
        if (head >= group) continue;
        if (lane / 4 == 0) states[head] = mine;
        float* target = accumulators + head * Shape::kMergeStride + lane / 4;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
          target[step * 16] = accumulator[step][tile][i];
          target[step * 16 + 8] = accumulator[step][tile][i + 2];
        }
      }
    }
  }
};

template <typename Shape>
struct AttendShared {
  alignas(
      kSharedAlign) char bytes[Shape::kSharedBytes];  // the warps' rings; then their accumulators
  SoftmaxState states[Shape::kWarps][Shape::kHeads];
};

template <typename T>
__device__ __forceinline__ void store_four(T* target, const float (&x)[4], float scale) {
  const auto low = Pair<T>::from_float(x[0] * scale, x[1] * scale);
  const auto high = Pair<T>::from_float(x[2] * scale, x[3] * scale);
  *reinterpret_cast<uint2*>(target) =
      make_uint2(reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high));
}

// Attends to tiles of one KV head, by all threads of a thread block.
template <typename T, typename Shape, typename Tiles>
class Attention {
  static constexpr int kHeadDim = Shape::kHeadDim;
  static constexpr int kRingTiles = Shape::kRingTiles;

 public:
  // `tiles` may learn of more between calls; `shared` is free from here on.
  __device__ Attention(const Args& a, int kv_head, Tiles& tiles, AttendShared<Shape>& shared)
      : a_(a),
        tiles_(tiles),
        shared_(shared),
        ring_(shared_address(shared.bytes) + warp_index() * Shape::kRingBytes),
        stream_(a, kv_head, tiles, ring_) {}

  // Starts to copy what is known, as much as the rings hold.
  __device__ void start() {
#pragma unroll 1
    for (; started_ < kRingTiles && stream_.knows(started_); ++started_) start_tile(started_);
  }

  // Does the rest, and calls `keep` with each query head of the group, each four columns from a
  // first one on, and their state and accumulators. `queries` [group, kQueryPitch] are the group's,
  // in shared memory.
  template <typename Keep>
  __device__ void run(const T* queries, Keep&& keep) {
    const int warp = warp_index();
    const int group = a_.group;
    {
#pragma unroll 1
      for (; started_ < kRingTiles; ++started_) start_tile(started_);
      WarpAttention<T, Shape> attention;
      // Only now: the first copies are under way meanwhile.
      if (!Shape::kQueryInShared) attention.load_query(queries, group);
      uint32_t weights[Shape::kHeadTiles][2];
      int slot = 0;
#pragma unroll 1
      for (int tile = 0; tile < stream_.count(); ++tile) {
        const uint32_t bytes = ring_ + slot * (2 * Shape::kUnitBytes);
        const int next = tile + kRingTiles;
        cp_async_wait<2 * kRingTiles - 1>();
        __syncwarp();
        attention.weigh_keys(bytes, shared_address(queries), valid_[0], a_.score_scale, weights);
        __syncwarp();  // all lanes have read them
        shift_valid(stream_.start_keys(next, slot));
        cp_async_wait<2 * kRingTiles - 1>();
        __syncwarp();
        attention.add_values(bytes + Shape::kUnitBytes, weights);
        __syncwarp();
        stream_.start_values(next);
        slot = slot + 1 == kRingTiles ? 0 : slot + 1;
      }
      cp_async_wait<0>();
      __syncthreads();  // the rings are free
      if (stream_.count() > 0) {
        attention.finish(
            group, shared_.states[warp],
            reinterpret_cast<float*>(shared_.bytes) + warp * Shape::kHeads * Shape::kMergeStride);
      }
    }
    __syncthreads();

    const int warps = min(tiles_.count(), Shape::kWarps);  // that had tiles
    const float* accumulators = reinterpret_cast<const float*>(shared_.bytes);
#pragma unroll 1
    for (int at = threadIdx.x; at < group * (kHeadDim / 4); at += blockDim.x) {
      const int head = at / (kHeadDim / 4);
      const int column = at % (kHeadDim / 4) * 4;
      SoftmaxState states[Shape::kWarps];
#pragma unroll
      for (int i = 0; i < Shape::kWarps; ++i) {
        if (i < warps) states[i] = shared_.states[i][head];
      }
      float scales[Shape::kWarps];
      const SoftmaxState state = softmax_merge(states, scales);
      float4 columns[Shape::kWarps];  // read at once
#pragma unroll
      for (int i = 0; i < Shape::kWarps; ++i) {
        columns[i] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (i < warps) {
          columns[i] = *reinterpret_cast<const float4*>(
              accumulators + (i * Shape::kHeads + head) * Shape::kMergeStride + column);
        }
      }
      float sum[4] = {};
#pragma unroll
      for (int i = 0; i < Shape::kWarps; ++i) {
        const float others[4] = {columns[i].x, columns[i].y, columns[i].z, columns[i].w};
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[j] += others[j] * scales[i];
      }
      keep(head, column, state, sum);
    }
  }

 private:
  __device__ void start_tile(int tile) {
    shift_valid(stream_.start_keys(tile, tile));
    stream_.start_values(tile);
  }
  __device__ void shift_valid(int last) {
#pragma unroll
    for (int i = 0; i + 1 < kRingTiles; ++i) valid_[i] = valid_[i + 1];
    valid_[kRingTiles - 1] = last;
  }

  const Args& a_;
  Tiles& tiles_;
  AttendShared<Shape>& shared_;
  const uint32_t ring_;  // of this warp
  TileStream<T, Shape, Tiles> stream_;
  int started_ = 0;  // tiles, before `run` works on the first one
  int valid_[kRingTiles] =
      {};  // keys that may be seen of each tile in the ring, the next one first
};

}  // namespace sparse
}  // namespace trt_resa
