"""Decoding speed of the torch executor on SmolLM2, at a context of 1,024 tokens.

    python benchmarks/bench_torch_executor.py [--context 1024] [--tokens 128] [--output FILE]

Prints tokens/s of each mode after the prefill; with --output also writes a JSON line per mode.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.smollm2 import build_engine
from trt_resa import LLM, SamplingParams, SparseAttentionConfig

MODES = ("dense", "none", "fused", "separate", "verify")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    text = Path(__file__).parent.parent.joinpath("LICENSE").read_text(encoding="utf-8")
    params = SamplingParams(max_tokens=arguments.tokens, ignore_eos=True)
    lines = []
    with tempfile.TemporaryDirectory() as work:
        engine = build_engine(Path(work) / "engine", SparseAttentionConfig(dense_below=0))
        with LLM(engine.path) as llm:
            assert llm.tokenizer is not None
            prompt = llm.tokenizer.encode(text)[: arguments.context]
            for mode in MODES:
                times = []
                handle = llm.generate_async(prompt, params, streaming=True, rectify_mode=mode)
                for output in handle:
                    times.append((time.perf_counter(), len(output.outputs[0].token_ids)))
                (start, first), (end, last) = times[0], times[-1]
                line = {
                    "mode": mode,
                    "context": len(prompt),
                    "tokens_per_second": round((last - first) / (end - start), 2),
                    "device": str(llm.device),
                    "threads": torch.get_num_threads(),
                    "processor": platform.processor() or platform.machine(),
                    "torch": torch.__version__,
                }
                lines.append(line)
                print(json.dumps(line))
    if arguments.output:
        arguments.output.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
