"""Time the sparse step and its parts at the shapes of Qwen2.5-7B, against PyTorch's attention.

28 query heads, 4 KV heads, head_dim 128, fp16, blocks of 16, keep ratio 0.1. One CUDA graph holds
a launch per copy of the cache, and the copies' bytes together exceed the L2 cache several times, so
every launch finds it cold. A figure is the median over replays, divided by the launches. Launches
that are ``chained`` follow one another directly, each allowed to start while the one before ends;
``alone`` has an ordinary small kernel before each, whose own time is subtracted.

Peers: ``sparse_peers.py``. Run on a GPU: ``python benchmarks/bench_sparse_step.py [--json FILE]``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks import sparse_peers
from benchmarks.sparse_peers import random_half
from tests.plugins.sparse_case import (
    Cache,
    Selecting,
    Selection,
    buffers,
    decode_params,
    empty_selection,
    select_params,
)
from trt_resa.kernel_params import KernelParams, KvAppendParams, SparseStepParams
from trt_resa.kernels import KernelLibrary
from trt_resa.kernels import load_library as load_kernels
from trt_resa.runtime.bench_timing import cold_copies, graph_us, read_gb_per_s

Q_HEADS, KV_HEADS, HEAD_DIM, BLOCK = 28, 4, 128, 16
SETTINGS = Selecting(keep_ratio=0.1)
TARGETS = {  # must, aim; us per layer on an H100
    (1, 32): (12, 8),
    (1, 128): (24, 18),
    (1, 256): (45, 35),
    (4, 32): (28, 20),
    (4, 128): (90, 70),
    (4, 256): (160, 130),
}


class Copy:
    """One cache of ``batch`` sequences of ``tokens``, and the parameters of every launch on it."""

    def __init__(self, library: KernelLibrary, batch: int, tokens: int, shared: dict[str, Any]):
        blocks = tokens // BLOCK
        table = torch.randperm(batch * blocks, device="cuda").to(torch.int32).view(batch, blocks)
        kv = random_half(batch * blocks, 2, KV_HEADS, BLOCK, HEAD_DIM)
        summary = torch.stack([kv[:, 0].amin(2), kv[:, 0].amax(2)], 2)
        lens = torch.full((batch,), tokens, dtype=torch.int32, device="cuda")
        q = random_half(batch, Q_HEADS, HEAD_DIM)
        self.cache = Cache(q, kv, summary, lens, table)
        self.out = torch.empty_like(q)
        self.selection: Selection = empty_selection(self.cache, SETTINGS)
        self.select = select_params(library, self.cache, SETTINGS, self.selection)
        self.decode = decode_params(library, self.cache, self.selection, self.out)
        self.qkv = random_half(batch, (Q_HEADS + 2 * KV_HEADS) * HEAD_DIM)
        self.position_ids = lens - 1
        self.cu_query_lens = torch.arange(batch + 1, dtype=torch.int32, device="cuda")
        self.inv_freq = 1e6 ** -(torch.arange(0, HEAD_DIM, 2, device="cuda") / HEAD_DIM)
        extents = self.cache.extents()
        common = {
            "qkv": self.qkv.data_ptr(),
            "position_ids": self.position_ids.data_ptr(),
            "cu_query_lens": self.cu_query_lens.data_ptr(),
            "kv_lens": lens.data_ptr(),
            "block_table": table.data_ptr(),
            "inv_freq": self.inv_freq.data_ptr(),
            "q_norm": None,
            "k_norm": None,
            "q": q.data_ptr(),
            "kv": kv.data_ptr(),
            "summary": summary.data_ptr(),
            "num_rows": batch,
            "rotary_dim": HEAD_DIM,
            "rope_scale": 1.0,
            "norm_eps": 1e-6,
            **extents,
        }
        self.append = KvAppendParams(**common)
        self.step = SparseStepParams(
            **common,
            out=self.out.data_ptr(),
            workspace=None,
            counters=None,
            settled=1,
            softmax_scale=HEAD_DIM**-0.5,
            keep_ratio=SETTINGS.keep_ratio,
            min_blocks=SETTINGS.min_blocks,
            local_blocks=SETTINGS.local_blocks,
            sink_blocks=SETTINGS.sink_blocks,
            dense_below=SETTINGS.dense_below,
        )
        for params in (self.select, self.decode, self.step):
            if params.kernel not in shared:
                buffers(library, params, kv.device)
                shared[params.kernel] = params
            params.workspace = shared[params.kernel].workspace
            params.counters = shared[params.kernel].counters


def measure(
    library: KernelLibrary, batch: int, thousands: int, ceiling: float, options: argparse.Namespace
) -> dict[str, Any]:
    tokens = thousands * 1024
    blocks = tokens // BLOCK
    selected = SETTINGS.count(tokens, BLOCK)
    rows = batch * KV_HEADS
    row_bytes = HEAD_DIM * 2
    moved = {
        "kv_append": batch * row_bytes * (2 * Q_HEADS + 4 * KV_HEADS + (BLOCK + 1) * KV_HEADS),
        "block_select": rows * blocks * 2 * row_bytes,
        "sparse_decode": rows * selected * 2 * BLOCK * row_bytes,
    }
    moved["sparse_step"] = sum(moved.values())
    copies = max(cold_copies(moved["block_select"]), options.layers)
    shared: dict[str, Any] = {}
    sets = [Copy(library, batch, tokens, shared) for _ in range(copies)]
    spacer = torch.zeros(1024, device="cuda")

    def launcher(params: KernelParams) -> Callable[[], object]:
        return lambda: library.launch(params, torch.cuda.current_stream().cuda_stream)

    rotation = range(max(1, 40 // copies) * copies)
    spacer_us = graph_us([lambda: spacer.add_(1)] * len(rotation))
    result: dict[str, Any] = {"batch": batch, "tokens": tokens, "copies": copies, "kernels": {}}
    fields = {"kv_append": "append", "block_select": "select", "sparse_decode": "decode"}
    fields["sparse_step"] = "step"
    for kernel in options.kernels:
        launches = [launcher(getattr(sets[i % copies], fields[kernel])) for i in rotation]
        chained = graph_us(launches)

        def spaced(launch: Callable[[], object]) -> None:
            spacer.add_(1)
            launch()

        alone = graph_us([lambda launch=launch: spaced(launch) for launch in launches]) - spacer_us
        rate = moved[kernel] / chained / 1e3
        result["kernels"][kernel] = {
            "chained_us": chained,
            "alone_us": alone,
            "bytes": moved[kernel],
            "gb_per_s": rate,
            "share_of_ceiling": rate / ceiling,
        }
        note = ""
        if kernel == "sparse_step" and (batch, thousands) in TARGETS:
            must, aim = TARGETS[batch, thousands]
            note = f"  must {must}, aim {aim}"
        print(
            f"B{batch} x {thousands:>3}K {kernel:>13}: {chained:7.2f} us chained {alone:7.2f} alone"
            f" {moved[kernel] / 1e6:8.3f} MB {rate:7.0f} GB/s {rate / ceiling:6.1%}{note}",
            flush=True,
        )
    del sets, shared
    torch.cuda.empty_cache()
    if options.baseline:
        shape = sparse_peers.Shape(batch, tokens, selected, Q_HEADS, KV_HEADS, HEAD_DIM, BLOCK)
        result["peers_us"] = {}
        for name, us in sparse_peers.measure(shape):
            result["peers_us"][name] = us
            print(f"B{batch} x {thousands:>3}K {name:>21}: {us:7.2f} us", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--no-baseline", dest="baseline", action="store_false")
    parser.add_argument(
        "--kernels",
        nargs="+",
        default=["kv_append", "block_select", "sparse_decode", "sparse_step"],
    )
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--thousands", nargs="+", type=int, default=[32, 128, 256])
    parser.add_argument(
        "--layers",
        type=int,
        default=0,
        help="copies of the cache at least, as many as a model has layers",
    )
    options = parser.parse_args()
    library = load_kernels()
    torch.manual_seed(0)
    ceiling = read_gb_per_s()
    print(f"GPU: {torch.cuda.get_device_name()}; reading 2 GiB: {ceiling:.0f} GB/s")
    results = [
        measure(library, batch, thousands, ceiling, options)
        for batch in options.batches
        for thousands in options.thousands
    ]
    if options.json:
        record = {
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "library": library.version,
            "architectures": library.architectures,
            "read_gb_per_s": ceiling,
            "shape": {
                "q_heads": Q_HEADS,
                "kv_heads": KV_HEADS,
                "head_dim": HEAD_DIM,
                "block": BLOCK,
            },
            "keep_ratio": SETTINGS.keep_ratio,
            "results": results,
        }
        options.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
