#!/usr/bin/env bash
# compute-sanitizer over GPU tests of every kernel: scripts/sanitize.sh [TOOL...], by default all four
# tools. A test takes racecheck a hundred times as long as alone, so it gets few of them. PyTorch's
# cache of memory is off: in it a tensor's neighbour is no error, and its last content counts as written.
set -euo pipefail
cd "$(dirname "$0")/.."
tools=("$@")
[ $# -gt 0 ] || tools=(memcheck synccheck initcheck racecheck)

names="edges or fewer or unlike or settings or ragged or split_keys or impossible or ignored or ranges"
many=(-k "$names or all_blocks or swiglu or rms_norm or unpacked")
few=()
for kernel in kv_append recompute_summaries block_select sparse_decode sparse_step dense_attention \
  int4_linear; do
  many+=("tests/plugins/test_$kernel.py")
done
for test in "kv_append.py::test_block_edges[(17, 17)]" \
  "recompute_summaries.py::test_ranges[16-128-torch.float16]" \
  "block_select.py::test_block_edges[1025]" \
  "block_select.py::test_fewer_blocks_than_a_team[90-16]" \
  "block_select.py::test_settings[Selecting(keep_ratio=0.1, min_blocks=200, local_blocks=1, sink_blocks=0, dense_below=0)]" \
  "sparse_decode.py::test_block_edges[16-1025]" \
  "sparse_step.py::test_block_edges[1025]" \
  "sparse_step.py::test_fewer_blocks_than_a_team[90]" \
  "sparse_step.py::test_unlike_lengths" \
  "sparse_step.py::test_shapes[2-16-256-torch.float16]" \
  "dense_attention.py::test_ragged_batch[16-128-torch.float16]" \
  "dense_attention.py::test_ragged_batch[16-96-torch.float16]" \
  "dense_attention.py::test_split_keys[torch.float16-1]" \
  "int4_linear.py::test_bias_residual_and_swiglu[True-1-torch.float16]" \
  "int4_linear.py::test_rms_norm[64-torch.float16]"; do
  few+=("tests/plugins/test_$test")
done

for tool in "${tools[@]}"; do
  tests=("${many[@]}")
  [ "$tool" != racecheck ] || tests=("${few[@]}")
  echo "== $tool"
  TRT_RESA_CUDA=1 PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool "$tool" --error-exitcode 1 \
    "${PYTHON:-python}" -m pytest -q -p no:cacheprovider -m gpu "${tests[@]}"
done
