"""Cases for block_select, sparse_decode and sparse_step, and what the three must do, in torch."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from tests.plugins.reference import DTYPES, NAN
from trt_resa.kernel_params import BlockSelectParams, KernelParams, SparseDecodeParams
from trt_resa.kernels import KernelLibrary

# Of ||actual - expected|| / ||expected||: rounding of the weights and of the result.
TOLERANCE = {torch.float16: 1e-3, torch.bfloat16: 8e-3}


@dataclasses.dataclass(frozen=True)
class Selecting:
    """The settings of a selection, as in ``SparseAttentionConfig``."""

    keep_ratio: float = 0.1
    min_blocks: int = 16
    local_blocks: int = 1
    sink_blocks: int = 0
    dense_below: int = 0

    def count(self, kv_len: int, block_size: int) -> int:
        blocks = math.ceil(kv_len / block_size)
        if kv_len <= self.dense_below:
            return blocks
        kept = min(math.ceil(self.keep_ratio * blocks), blocks)
        return max(kept, min(blocks, self.min_blocks))


@dataclasses.dataclass
class Cache:
    """Queries and a paged cache in shuffled blocks; NaN wherever nothing valid stands."""

    q: torch.Tensor
    kv: torch.Tensor
    summary: torch.Tensor
    kv_lens: torch.Tensor
    block_table: torch.Tensor

    @property
    def block_size(self) -> int:
        return self.kv.shape[3]

    def extents(self) -> dict[str, int]:
        return {
            "batch_size": self.kv_lens.shape[0],
            "max_blocks_per_seq": self.block_table.shape[1],
            "num_blocks": self.kv.shape[0],
            "q_heads": self.q.shape[1],
            "kv_heads": self.kv.shape[2],
            "head_dim": self.q.shape[2],
            "block_size": self.block_size,
            "dtype": DTYPES[self.q.dtype],
        }


def make_cache(
    kv_lens: Sequence[int],
    *,
    q_heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 128,
    block_size: int = 16,
    dtype: torch.dtype = torch.float16,
    spare_blocks: int = 1,
    integers: int = 0,
    device: str = "cuda",
    seed: int = 0,
) -> Cache:
    """``integers`` n > 0 draws from -n..n, the same query for all heads of a group."""
    generator = torch.Generator(device).manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        if integers:
            drawn = torch.randint(
                -integers, integers + 1, shape, generator=generator, device=device
            )
        else:
            drawn = torch.randn(shape, generator=generator, device=device)
        return drawn.to(dtype)

    blocks = [math.ceil(n / block_size) for n in kv_lens]
    width = max(blocks) + spare_blocks
    num_blocks = sum(blocks) + 3
    order = torch.randperm(num_blocks, generator=generator, device=device).to(torch.int32)
    kv = torch.full((num_blocks, 2, kv_heads, block_size, head_dim), NAN, dtype=dtype).to(device)
    summary = torch.full((num_blocks, kv_heads, 2, head_dim), NAN, dtype=dtype, device=device)
    table = torch.full((len(blocks), width), -1, dtype=torch.int32, device=device)
    slots = torch.arange(block_size, device=device)
    for seq, (kv_len, count) in enumerate(zip(kv_lens, blocks, strict=True)):
        ids, order = order[:count], order[count:]
        table[seq, :count] = ids
        tokens = random(count, 2, kv_heads, block_size, head_dim)
        seen = torch.arange(count, device=device)[:, None] * block_size + slots < kv_len
        hidden = ~seen[:, None, :, None]
        kv[ids.long()] = tokens.masked_fill(hidden[:, None], NAN)
        low = tokens[:, 0].masked_fill(hidden, math.inf).amin(2)
        high = tokens[:, 0].masked_fill(hidden, -math.inf).amax(2)
        summary[ids.long()] = torch.stack([low, high], 2)
    q = random(len(blocks), q_heads, head_dim)
    if integers:
        group = q_heads // kv_heads
        q = q[:, ::group].repeat_interleave(group, 1).contiguous()
    return Cache(q, kv, summary, torch.tensor(kv_lens, dtype=torch.int32).to(device), table)


#: Relative error of the root in a term: its squares are rounded to the type.
ROOT_ERROR = {torch.float16: 2**-11, torch.bfloat16: 2**-8}
#: Of what scores add to terms: sums and logarithms of some tens in fp32, approximate exponentials.
SCORE_ERROR = 1e-5


def scores(cache: Cache, seq: int, settings: Selecting) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores of a sequence's blocks [kv_heads, blocks], as logarithms in double, and their largest
    errors. NaN where a block is forced."""
    blocks = math.ceil(int(cache.kv_lens[seq]) / cache.block_size)
    summary = cache.summary[cache.block_table[seq, :blocks].long()].double()
    kv_heads, head_dim = cache.kv.shape[2], cache.q.shape[2]
    q = cache.q[seq].double().view(kv_heads, -1, 1, head_dim)
    low, high = summary.permute(2, 1, 0, 3)[:, :, None]
    ends = q * (low + high) / 2
    root = (q * (high - low) / 2).square().sum(-1).sqrt()
    magnitude = (q.abs() * (low.abs() + high.abs()) / 2).sum(-1)
    scale = head_dim**-0.5
    error = (1e-5 * magnitude + ROOT_ERROR[cache.q.dtype] * root) * scale
    terms = (ends.sum(-1) + root) * scale
    terms[:, :, : settings.sink_blocks] = math.nan
    terms[:, :, max(blocks - settings.local_blocks, 0) :] = math.nan
    missing = terms.isnan()
    of_heads = terms.masked_fill(missing, -math.inf).logsumexp(2, keepdim=True)
    most = error.masked_fill(missing, 0).amax(2, keepdim=True)
    return (terms - of_heads).logsumexp(1), (error + most).amax(1) + SCORE_ERROR


def ranking(cache: Cache, seq: int, settings: Selecting) -> torch.Tensor:
    """All blocks of each KV head from the first chosen to the last [kv_heads, blocks]."""
    ranked = scores(cache, seq, settings)[0]
    blocks = ranked.shape[1]
    ranked[:, : settings.sink_blocks] = math.inf
    ranked[:, max(blocks - settings.local_blocks, 0) :] = math.inf
    return ranked.sort(dim=1, descending=True, stable=True).indices


def attention(cache: Cache, seq: int, head: int, blocks: torch.Tensor) -> torch.Tensor:
    """Queries of one KV head over the chosen blocks, in double [group, head_dim]."""
    kv_heads, head_dim = cache.kv.shape[2], cache.q.shape[2]
    q = cache.q[seq].double().view(kv_heads, -1, head_dim)[head]
    tokens = cache.kv[cache.block_table[seq, blocks].long(), :, head].double()
    places = blocks[:, None] * cache.block_size
    seen = (places + torch.arange(cache.block_size, device=blocks.device)).flatten()
    keys, values = tokens.transpose(0, 1).flatten(1, 2)[:, seen < cache.kv_lens[seq]]
    return torch.softmax(q @ keys.T / math.sqrt(head_dim), -1) @ values


def buffers(library: KernelLibrary, params: KernelParams, device: torch.device) -> None:
    """Gives ``params`` a workspace of garbage and counters of zeros, kept alive by it."""
    params.counters_tensor = torch.zeros(
        library.counter_bytes(params), dtype=torch.uint8, device=device
    )
    # After counters and inputs: see `settled` in sparse_step.h.
    params.workspace_tensor = torch.full(
        (library.workspace_bytes(params),), 0x47, dtype=torch.uint8, device=device
    )
    params.workspace = params.workspace_tensor.data_ptr()
    params.counters = params.counters_tensor.data_ptr()


def launch(library: KernelLibrary, params: KernelParams) -> None:
    library.launch(params, torch.cuda.current_stream().cuda_stream)
    torch.cuda.synchronize()


@dataclasses.dataclass
class Selection:
    """Outputs of block_select."""

    blocks: torch.Tensor
    counts: torch.Tensor

    def of(self, seq: int, head: int) -> torch.Tensor:
        return self.blocks[seq, head, : int(self.counts[seq])].long()


def empty_selection(cache: Cache, settings: Selecting) -> Selection:
    batch, width = cache.block_table.shape
    longest = width * cache.block_size
    room = max(
        settings.count(longest, cache.block_size),
        math.ceil(min(settings.dense_below, longest) / cache.block_size),
    )
    shape = (batch, cache.kv.shape[2], room)
    device = cache.q.device
    return Selection(
        torch.full(shape, -7, dtype=torch.int32, device=device),
        torch.full((batch,), -7, dtype=torch.int32, device=device),
    )


def select_params(
    library: KernelLibrary, cache: Cache, settings: Selecting, out: Selection
) -> BlockSelectParams:
    params = BlockSelectParams(
        q=cache.q.data_ptr(),
        summary=cache.summary.data_ptr(),
        kv_lens=cache.kv_lens.data_ptr(),
        block_table=cache.block_table.data_ptr(),
        selection=out.blocks.data_ptr(),
        counts=out.counts.data_ptr(),
        workspace=None,
        counters=None,
        max_selected=out.blocks.shape[2],
        settled=1,
        softmax_scale=1 / math.sqrt(cache.q.shape[2]),
        **cache.extents(),
        **dataclasses.asdict(settings),
    )
    buffers(library, params, cache.q.device)
    return params


def select(library: KernelLibrary, cache: Cache, settings: Selecting) -> Selection:
    out = empty_selection(cache, settings)
    launch(library, select_params(library, cache, settings, out))
    return out


def decode_params(
    library: KernelLibrary, cache: Cache, selection: Selection, out: torch.Tensor
) -> SparseDecodeParams:
    params = SparseDecodeParams(
        q=cache.q.data_ptr(),
        kv=cache.kv.data_ptr(),
        kv_lens=cache.kv_lens.data_ptr(),
        block_table=cache.block_table.data_ptr(),
        selection=selection.blocks.data_ptr(),
        counts=selection.counts.data_ptr(),
        out=out.data_ptr(),
        workspace=None,
        counters=None,
        max_selected=selection.blocks.shape[2],
        softmax_scale=1 / math.sqrt(cache.q.shape[2]),
        **cache.extents(),
    )
    buffers(library, params, cache.q.device)
    return params


def decode(library: KernelLibrary, cache: Cache, selection: Selection) -> torch.Tensor:
    out = torch.full_like(cache.q, NAN)
    launch(library, decode_params(library, cache, selection, out))
    return out


def expected_output(cache: Cache, selection: Selection) -> torch.Tensor:
    """Of sparse_decode, in double; NaN for ignored sequences."""
    out = torch.full_like(cache.q, NAN, dtype=torch.float64)
    kv_heads = cache.kv.shape[2]
    grouped = out.view(len(out), kv_heads, -1, out.shape[2])
    for seq, kv_len in enumerate(cache.kv_lens.tolist()):
        for head in range(kv_heads if kv_len > 0 else 0):
            grouped[seq, head] = attention(cache, seq, head, selection.of(seq, head))
    return out


def assert_output(actual: torch.Tensor, expected: torch.Tensor) -> None:
    assert torch.equal(actual.isnan(), expected.isnan()), "rows of ignored sequences alone are NaN"
    if expected.isnan().all():
        return
    a, e = actual.double().nan_to_num(), expected.nan_to_num()
    error = float((a - e).norm() / e.norm())
    assert error <= TOLERANCE[actual.dtype], f"relative error {error}"
    worst = float((a - e).abs().max() / e.abs().max())
    assert worst <= 4 * TOLERANCE[actual.dtype], f"worst element is off by {worst} of the largest"
