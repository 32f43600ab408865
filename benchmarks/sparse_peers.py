"""What the sparse step is compared with: other kernels over the same cache, or as much of it.

Dense: PyTorch's SDPA over contiguous K and V, FlashInfer over the paged cache. Sparse: attention
alone over random blocks, as many as a selection holds, by FlexAttention (blocks of each query head)
and FlashInfer (of each KV head, which is a sequence of its own there). FlashInfer is used where it
is installed; what it computes is compared with plain attention before it is timed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.timing import graph_us

COLD_BYTES = 200 << 20  # what a rotation reads at least; the L2 cache of an H100 holds 50 MB
WORKSPACE_BYTES = 256 << 20  # of FlashInfer


@dataclasses.dataclass(frozen=True)
class Shape:
    """One query per sequence of ``tokens``; ``selected`` blocks are what a sparse peer reads."""

    batch: int
    tokens: int
    selected: int
    q_heads: int
    kv_heads: int
    head_dim: int
    block: int

    @property
    def group(self) -> int:
        return self.q_heads // self.kv_heads

    def copies(self, sparse: bool) -> int:
        """Caches in a rotation."""
        keys = self.selected * self.block if sparse else self.tokens
        bytes_read = self.batch * self.kv_heads * keys * self.head_dim * 2 * 2
        return max(2, math.ceil(COLD_BYTES / bytes_read))


def random_half(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float16, device="cuda")


def sdpa_us(backend: SDPBackend, shape: Shape) -> float:
    q = random_half(shape.batch, shape.q_heads, 1, shape.head_dim)
    size = (2, shape.batch, shape.kv_heads, shape.tokens, shape.head_dim)
    sets = [random_half(*size) for _ in range(shape.copies(sparse=False))]
    with sdpa_kernel(backend):
        return graph_us(
            [lambda kv=kv: scaled_dot_product_attention(q, *kv, enable_gqa=True) for kv in sets]
        )


def flex_us(shape: Shape) -> float:
    blocks = shape.tokens // shape.block
    rows = (shape.batch, shape.q_heads, 1)
    indices = torch.zeros(*rows, blocks, dtype=torch.int32, device="cuda")
    order = torch.rand(*rows, blocks, device="cuda").argsort(-1)
    indices[..., : shape.selected] = order[..., : shape.selected].sort(-1).values
    counts = torch.full(rows, shape.selected, dtype=torch.int32, device="cuda")
    mask = BlockMask.from_kv_blocks(
        counts, indices, BLOCK_SIZE=(128, shape.block), seq_lengths=(1, shape.tokens)
    )
    attend = torch.compile(flex_attention)
    q = random_half(*rows, shape.head_dim)
    size = (2, shape.batch, shape.kv_heads, shape.tokens, shape.head_dim)
    sets = [random_half(*size) for _ in range(shape.copies(sparse=False))]
    options = {"BLOCK_N": shape.block}
    return graph_us(
        [
            lambda kv=kv: attend(q, *kv, block_mask=mask, enable_gqa=True, kernel_options=options)
            for kv in sets
        ]
    )


@dataclasses.dataclass(frozen=True)
class Paged:
    """Queries [sequences, heads, head_dim], caches of keys and of values [pages, kv_heads, block,
    head_dim], and the pages of each sequence [sequences, pages]."""

    q: torch.Tensor
    caches: list[tuple[torch.Tensor, torch.Tensor]]
    table: torch.Tensor

    def expected(self) -> torch.Tensor:
        """Plain attention over the first cache."""
        keys, values = (
            pages[self.table.long()].transpose(1, 2).flatten(2, 3) for pages in self.caches[0]
        )
        return scaled_dot_product_attention(self.q[:, :, None], keys, values, enable_gqa=True)[
            :, :, 0
        ]


def paged(shape: Shape, sparse: bool) -> Paged:
    pool = shape.batch * shape.tokens // shape.block
    size = (pool, 2, shape.kv_heads, shape.block, shape.head_dim)
    pools = [random_half(*size) for _ in range(shape.copies(sparse))]
    table = torch.randperm(pool, device="cuda").to(torch.int32).view(shape.batch, -1)
    q = random_half(shape.batch, shape.q_heads, shape.head_dim)
    if not sparse:
        return Paged(q, [(kv[:, 0], kv[:, 1]) for kv in pools], table)
    # A page is what one KV head has of a block; the values' pages lie kv_heads behind the keys'.
    rows = (shape.batch, shape.kv_heads)
    order = torch.rand(*rows, table.shape[1], device="cuda").argsort(-1)
    chosen = order[..., : shape.selected].sort(-1).values.flatten(1)
    blocks = table.gather(1, chosen).view(*rows, -1)
    heads = torch.arange(shape.kv_heads, dtype=torch.int32, device="cuda")[:, None]
    pages = blocks * (2 * shape.kv_heads) + heads
    flat = [kv.view(-1, 1, shape.block, shape.head_dim) for kv in pools]
    return Paged(
        q.view(-1, shape.group, shape.head_dim),
        [(kv[: -shape.kv_heads], kv[shape.kv_heads :]) for kv in flat],
        pages.flatten(0, 1).contiguous(),
    )


#: Attends to a cache's keys and values.
Attend = Callable[[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]


def fa2(case: Paged) -> Attend:
    """FlashInfer's decode on tensor cores."""
    from flashinfer.decode import BatchDecodeWithPagedKVCacheWrapper

    workspace = torch.empty(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda")
    wrapper = BatchDecodeWithPagedKVCacheWrapper(workspace, "HND", use_tensor_cores=True)
    sequences, pages = case.table.shape
    kv_heads, block, head_dim = case.caches[0][0].shape[1:]
    wrapper.plan(
        torch.arange(sequences + 1, dtype=torch.int32) * pages,
        case.table.flatten(),
        torch.full((sequences,), block, dtype=torch.int32),
        case.q.shape[1],
        kv_heads,
        head_dim,
        block,
        q_data_type=case.q.dtype,
        kv_data_type=case.q.dtype,
    )
    out = torch.empty_like(case.q)
    return lambda cache: wrapper.run(case.q, cache, out=out)


def xqa(case: Paged) -> Attend:
    """The decode of TensorRT-LLM that FlashInfer carries."""
    from flashinfer.decode import xqa_batch_decode_with_kv_cache

    sequences, pages = case.table.shape
    _, block, head_dim = case.caches[0][0].shape[1:]
    return partial(
        xqa_batch_decode_with_kv_cache,
        case.q,
        workspace_buffer=torch.zeros(WORKSPACE_BYTES, dtype=torch.uint8, device="cuda"),
        block_tables=case.table,
        seq_lens=torch.full((sequences,), pages * block, device="cuda").to(torch.uint32),
        max_seq_len=pages * block,
        bmm1_scale=head_dim**-0.5,
        out=torch.empty_like(case.q),
        kv_layout="HND",
    )


def flashinfer_us(kernel: Callable[[Paged], Attend], sparse: bool, shape: Shape) -> float:
    case = paged(shape, sparse)
    attend = kernel(case)
    torch.testing.assert_close(attend(case.caches[0]), case.expected(), atol=2e-3, rtol=2e-2)
    return graph_us([partial(attend, cache) for cache in case.caches])


def peers() -> dict[str, Callable[[Shape], float]]:
    """By the name that is printed: microseconds of a launch."""
    found: dict[str, Callable[[Shape], float]] = {
        "SDPA cudnn": partial(sdpa_us, SDPBackend.CUDNN_ATTENTION),
        "SDPA flash": partial(sdpa_us, SDPBackend.FLASH_ATTENTION),
        "FlexAttention sparse": flex_us,
    }
    if importlib.util.find_spec("flashinfer") is not None:
        for sparse in (False, True):
            for kernel in (fa2, xqa):
                name = f"FlashInfer {kernel.__name__}{' sparse' if sparse else ''}"
                found[name] = partial(flashinfer_us, kernel, sparse)
    return found


def measure(shape: Shape) -> Iterator[tuple[str, float]]:
    """Every peer and its microseconds; says so where one refuses."""
    for name, peer in peers().items():
        try:
            us = peer(shape)
        except Exception as error:  # of whatever kind: this is a peer, not what is measured
            print(f"  {name} refuses: {type(error).__name__} {str(error).strip().splitlines()[0]}")
        else:
            yield name, us
        torch.cuda.empty_cache()
