"""Time kv_append at the shapes of Qwen2.5-7B (28 query heads, 4 KV heads, head_dim 128, fp16).

Each figure is the median over graph replays; one graph holds a launch per buffer set, and the sets
together exceed the L2 cache where the rows do. The baseline copies as many bytes with cudaMemcpy,
in a graph too. Run on a GPU: ``python benchmarks/bench_kv_append.py``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.plugins.reference import Case, make_case
from trt_resa.kernels import KernelLibrary, load_library
from trt_resa.runtime.bench_timing import graph_us


def copy_gb_per_s(total_bytes: int) -> float:
    """Bandwidth of device copies that read and write ``total_bytes`` together."""
    count = max(total_bytes // 4, 1)  # half read, half written, of two bytes each
    sets = 4 if total_bytes > 1 << 20 else 28
    pairs = [torch.randn(2, count, device="cuda").half() for _ in range(sets)]
    time = graph_us([lambda pair=pair: pair[1].copy_(pair[0]) for pair in pairs])
    return total_bytes / time / 1e3


def bytes_moved(case: Case, sequences: list[tuple[int, int]]) -> int:
    """What a call must move: rows in, q, K and V out, older keys of touched blocks, summaries."""
    rows, q_heads, head_dim = case.q.shape
    kv_heads, block_size = case.kv.shape[2:4]
    old = sum((kv_len - n) % block_size for kv_len, n in sequences if n)
    touched = sum(
        (kv_len - 1) // block_size - (kv_len - n) // block_size + 1 for kv_len, n in sequences if n
    )
    heads = 2 * rows * (q_heads + 2 * kv_heads) + old * kv_heads + touched * kv_heads * 2
    return heads * head_dim * 2


def measure(library: KernelLibrary, sequences: list[tuple[int, int]], ceiling: float) -> None:
    rows = sum(n for _, n in sequences)
    sets = 4 if rows > 256 else 28
    cases = [make_case(sequences, q_heads=28, kv_heads=4, seed=seed) for seed in range(sets)]

    def launch(case: Case) -> None:
        library.launch(case.params(), torch.cuda.current_stream().cuda_stream)

    time = graph_us([lambda case=case: launch(case) for case in cases])
    moved = bytes_moved(cases[0], sequences)
    rate = moved / time / 1e3
    baseline = copy_gb_per_s(moved)
    print(
        f"{rows:>6} rows, batch {len(sequences):>2}: {time:8.2f} us  {moved / 1e6:8.3f} MB  "
        f"{rate:7.1f} GB/s  {rate / ceiling:6.1%} of the ceiling  "
        f"(copy of as many bytes: {moved / baseline / 1e3:.2f} us, {baseline:.1f} GB/s)"
    )


def main() -> None:
    library = load_library()
    print(f"GPU: {torch.cuda.get_device_name()}")
    print(f"library {library.version}, architectures {' '.join(library.architectures)}")
    ceiling = copy_gb_per_s(2 << 30)
    print(f"ceiling, a copy of 1 GiB (read and written): {ceiling:.0f} GB/s")
    for sequences in (
        [(4096, 4096)],
        [(2048, 2048), (2048, 2048)],
        [(512, 32)],
        [(511, 1)] * 16,
        [(511, 1)],
        [(497, 1)],
    ):
        measure(library, sequences, ceiling)


if __name__ == "__main__":
    main()
