"""Time int4_linear at the linears of an 8B and a 7B model against PyTorch with 16-bit weights.

A figure is the median over replays of a CUDA graph that holds a launch per copy of the weights; the
copies together exceed the L2 cache several times, so every launch reads its weights from memory.
Run on a GPU: ``python benchmarks/bench_int4_linear.py``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from trt_resa.int4 import Int4Weight
from trt_resa.int4_tiles import pack_tiles
from trt_resa.kernel_params import Int4LinearParams, KernelDtype
from trt_resa.kernels import load_library
from trt_resa.runtime.bench_timing import cold_copies, graph_us

#: (name, N, K, swiglu)
MODELS = {
    "Llama-3.1-8B": (
        ("o", 4096, 4096, 0),
        ("gate_up", 28672, 4096, 1),
        ("down", 4096, 14336, 0),
        ("qkv", 6144, 4096, 0),
    ),
    "Qwen2.5-7B": (
        ("o", 3584, 3584, 0),
        ("gate_up", 37888, 3584, 1),
        ("down", 3584, 18944, 0),
        ("qkv", 4608, 3584, 0),
    ),
}
ROWS = (1, 4, 8, 16, 32)
REPLAYS = 12


def int4_us(n: int, k: int, swiglu: int, rows: int) -> float:
    library = load_library()
    copies = cold_copies(n * k // 2)
    x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
    out = torch.empty(rows, n, device="cuda", dtype=torch.bfloat16)
    scales = torch.rand(k // 128, n, device="cuda").to(torch.bfloat16)
    first = pack_tiles(
        Int4Weight(torch.randint(0, 256, (k, n // 2), dtype=torch.uint8, device="cuda"), scales),
        bool(swiglu),
    )
    sets = [(first.weight.clone(), first.scales.clone()) for _ in range(copies)]
    params = [
        Int4LinearParams(
            x=x.data_ptr(),
            weight=weight.data_ptr(),
            scales=scales.data_ptr(),
            bias=None,
            residual=None,
            out=out.data_ptr(),
            num_rows=rows,
            in_columns=k,
            out_columns=n,
            swiglu=swiglu,
            dtype=KernelDtype.BFLOAT16,
        )
        for weight, scales in sets
    ]
    stream = torch.cuda.current_stream
    return graph_us([lambda p=p: library.launch(p, stream().cuda_stream) for p in params], REPLAYS)


def torch_us(n: int, k: int, rows: int) -> float:
    copies = cold_copies(n * k * 2)
    x = torch.randn(rows, k, device="cuda", dtype=torch.bfloat16)
    weights = [torch.randn(n, k, device="cuda", dtype=torch.bfloat16) for _ in range(copies)]
    return graph_us([lambda w=w: torch.nn.functional.linear(x, w) for w in weights], REPLAYS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    options = parser.parse_args()
    print(f"GPU: {torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    for model in options.models:
        linears = MODELS[model]
        for rows in options.rows:
            total, parts = 0.0, []
            for name, n, k, swiglu in linears:
                time = int4_us(n, k, swiglu, rows)
                total += time
                moved = n * k / 2 + n * k / 128 * 2
                parts.append(f"{name} {time:.1f} us {moved / time / 1e3:.0f} GB/s")
            base = sum(torch_us(n, k, rows) for _, n, k, _ in linears)
            print(
                f"{model}, {rows:>2} rows: {total:6.1f} us a layer (PyTorch bfloat16 {base:.1f}); "
                + ", ".join(parts),
                flush=True,
            )


if __name__ == "__main__":
    main()
