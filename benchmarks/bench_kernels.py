"""Time every attention kernel in one go: kv_append, the sparse step and its parts, dense_attention.

Runs the benchmarks of the single kernels one after another in processes of their own, prints their
tables and leaves their JSON in a folder. Run on a GPU:
``python benchmarks/bench_kernels.py [--output_dir benchmarks/results]``.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
#: Script, and the name of its JSON or None where it only prints.
BENCHMARKS = (
    ("bench_kv_append.py", None),
    ("bench_sparse_step.py", "sparse_step.json"),
    ("bench_dense_attention.py", "dense_attention.json"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output_dir", type=Path, default=HERE / "results")
    options = parser.parse_args()
    options.output_dir.mkdir(parents=True, exist_ok=True)
    failed = 0
    for script, record in BENCHMARKS:
        print(f"\n== {script}", flush=True)
        command = [sys.executable, str(HERE / script)]
        if record is not None:
            command += ["--json", str(options.output_dir / record)]
        failed += subprocess.run(command, check=False).returncode != 0
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
