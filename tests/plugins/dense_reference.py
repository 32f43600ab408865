"""What dense_attention must do, in plain torch, and paged caches to try it on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from tests.plugins.reference import DTYPES, NAN
from trt_resa.kernel_params import DenseAttentionParams
from trt_resa.kernels import KernelLibrary


@dataclasses.dataclass
class DenseCase:
    """One call of dense_attention. Blocks and slots that hold nothing valid, ``out`` and the
    workspace are NaN: what the kernel reads wrongly or leaves unwritten shows."""

    q: torch.Tensor
    cu_query_lens: torch.Tensor
    kv_lens: torch.Tensor
    block_table: torch.Tensor
    kv: torch.Tensor
    out: torch.Tensor
    softmax_scale: float
    workspace: torch.Tensor | None = None
    place: torch.Tensor | None = None  # int64 [1], the address of kv: the launch is indirect

    def params(self) -> DenseAttentionParams:
        return DenseAttentionParams(
            q=self.q.data_ptr(),
            cu_query_lens=self.cu_query_lens.data_ptr(),
            kv_lens=self.kv_lens.data_ptr(),
            block_table=self.block_table.data_ptr(),
            kv=(self.kv if self.place is None else self.place).data_ptr(),
            out=self.out.data_ptr(),
            workspace=None if self.workspace is None else self.workspace.data_ptr(),
            num_rows=self.q.shape[0],
            batch_size=self.kv_lens.shape[0],
            max_blocks_per_seq=self.block_table.shape[1],
            num_blocks=self.kv.shape[0],
            q_heads=self.q.shape[1],
            kv_heads=self.kv.shape[2],
            head_dim=self.q.shape[2],
            block_size=self.kv.shape[3],
            dtype=DTYPES[self.q.dtype],
            indirect=int(self.place is not None),
            softmax_scale=self.softmax_scale,
        )

    def launch(self, library: KernelLibrary) -> None:
        """Enqueue on torch's current stream, with a workspace of NaN made on the first call."""
        if self.workspace is None:
            floats = -(-library.workspace_bytes(self.params()) // 4)
            self.workspace = torch.full((floats,), NAN, device=self.q.device)
        library.launch(self.params(), torch.cuda.current_stream().cuda_stream)


def make_dense_case(
    sequences: Sequence[tuple[int, int]],
    *,
    group: int = 7,
    kv_heads: int = 2,
    head_dim: int = 128,
    block_size: int = 16,
    dtype: torch.dtype = torch.float16,
    padding_rows: int = 0,
    spare_blocks: int = 3,
    spare_table_entries: int = 1,
    q_scale: float = 2.0,
    device: str = "cuda",
    seed: int = 0,
) -> DenseCase:
    """A case of ``sequences`` (kv_len, query rows) on shuffled pool blocks.

    Queries are scaled so that a few keys stand out and a row's softmax is far from uniform.
    """
    generator = torch.Generator(device).manual_seed(seed)
    counts = [math.ceil(kv_len / block_size) for kv_len, _ in sequences]
    num_blocks = sum(counts) + spare_blocks
    rows = sum(n for _, n in sequences) + padding_rows

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, device=device, dtype=dtype)

    kv = random(num_blocks, 2, kv_heads, block_size, head_dim)
    order = torch.randperm(num_blocks, generator=generator, device=device).to(torch.int32)
    block_table = torch.full(
        (len(sequences), max(counts) + spare_table_entries), -1, dtype=torch.int32, device=device
    )
    used = 0
    for sequence, (kv_len, _) in enumerate(sequences):
        blocks = order[used : used + counts[sequence]]
        block_table[sequence, : len(blocks)] = blocks
        used += len(blocks)
        if kv_len % block_size:
            kv[int(blocks[-1]), :, :, kv_len % block_size :] = NAN
    kv[order[used:].long()] = NAN

    cumulative = torch.tensor([0, *(n for _, n in sequences)]).cumsum(0)
    q = random(rows, group * kv_heads, head_dim) * q_scale
    q[rows - padding_rows :] = NAN
    return DenseCase(
        q=q,
        cu_query_lens=cumulative.to(torch.int32).to(device),
        kv_lens=torch.tensor([n for n, _ in sequences], dtype=torch.int32, device=device),
        block_table=block_table,
        kv=kv,
        out=torch.full_like(q, NAN),
        softmax_scale=head_dim**-0.5,
    )


def dense_attention(
    case: DenseCase, dtype: torch.dtype = torch.float64, chunk: int = 1 << 16
) -> torch.Tensor:
    """``out`` of a call on ``case`` in ``dtype``; NaN in rows that are not written.

    Keys are taken ``chunk`` at a time, in a base-e online softmax.
    """
    _, _, kv_heads, block_size, head_dim = case.kv.shape
    out = torch.full(case.q.shape, NAN, dtype=dtype, device=case.q.device)
    cumulative = case.cu_query_lens.tolist()
    for sequence, kv_len in enumerate(case.kv_lens.tolist()):
        begin, end = cumulative[sequence], cumulative[sequence + 1]
        n = end - begin
        if n <= 0:
            continue
        q = case.q[begin:end].to(dtype).view(n, kv_heads, -1, head_dim)
        positions = torch.arange(kv_len - n, kv_len, device=case.q.device)
        top = torch.full((kv_heads, n, q.shape[2], 1), -math.inf, dtype=dtype, device=q.device)
        total = torch.zeros_like(top)
        accumulator = torch.zeros(kv_heads, n, q.shape[2], head_dim, dtype=dtype, device=q.device)
        for first in range(0, kv_len, chunk):
            last = min(first + chunk, kv_len)
            blocks = case.block_table[sequence, first // block_size : -(-last // block_size)]
            pages = case.kv[blocks.long()].to(dtype)  # [blocks, 2, kv_heads, block_size, D]
            keys, values = pages.permute(1, 2, 0, 3, 4).reshape(2, kv_heads, -1, head_dim)[
                :, :, : last - first
            ]
            scores = torch.einsum("nhgd,hkd->hngk", q, keys) * case.softmax_scale
            hidden = torch.arange(first, last, device=q.device) > positions[:, None]
            scores.masked_fill_(hidden[None, :, None], -math.inf)
            new_top = torch.maximum(top, scores.amax(-1, keepdim=True))
            base = new_top.masked_fill(new_top == -math.inf, 0)
            weights = torch.exp(scores - base)
            factor = torch.exp(top - base)
            total = total * factor + weights.sum(-1, keepdim=True)
            accumulator = accumulator * factor + torch.einsum("hngk,hkd->hngd", weights, values)
            top = new_top
        out[begin:end] = (accumulator / total).permute(1, 0, 2, 3).reshape(n, -1, head_dim)
    return out
