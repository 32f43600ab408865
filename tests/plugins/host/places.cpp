// Which rows clusters draw (sparse_places.cuh), in any order and wherever they lie.

#include <cstdio>
#include <random>
#include <set>

#include "device_on_host.h"
#include "sparse_places.cuh"

namespace {

using namespace trt_resa::sparse;

std::mt19937 random_bits(1);

int pick(int below) {
  return static_cast<int>(random_bits() % static_cast<unsigned>(below));
}

// Draws for clusters of which the i-th lies in GPC gpcs[i]; returns how many rows are taken in the
// first half, or -1 for a fault.
int draw(const Placement& placement, int rows, const std::vector<int>& gpcs) {
  gridDim.x = static_cast<unsigned>(gpcs.size());
  unsigned long long counter = 0;
  std::set<int> taken;
  int in_first = 0;
  for (const int gpc : gpcs) {
    // A multiprocessor of that GPC.
    trt_resa::cluster::begin(gpc + 8 * pick(16), {nullptr});
    const int row = draw_row(placement, &counter, rows);
    if (row < 0) continue;
    if (row >= rows || !taken.insert(row).second) return -1;
    if (gpc < 4) ++in_first;
  }
  return counter == 0 && static_cast<int>(taken.size()) == rows ? in_first : -1;
}

bool check(int rows, int clusters, bool knows_places) {
  trt_resa::GpuMap map;
  if (knows_places) {
    for (int i = 0; i < trt_resa::kMaxMultiprocessors; ++i) map.gpc[i] = i % 8;
    map.gpcs = 8;
  }
  const Placement placement = place_rows(map, rows);
  std::vector<int> gpcs;
  for (int i = 0; i < clusters; ++i) gpcs.push_back(pick(8));
  // As many as are needed in every GPC, before others.
  const bool even = clusters >= rows + 8 && pick(2) == 0;
  for (int i = 0; even && i < clusters; ++i) gpcs[i] = i % 8;
  if (!even) std::shuffle(gpcs.begin(), gpcs.end(), random_bits);
  const int in_first = draw(placement, rows, gpcs);
  if (in_first < 0) {
    std::printf("%d rows, %d clusters: not each row once, or the counter is not zero\n", rows,
                clusters);
    return false;
  }
  if (even && knows_places && std::abs(2 * in_first - rows) > 1) {
    std::printf("%d rows, %d clusters: %d rows in one half\n", rows, clusters, in_first);
    return false;
  }
  return true;
}

}  // namespace

int main() {
  bool right = true;
  for (int i = 0; i < 20000 && right; ++i) {
    const int rows = 1 + pick(32);
    right = check(rows, rows + pick(35), pick(4) != 0);
  }
  return right ? 0 : 1;
}
