"""Time dense_attention at the shapes of Qwen2.5-7B against PyTorch's SDPA in the same run.

28 query heads, 4 KV heads, head_dim 128, fp16, blocks of 16 in shuffled order. SDPA reads
contiguous K/V with ``enable_gqa=True`` and no mask, so it also computes the scores that causality
hides (a prefill chunk of 4,096 against 128K: 1.6 % more). Each figure is the median over replays of
a CUDA graph that holds one launch, the L2 cache overwritten before each. Run on a GPU:
``python benchmarks/bench_dense_attention.py [--json FILE] [--only SUBSTRING]``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.plugins.dense_reference import DenseCase, make_dense_case
from trt_resa.kernels import KernelLibrary, load_library
from trt_resa.runtime.bench_timing import graph_us, read_gb_per_s

Q_HEADS, KV_HEADS, HEAD_DIM = 28, 4, 128
REPLAYS = 20
BACKENDS = {"cudnn": SDPBackend.CUDNN_ATTENTION, "flash": SDPBackend.FLASH_ATTENTION}


@dataclasses.dataclass(frozen=True)
class Shape:
    name: str
    batch_size: int
    queries: int
    keys: int

    @property
    def kv_bytes(self) -> int:
        return self.batch_size * self.keys * KV_HEADS * HEAD_DIM * 2 * 2

    @property
    def flops(self) -> int:
        """Of the scores that causality leaves visible, and their products with V."""
        visible = self.queries * self.keys - self.queries * (self.queries - 1) // 2
        return 4 * self.batch_size * visible * Q_HEADS * HEAD_DIM


SHAPES = [
    *(
        Shape(f"{queries} x {keys >> 10}K, B{batch}", batch, queries, keys)
        for queries in (1, 32)
        for keys in (1 << 15, 1 << 17, 1 << 18)
        for batch in (1, 4)
    ),
    Shape("prefill 4096 x 128K, B1", 1, 4096, 1 << 17),
]


def time_us(launch: Callable[[], object]) -> float:
    return graph_us([launch], REPLAYS, cold=True)


def contiguous_kv(case: DenseCase, keys: int) -> tuple[torch.Tensor, torch.Tensor]:
    """K and V [B, kv_heads, keys, D] out of the cache."""
    tables = case.block_table[:, : keys // case.kv.shape[3]].long()
    kv = case.kv[tables]  # [B, blocks, 2, kv_heads, block_size, D]
    k, v = kv.permute(2, 0, 3, 1, 4, 5).reshape(2, len(tables), KV_HEADS, keys, HEAD_DIM)
    return k, v


def measure(library: KernelLibrary, shape: Shape, ceiling: float) -> dict[str, object]:
    case = make_dense_case(
        [(shape.keys, shape.queries)] * shape.batch_size,
        group=Q_HEADS // KV_HEADS,
        kv_heads=KV_HEADS,
        head_dim=HEAD_DIM,
    )
    times = {"trt_resa": time_us(lambda: case.launch(library))}
    k, v = contiguous_kv(case, shape.keys)
    q = case.q.view(shape.batch_size, shape.queries, Q_HEADS, HEAD_DIM).transpose(1, 2)
    for name, backend in BACKENDS.items():
        try:
            with sdpa_kernel(backend):
                times[name] = time_us(
                    lambda: scaled_dot_product_attention(q, k, v, enable_gqa=True)
                )
        except RuntimeError as error:
            print(f"{shape.name}: SDPA {name} did not run: {str(error).splitlines()[0]}")
    ours = times["trt_resa"]
    best = min((time for name, time in times.items() if name != "trt_resa"), default=None)
    row = {
        "shape": shape.name,
        "us": {name: round(time, 2) for name, time in times.items()},
        "tflops": round(shape.flops / ours / 1e6, 1),
        "gb_per_s": round(shape.kv_bytes / ours / 1e3, 1),
        "share_of_ceiling": round(shape.kv_bytes / ours / 1e3 / ceiling, 3),
        "best_sdpa_over_ours": None if best is None else round(best / ours, 3),
    }
    print(
        f"{shape.name:<24} {ours:9.1f} us {row['tflops']:>6} TFLOP/s {row['gb_per_s']:>7} GB/s "
        f"{row['share_of_ceiling']:6.1%}  "
        + "  ".join(f"{name} {time:.1f}" for name, time in times.items() if name != "trt_resa")
        + f"  best/ours {row['best_sdpa_over_ours']}",
        flush=True,
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--only", default="", help="shapes whose name contains this")
    arguments = parser.parse_args()
    library = load_library()
    ceiling = read_gb_per_s()
    print(f"GPU: {torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    print(f"library {library.version}, architectures {' '.join(library.architectures)}")
    print(f"ceiling, 2 GiB read once: {ceiling:.0f} GB/s")
    rows = [measure(library, s, ceiling) for s in SHAPES if arguments.only in s.name]
    if arguments.json:
        result = {
            "gpu": torch.cuda.get_device_name(),
            "pytorch": torch.__version__,
            "cudnn": torch.backends.cudnn.version(),
            "architectures": library.architectures,
            "read_ceiling_gb_per_s": round(ceiling, 1),
            "command": "python benchmarks/bench_dense_attention.py",
            "rows": rows,
        }
        arguments.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
