// A case of the whole sparse step, run on the host and compared with plain loops: by one thread
// block that does the items of several in their order, or by the thread blocks of a cluster in
// turn.
#pragma once

#include "device_on_host.h"
#include "step_data.h"

#include "sparse_kernel.cuh"
#include "sparse_run.cu"

namespace trt_resa {
namespace sparse {
int32_t run_head_dim_64(const Args&, void*) {
  return 0;
}
int32_t run_head_dim_96(const Args&, void*) {
  return 0;
}
int32_t run_head_dim_128(const Args&, void*) {
  return 0;
}
int32_t run_head_dim_256(const Args&, void*) {
  return 0;
}
}  // namespace sparse
}  // namespace trt_resa

namespace {

using namespace trt_resa::sparse;

template <typename T, int kHeadDim, int kHeadTiles, bool kWide>
class Case : CaseData<T, kHeadDim> {
  using Data = CaseData<T, kHeadDim>;
  using Data::choose_blocks;
  using Data::finished;
  using Data::inv_freq_;
  using Data::kv;
  using Data::kv_;
  using Data::kv_lens_;
  using Data::max_blocks_;
  using Data::norm_;
  using Data::out_;
  using Data::positions_;
  using Data::q_;
  using Data::qkv_;
  using Data::query_lens_;
  using Data::s_;
  using Data::sequences_;
  using Data::summarise;
  using Data::summary_;
  using Data::table_;

 public:
  Case(const Shape& shape, const std::vector<Sequence>& sequences, unsigned seed)
      : Data(shape, sequences, seed) {}

  bool run() {
    Args a = {};
    auto& p = a.append;
    a.roles = kAppend | kSelect | kAttend;
    p.qkv = qkv_.data();
    p.position_ids = positions_.data();
    p.cu_query_lens = query_lens_.data();
    p.kv_lens = kv_lens_.data();
    p.block_table = table_.data();
    p.inv_freq = inv_freq_.data();
    p.q = q_.data();
    p.kv = kv_.data();
    p.summary = summary_.data();
    p.num_rows = query_lens_.back();
    p.batch_size = static_cast<int>(sequences_.size());
    p.max_blocks_per_seq = max_blocks_;
    p.num_blocks = static_cast<int>(kv_.size() / (2 * s_.kv_heads * s_.block_size * kHeadDim));
    p.q_heads = s_.kv_heads * s_.group;
    p.kv_heads = s_.kv_heads;
    p.head_dim = kHeadDim;
    p.block_size = s_.block_size;
    p.rotary_dim = s_.exact ? 0 : kHeadDim / 2;
    p.rope_scale = 1.1f;
    p.norm_eps = 1e-5f;
    if (!s_.exact) {
      p.q_norm = norm_.data();
      p.k_norm = norm_.data() + kHeadDim;
    }
    a.q = q_.data();
    a.kv = kv_.data();
    a.summary = summary_.data();
    a.out = out_.data();
    a.cu_query_lens = query_lens_.data();
    a.kv_lens = kv_lens_.data();
    a.block_table = table_.data();
    a.batch_size = p.batch_size;
    a.max_blocks_per_seq = max_blocks_;
    a.num_blocks = p.num_blocks;
    a.q_heads = p.q_heads;
    a.kv_heads = s_.kv_heads;
    a.head_dim = kHeadDim;
    a.block_size = s_.block_size;
    a.min_blocks = s_.min_blocks;
    a.local_blocks = s_.local_blocks;
    a.sink_blocks = s_.sink_blocks;
    a.dense_below = s_.dense_below;
    a.dtype = 0;
    a.score_scale = 1.4426950408889634f / std::sqrt(static_cast<float>(kHeadDim));
    a.keep_ratio = s_.keep_ratio;
    if (check(a) != TRT_RESA_OK) {
      std::puts("the case is refused");
      return false;
    }
    const Sizes sizes = carve(a, nullptr, nullptr);
    std::vector<uint4> workspace(sizes.workspace / 16 + 16), counters(sizes.counters / 16 + 16);
    std::memset(workspace.data(), on_host::kGarbage, workspace.size() * 16);
    std::memset(counters.data(), 0, counters.size() * 16);
    carve(a, workspace.data(), counters.data());

    const int rows = a.batch_size * a.kv_heads;
    trt_resa::GpuMap map;
    for (int i = 0; i < trt_resa::kMaxMultiprocessors; ++i) map.gpc[i] = i * 3 % 8;
    map.gpcs = 8;
    a.placement = place_rows(map, rows);

    const auto before = kv_;
    if (s_.team == 1) {
      execute<Config<T, kHeadDim, kHeadTiles, kWide, false>>(a);
    } else if constexpr (has_teams(kWide, kHeadDim)) {
      execute<Config<T, kHeadDim, kHeadTiles, kWide, true>>(a);
    } else {
      std::puts("no teams of this shape");
      return false;
    }
    for (const uint4& words : counters) {
      if ((words.x | words.y | words.z | words.w) != 0) {
        std::puts("counters are left behind");
        return false;
      }
    }
    return compare(before);
  }

 private:
  // Thread blocks one after another, or clusters of them, of which there are two beyond the rows.
  template <typename C>
  void execute(const Args& a) const {
    using Shared = typename C::Shared;
    constexpr size_t kBytes = sizeof(Shared);
    const std::unique_ptr<void, decltype(&std::free)> memory(
        std::aligned_alloc(alignof(Shared), kBytes * s_.team), &std::free);
    std::vector<char*> memories;
    for (int rank = 0; rank < s_.team; ++rank) {
      memories.push_back(static_cast<char*>(memory.get()) + rank * kBytes);
    }
    const int clusters = s_.team > 1 ? a.batch_size * a.kv_heads + 2 : s_.thread_blocks;
    gridDim.x = clusters * s_.team;
    for (int id = 0; id < clusters; ++id) {
      std::memset(memory.get(), on_host::kGarbage, kBytes * s_.team);
      trt_resa::cluster::begin(id, memories);
      const auto enter = [&](int rank) {
        trt_resa::cluster::enter(rank);
        blockIdx.x = id * s_.team + rank;
      };
      on_host::launch_together(
          s_.team, C::kThreads,
          [&] { trt_resa::sparse::run<C>(a, *reinterpret_cast<Shared*>(trt_resa::shared_memory)); },
          enter);
    }
  }

  static bool near(float got, float wanted, float tolerance) {
    return std::abs(got - wanted) <= tolerance * (1.0f + std::abs(wanted));  // NaN is not near
  }

  bool compare(const std::vector<T>& before) {
    const float rounding = s_.exact                                      ? 0.0f
                           : sizeof(T) == 2 && std::is_same_v<T, __half> ? 1e-3f
                                                                         : 8e-3f;
    std::vector<T> expected_kv = before;
    std::swap(expected_kv, kv_);  // kv_ is what is expected, expected_kv what came out
    const std::vector<T> got_summary = summary_;
    for (size_t seq = 0; seq < sequences_.size(); ++seq) {
      if (sequences_[seq].rows != 1 || kv_lens_[seq] == 0) continue;
      const int row = query_lens_[seq], token = kv_lens_[seq] - 1, q_heads = s_.kv_heads * s_.group;
      for (int head = 0; head < s_.kv_heads; ++head) {
        const auto key = finished(row, q_heads + head, true, false);
        const auto val = finished(row, q_heads + s_.kv_heads + head, false, true);
        for (int d = 0; d < kHeadDim; ++d) {
          *kv(seq, token, 0, head, d) = T(key[d]);
          *kv(seq, token, 1, head, d) = T(val[d]);
        }
      }
      summarise(static_cast<int>(seq), token / s_.block_size);
    }
    for (size_t i = 0; i < kv_.size(); ++i) {
      const float wanted = static_cast<float>(kv_[i]), got = static_cast<float>(expected_kv[i]);
      if (std::isnan(wanted) ? !std::isnan(got) : !near(got, wanted, rounding)) {
        std::printf("cache at %zu: %f, not %f\n", i, got, wanted);
        return false;
      }
    }
    for (size_t i = 0; i < summary_.size(); ++i) {
      const float wanted = static_cast<float>(summary_[i]),
                  got = static_cast<float>(got_summary[i]);
      if (std::isnan(wanted) ? !std::isnan(got) : !near(got, wanted, rounding)) {
        std::printf("summaries at %zu: %f, not %f\n", i, got, wanted);
        return false;
      }
    }
    for (size_t seq = 0; seq < sequences_.size(); ++seq) {
      for (int row = query_lens_[seq]; row < query_lens_[seq + 1]; ++row) {
        if (!compare_row(static_cast<int>(seq), row)) return false;
      }
    }
    return true;
  }

  bool compare_row(int seq, int row) {
    const bool used = sequences_[seq].rows == 1 && kv_lens_[seq] > 0;
    const int q_heads = s_.kv_heads * s_.group;
    for (int kv_head = 0; kv_head < s_.kv_heads; ++kv_head) {
      std::vector<std::vector<float>> queries;
      for (int i = 0; i < s_.group; ++i) {
        auto query = finished(row, kv_head * s_.group + i, false, false);
        for (float& x : query) x = static_cast<float>(T(x));
        queries.push_back(query);
      }
      const std::vector<int> chosen =
          used ? choose_blocks(seq, kv_head, queries) : std::vector<int>();
      for (int i = 0; i < s_.group; ++i) {
        const size_t at = (static_cast<size_t>(row) * q_heads + kv_head * s_.group + i) * kHeadDim;
        if (!used) {
          if (!std::isnan(static_cast<float>(out_[at])))
            return std::puts("a row was written"), false;
          continue;
        }
        std::vector<double> sum(kHeadDim);
        double weights = 0;
        for (int block : chosen) {
          const int end = std::min((block + 1) * s_.block_size, kv_lens_[seq]);
          for (int token = block * s_.block_size; token < end; ++token) {
            double score = 0;
            for (int d = 0; d < kHeadDim; ++d) {
              score += queries[i][d] *
                       static_cast<double>(static_cast<float>(*kv(seq, token, 0, kv_head, d)));
            }
            const double weight = std::exp(score / std::sqrt(static_cast<double>(kHeadDim)) - 8.0);
            weights += weight;
            for (int d = 0; d < kHeadDim; ++d) {
              sum[d] += weight * static_cast<float>(*kv(seq, token, 1, kv_head, d));
            }
          }
        }
        const float tolerance = std::is_same_v<T, __half> ? 4e-3f : 3e-2f;
        for (int d = 0; d < kHeadDim; ++d) {
          const auto wanted = static_cast<float>(sum[d] / weights);
          const auto q_got = static_cast<float>(q_[at + d]);
          const float rounding = s_.exact ? 0.0f : tolerance;
          if (!near(q_got, queries[i][d], rounding) ||
              !near(static_cast<float>(out_[at + d]), wanted, tolerance)) {
            std::printf("sequence %d of %d tokens, head %d, element %d: q %f (%f), out %f (%f)\n",
                        seq, kv_lens_[seq], kv_head * s_.group + i, d, q_got, queries[i][d],
                        static_cast<float>(out_[at + d]), wanted);
            return false;
          }
        }
      }
    }
    return true;
  }
};

}  // namespace
