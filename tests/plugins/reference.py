"""What kv_append must do, in plain torch and double precision, and cases to try it on."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from trt_resa.kernel_params import KernelDtype, KvAppendParams

NAN = float("nan")
DTYPES = {torch.float16: KernelDtype.FLOAT16, torch.bfloat16: KernelDtype.BFLOAT16}


@dataclasses.dataclass
class Case:
    """One call of kv_append, with every tensor on one device.

    Blocks, slots and summaries that hold nothing valid are NaN, as is ``q``: what the kernel reads
    wrongly or leaves unwritten shows.
    """

    qkv: torch.Tensor
    position_ids: torch.Tensor
    cu_query_lens: torch.Tensor
    kv_lens: torch.Tensor
    block_table: torch.Tensor
    inv_freq: torch.Tensor
    q_norm: torch.Tensor | None
    k_norm: torch.Tensor | None
    q: torch.Tensor
    kv: torch.Tensor
    summary: torch.Tensor
    rotary_dim: int
    rope_scale: float
    norm_eps: float

    def params(self) -> KvAppendParams:
        def address(tensor: torch.Tensor | None) -> int | None:
            return None if tensor is None else tensor.data_ptr()

        return KvAppendParams(
            qkv=address(self.qkv),
            position_ids=address(self.position_ids),
            cu_query_lens=address(self.cu_query_lens),
            kv_lens=address(self.kv_lens),
            block_table=address(self.block_table),
            inv_freq=address(self.inv_freq),
            q_norm=address(self.q_norm),
            k_norm=address(self.k_norm),
            q=address(self.q),
            kv=address(self.kv),
            summary=address(self.summary),
            num_rows=self.qkv.shape[0],
            batch_size=self.kv_lens.shape[0],
            max_blocks_per_seq=self.block_table.shape[1],
            num_blocks=self.kv.shape[0],
            q_heads=self.q.shape[1],
            kv_heads=self.kv.shape[2],
            head_dim=self.q.shape[2],
            block_size=self.kv.shape[3],
            rotary_dim=self.rotary_dim,
            dtype=DTYPES[self.qkv.dtype],
            rope_scale=self.rope_scale,
            norm_eps=self.norm_eps,
        )


def make_case(
    sequences: Sequence[tuple[int, int]],
    *,
    q_heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 128,
    block_size: int = 16,
    rotary_dim: int | None = None,
    dtype: torch.dtype = torch.float16,
    padding_rows: int = 0,
    qk_norm: bool = False,
    rope_scale: float = 1.0,
    rope_base: float = 10000.0,
    position_offset: int = 0,
    device: str = "cuda",
    seed: int = 0,
) -> Case:
    """A case of ``sequences`` (kv_len after the append, appended rows) on shuffled pool blocks."""
    generator = torch.Generator().manual_seed(seed)
    rotary_dim = head_dim if rotary_dim is None else rotary_dim
    max_blocks = max(math.ceil(kv_len / block_size) for kv_len, _ in sequences) + 1
    num_blocks = len(sequences) * max_blocks + 3
    rows = sum(n for _, n in sequences) + padding_rows
    heads = q_heads + 2 * kv_heads

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    kv = torch.full((num_blocks, 2, kv_heads, block_size, head_dim), NAN, dtype=dtype)
    block_table = torch.full((len(sequences), max_blocks), -1, dtype=torch.int32)
    order = torch.randperm(num_blocks, generator=generator).tolist()
    for sequence, (kv_len, appended) in enumerate(sequences):
        for index in range(math.ceil(kv_len / block_size)):
            block = order.pop()
            block_table[sequence, index] = block
            old = min(max(kv_len - appended - index * block_size, 0), block_size)
            kv[block, :, :, :old] = random(2, kv_heads, old, head_dim)

    positions = [
        position_offset + kv_len - appended + row
        for kv_len, appended in sequences
        for row in range(appended)
    ]
    cumulative = torch.tensor([0, *(n for _, n in sequences)]).cumsum(0)
    exponents = torch.arange(0, rotary_dim, 2, dtype=torch.float32) / max(rotary_dim, 1)
    return Case(
        qkv=random(rows, heads * head_dim).to(device),
        position_ids=torch.tensor(positions + [0] * padding_rows, dtype=torch.int32, device=device),
        cu_query_lens=cumulative.to(torch.int32).to(device),
        kv_lens=torch.tensor([n for n, _ in sequences], dtype=torch.int32, device=device),
        block_table=block_table.to(device),
        inv_freq=(rope_base**-exponents).to(device),
        q_norm=(1 + random(head_dim) / 4).to(device) if qk_norm else None,
        k_norm=(1 + random(head_dim) / 4).to(device) if qk_norm else None,
        q=torch.full((rows, q_heads, head_dim), NAN, dtype=dtype, device=device),
        kv=kv.to(device),
        summary=torch.full((num_blocks, kv_heads, 2, head_dim), NAN, dtype=dtype, device=device),
        rotary_dim=rotary_dim,
        rope_scale=rope_scale,
        norm_eps=1e-6,
    )


def norm_and_rotate(
    x: torch.Tensor, norm: torch.Tensor | None, positions: torch.Tensor, case: Case
) -> torch.Tensor:
    """RMS norm, then RoPE, of heads [rows, heads, head_dim] in double precision.

    The angle is the fp32 product of position and frequency, as Hugging Face computes it.
    """
    x = x.double()
    if norm is not None:
        variance = x.pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + case.norm_eps) * norm.double()
    if case.rotary_dim == 0:
        return x
    angles = (positions[:, None].float() * case.inv_freq).double()
    cosine = (angles.cos() * case.rope_scale)[:, None]
    sine = (angles.sin() * case.rope_scale)[:, None]
    half = case.rotary_dim // 2
    first, second, rest = x.tensor_split([half, case.rotary_dim], dim=-1)
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine, rest], -1)


@dataclasses.dataclass
class Expected:
    """q in double precision, and the cache before rounding; NaN where nothing may be written."""

    q: torch.Tensor
    kv: torch.Tensor
    written: torch.Tensor  # bool [num_blocks, block_size]: slots that this call writes
    valid_slots: dict[int, int]  # pool block that this call touches -> its valid keys


def kv_append(case: Case) -> Expected:
    """The result of a call on ``case``, whose tensors stay as they are."""
    rows, q_heads, head_dim = case.q.shape
    num_blocks, _, kv_heads, block_size, _ = case.kv.shape
    heads = case.qkv.view(rows, q_heads + 2 * kv_heads, head_dim)
    queries, keys, values = heads.split([q_heads, kv_heads, kv_heads], dim=1)
    q = norm_and_rotate(queries, case.q_norm, case.position_ids, case)
    k = norm_and_rotate(keys, case.k_norm, case.position_ids, case)

    cumulative = case.cu_query_lens.tolist()
    q[cumulative[-1] :] = NAN
    kv = case.kv.double()
    written = torch.zeros(num_blocks, block_size, dtype=torch.bool, device=case.kv.device)
    valid_slots: dict[int, int] = {}
    for sequence, kv_len in enumerate(case.kv_lens.tolist()):
        begin, end = cumulative[sequence], cumulative[sequence + 1]
        for row in range(begin, end):
            token = kv_len - (end - begin) + row - begin
            block = int(case.block_table[sequence, token // block_size])
            slot = token % block_size
            kv[block, 0, :, slot] = k[row]
            kv[block, 1, :, slot] = values[row].double()
            written[block, slot] = True
            valid_slots[block] = min(kv_len - token // block_size * block_size, block_size)
    return Expected(q=q, kv=kv, written=written, valid_slots=valid_slots)
