"""What mode verify costs with windows of a fixed size and with windows that follow acceptance.

    python benchmarks/bench_verify_windows.py [--tokens 128] [--output FILE]

SmolLM2 in fp32 continues four prompts of 500 to 1,000 tokens. A setting's cost is counted: sparse
steps and dense passes per token. Time per token, in sparse steps, is then the sum of the two with a
dense pass taken as 1.5, 2, 3 and 4 sparse steps, which is the range on a GPU at long contexts.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import tempfile
import textwrap
from collections.abc import Iterable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.smollm2 import build_engine
from trt_resa import LLM, SamplingParams, SparseAttentionConfig
from trt_resa.runtime.stats import SequenceStats

PASS_COSTS = (1.5, 2, 3, 4)
WINDOWS: dict[str, dict[str, Any]] = {
    **{
        f"fixed {size}": {"adaptive_window": False, "rectify_interval": size} for size in (32, 8, 4)
    },
    "adaptive": {"adaptive_window": True},
}
KEEP_RATIOS = (0.4, 0.1, 0.05)


def prompts(llm: LLM) -> dict[str, list[int]]:
    assert llm.tokenizer is not None
    encode = llm.tokenizer.encode
    licence = Path(__file__).parent.parent.joinpath("LICENSE").read_text(encoding="utf-8")
    question = (
        "<|im_start|>user\nExplain the following text in your own words, step by step, with "
        f"examples.\n\n{topics['naming'][:2200]}<|im_end|>\n<|im_start|>assistant\n"
    )
    return {
        "licence": encode(licence)[:1000],
        "documentation": encode(topics["assignment"])[:700],
        "code": encode(inspect.getsource(textwrap))[:850],
        "chat": encode(question),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    lines = [f"# python benchmarks/bench_verify_windows.py --tokens {arguments.tokens}"]
    with tempfile.TemporaryDirectory() as work:
        built = SparseAttentionConfig(min_blocks=2, dense_below=0)
        engine = build_engine(Path(work) / "engine", built)
        with LLM(engine.path, device="cpu", max_seq_len=2048) as llm:
            lines += table(llm, arguments.tokens)
    if arguments.output:
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(llm: LLM, tokens: int) -> Iterable[str]:
    """The lines of the table, printed as they come."""
    texts = prompts(llm)
    params = SamplingParams(max_tokens=tokens, ignore_eos=True)
    lines = [
        "# SmolLM2-135M-Instruct, fp32, min_blocks 2, greedy; contexts: "
        + ", ".join(f"{name} {len(ids)}" for name, ids in texts.items()),
        "# s, d: sparse steps and dense passes per token; a: accepted drafts per dense pass; t(c): "
        "s + c d",
        "keep   windows   text            s      d      a   "
        + " ".join(f"t({cost:g})" for cost in PASS_COSTS),
    ]
    print("\n".join(lines))
    dense = llm.generate(list(texts.values()), params, rectify_mode="dense")
    for keep_ratio in KEEP_RATIOS:
        for windows, changes in WINDOWS.items():
            sparse = {"rectify_mode": "verify", "keep_ratio": keep_ratio, **changes}
            results = llm.generate(list(texts.values()), params, sparse_attention_config=sparse)
            rows = []
            for name, result, expected in zip(texts, results, dense, strict=True):
                output = result.outputs[0]
                if output.token_ids != expected.outputs[0].token_ids:
                    sys.exit(f"{name}, {windows}, keep_ratio {keep_ratio}: the text is not dense's")
                rows.append((name, figures(output.stats, tokens)))
            mean = [sum(values) / len(rows) for values in zip(*(f for _, f in rows), strict=True)]
            for name, values in (*rows, ("mean", mean)):
                shown = " ".join(f"{value:5.2f}" for value in values[3:])
                s, d, a = values[:3]
                lines.append(
                    f"{keep_ratio:<6} {windows:9} {name:13} {s:6.2f} {d:6.3f} {a:6.2f}  {shown}"
                )
                print(lines[-1], flush=True)
    return lines


def figures(stats: SequenceStats, tokens: int) -> list[float]:
    """s, d, a, then t for each cost; the first token comes from the prefill."""
    sparse, dense = stats.sparse_steps / (tokens - 1), stats.dense_passes / (tokens - 1)
    accepted = stats.drafts_accepted / stats.verifications
    return [sparse, dense, accepted, *(sparse + cost * dense for cost in PASS_COSTS)]


if __name__ == "__main__":
    main()
