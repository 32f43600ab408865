#!/usr/bin/env bash
# mypy over the package as it is installed: builder and runtime inside trt_resa. The checkout has
# them beside it, so a tree of links shows mypy the installed layout.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
tree=$root/build/typecheck
rm -rf "$tree"
mkdir -p "$tree/trt_resa"
ln -s "$root"/trt_resa/* "$root/builder" "$root/runtime" "$tree/trt_resa/"
cd "$tree"
exec mypy --config-file "$root/pyproject.toml" --cache-dir "$root/.mypy_cache" -p trt_resa
