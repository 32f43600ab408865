// The whole sparse step on the host, see step_case.h.

#include "step_case.h"

namespace {

template <typename T, int kHeadDim, int kHeadTiles, bool kWide = false>
bool run(const char* name, const Shape& shape, const std::vector<Sequence>& sequences) {
  const bool right = Case<T, kHeadDim, kHeadTiles, kWide>(shape, sequences, 5).run();
  if (!right) std::printf("^ %s\n", name);
  return right;
}

}  // namespace

int main() {
  bool right = true;
  Shape plain;
  right &= run<__half, 64, 1>("lengths", plain,
                              {{1}, {16}, {17}, {300}, {0}, {900}, {50, 0}, {40, 2}, {33}});
  Shape long_rows = plain;
  long_rows.thread_blocks = 23;
  right &= run<__half, 64, 1>("parts", long_rows, {{9000}, {1}, {4100}});
  Shape rounds = plain;  // more summaries than are on their way at once
  rounds.thread_blocks = 2;
  right &= run<__half, 64, 1>("rounds of scores", rounds, {{9000}});
  Shape forced = plain;
  forced.min_blocks = 8;
  forced.local_blocks = 3;
  forced.sink_blocks = 2;
  forced.dense_below = 200;
  right &= run<__half, 64, 1>("forced blocks", forced, {{2000}, {200}, {201}, {40}});
  Shape tiles = plain;
  tiles.group = 8;
  tiles.block_size = 64;
  tiles.thread_blocks = 40;
  for (int extra : {1, 15, 16, 17, 33, 64}) {
    right &=
        run<__half, 128, 1>("blocks of several tiles", tiles, {{64 * 9 + extra}, {64 * 3 + extra}});
  }
  Shape everything;
  everything.kv_heads = 1;
  everything.group = 12;
  everything.keep_ratio = 1.0;
  everything.exact = false;
  everything.thread_blocks = 7;
  right &= run<__nv_bfloat16, 128, 2>("norm and rotation", everything, {{1}, {129}, {700}});
  right &= run<__half, 256, 2>("head_dim 256", everything, {{31}, {400}});
  Shape wide = plain;
  wide.thread_blocks = 9;
  right &= run<__half, 128, 1, true>("wide", wide, {{2500}, {40}});
  right &= run<__half, 96, 1, true>("wide, head_dim 96", wide, {{1300}});
  right &= run<__half, 96, 1>("head_dim 96", wide, {{1300}});
  Shape team = plain;
  team.team = 4;
  right &= run<__half, 64, 1, true>("team", team, {{2600}, {2300}, {0}, {2500, 2}});
  Shape team_rounds = team;
  team_rounds.kv_heads = 1;
  right &= run<__half, 128, 1, true>("rounds of a team's scores", team_rounds, {{19000}});
  Shape many_terms = team_rounds;  // more than are held
  many_terms.group = 16;
  right &= run<__half, 64, 2, true>("terms in the workspace", many_terms, {{35100}});
  Shape crowded = team;
  crowded.crowded = true;
  for (double keep_ratio : {0.2, 0.3}) {
    crowded.keep_ratio = keep_ratio;
    right &= run<__half, 64, 1, true>("one of a team hands on", crowded, {{2600}, {2001}});
  }
  for (int different : {7, 2, 1}) {  // a seventh of the blocks equal, half of them, all
    Shape ties = team;
    ties.different = different;
    right &= run<__half, 64, 1, true>("a team's ties", ties, {{4000}, {3900}});
  }
  for (int different : {300, 1}) {  // more of one key than are compared with one another
    Shape ties = team_rounds;
    ties.different = different;
    ties.keep_ratio = 0.7;
    right &= run<__half, 64, 1, true>("many ties", ties, {{9000}});
  }
  Shape between = team_rounds;  // many of one key, with larger ones between and behind them
  between.different = 2;
  between.peak_every = 2;
  between.keep_ratio = 0.7;
  right &= run<__half, 64, 1, true>("ties between larger keys", between, {{9000}});
  for (int thread_blocks : {4, 16}) {  // the end of the selection lies among the largest keys
    Shape peaks = team_rounds;
    peaks.team = thread_blocks;
    peaks.peak_every = 20;
    peaks.keep_ratio = 0.03;
    right &= run<__half, 64, 1, true>("more peaks than are selected", peaks, {{6405}});
  }
  right &= run<__half, 64, 1, true>("short teams", team, {{1}, {16}, {17}, {300}, {33}, {80}});
  team.team = 16;
  team.kv_heads = 1;
  right &= run<__half, 128, 1, true>("large team", team, {{4001}});
  right &=
      run<__half, 64, 1, true>("fewer blocks than a team", team, {{90}, {60}, {250}, {130}, {220}});
  Shape team_tiles = tiles;
  team_tiles.team = 4;
  team_tiles.local_blocks = 2;
  team_tiles.sink_blocks = 1;
  for (int extra : {1, 33}) {
    right &= run<__nv_bfloat16, 128, 1, true>("a team's blocks of several tiles", team_tiles,
                                              {{64 * 19 + extra}, {64 * 3 + extra}});
  }
  everything.team = 4;
  right &= run<__nv_bfloat16, 128, 2, true>("a team attends to everything", everything,
                                            {{1}, {129}, {700}});
  return right ? 0 : 1;
}
