"""What the sparse step is compared with: other kernels over the same cache, or as much of it.

Dense: PyTorch's SDPA over contiguous K and V, FlashInfer over the paged cache. Sparse: attention
alone over random blocks of each KV head, as many as a selection holds, by FlexAttention and
FlashInfer, to which each KV head is a sequence of its own. FlashInfer is used where it is
installed; what it computes is compared with plain attention before it is timed.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import textwrap
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention

from trt_resa.runtime.bench_timing import cold_copies, graph_us

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
        return cold_copies(self.batch * self.kv_heads * keys * self.head_dim * 2 * 2)


def random_half(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float16, device="cuda")


def random_blocks(shape: Shape, heads: int) -> torch.Tensor:
    """Ascending indices of the blocks that are selected [batch, heads, selected]."""
    order = torch.rand(shape.batch, heads, shape.tokens // shape.block, device="cuda").argsort(-1)
    return order[..., : shape.selected].sort(-1).values


def contiguous_caches(shape: Shape, sparse: bool) -> list[torch.Tensor]:
    """Keys and values [2, batch, kv_heads, tokens, head_dim] of a rotation."""
    size = (2, shape.batch, shape.kv_heads, shape.tokens, shape.head_dim)
    return [random_half(*size) for _ in range(shape.copies(sparse))]


def sdpa_us(backend: SDPBackend, shape: Shape) -> float:
    q = random_half(shape.batch, shape.q_heads, 1, shape.head_dim)
    attend = partial(scaled_dot_product_attention, q, enable_gqa=True)
    with sdpa_kernel(backend):
        return graph_us([partial(attend, *kv) for kv in contiguous_caches(shape, sparse=False)])


def flex_us(shape: Shape) -> float:
    rows = (shape.batch, shape.q_heads, 1)
    indices = torch.zeros(*rows, shape.tokens // shape.block, dtype=torch.int32, device="cuda")
    chosen = random_blocks(shape, shape.kv_heads).repeat_interleave(shape.group, 1)
    indices[:, :, 0, : shape.selected] = chosen
    counts = torch.full(rows, shape.selected, dtype=torch.int32, device="cuda")
    mask = BlockMask.from_kv_blocks(
        counts, indices, BLOCK_SIZE=(128, shape.block), seq_lengths=(1, shape.tokens)
    )
    attend = partial(
        torch.compile(flex_attention),
        random_half(*rows, shape.head_dim),
        block_mask=mask,
        enable_gqa=True,
        kernel_options={"BLOCK_N": shape.block},
    )
    return graph_us([partial(attend, *kv) for kv in contiguous_caches(shape, sparse=True)])


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
    chosen = random_blocks(shape, shape.kv_heads)
    blocks = table.gather(1, chosen.flatten(1)).view_as(chosen)
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
            print(f"  {name} refuses:", textwrap.shorten(f"{type(error).__name__} {error}", 200))
        else:
            yield name, us
        torch.cuda.empty_cache()
