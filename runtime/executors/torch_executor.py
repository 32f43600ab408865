"""The ``torch`` executor: interprets the network with plain torch, on a CPU or a GPU.

It is the oracle of the engines and the way to run without a GPU. On a CPU it computes in fp32,
whatever the dtype of the stored weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors
import torch

from trt_resa import contract
from trt_resa.blocks import num_blocks
from trt_resa.config import KvCacheConfig, SparseAttentionConfig
from trt_resa.contract import Phase, Step
from trt_resa.engine_dir import ATTENTION_WEIGHTS, EngineDirectory, segment_weights
from trt_resa.errors import EngineError
from trt_resa.network import ATTENTION, Node
from trt_resa.reference.attention import dense_attention, sparse_attention
from trt_resa.reference.paged_cache import AppendPlan, append, plan_append
from trt_resa.reference.rotary import cos_sin, rms_norm, rotate
from trt_resa.reference.selection import all_blocks, select
from trt_resa.rope import inverse_frequencies
from trt_resa.runtime.executors.base import Limits
from trt_resa.runtime.executors.deferred import Deferred, ForwardQueue
from trt_resa.runtime.executors.operators import Operator, Weights, compile_node
from trt_resa.runtime.memory import cache_blocks


class TorchExecutor:
    """Holds the weights, the cache of every layer, and a function per node."""

    fixed_selection = False

    def __init__(
        self,
        engine: EngineDirectory,
        sparse: SparseAttentionConfig,
        kv_cache: KvCacheConfig,
        limits: Limits,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.model = engine.config.pretrained_config
        self.sparse = sparse
        self.device, self.dtype = device, dtype
        self._program = _compile(engine, device, dtype, self._attention)
        self._queue = ForwardQueue(self._compute)
        inv_freq, self._attention_factor = inverse_frequencies(self.model.rope)
        self._inv_freq = inv_freq.to(device)
        model, size = self.model, sparse.block_size
        self.num_blocks = cache_blocks(model, size, limits, kv_cache, device, dtype)

        def per_layer(*block: int) -> list[torch.Tensor]:
            shape = (self.num_blocks, *block)
            return [torch.zeros(shape, dtype=dtype, device=device) for _ in range(model.num_layers)]

        self.kv = per_layer(2, model.num_kv_heads, size, model.head_dim)
        self.summary = per_layer(model.num_kv_heads, 2, model.head_dim)

    def submit(self, step: Step) -> Deferred:
        """A forward that runs when its results are read."""
        return self._queue.submit(step)

    def forward(self, step: Step) -> torch.Tensor:
        """Float32 logits [R, vocab] on the host."""
        return self.submit(step).logits().get()

    @torch.inference_mode()
    def _compute(self, step: Step) -> torch.Tensor:
        state = _StepState(self, step)
        values: dict[str, Any] = {
            contract.INPUT_IDS: state.tensor(step.input_ids),
            contract.LOGIT_ROWS: state.tensor(step.logit_rows),
        }
        for node, run in self._program:
            arguments = [values[name] for name in node.inputs]
            if node.op == ATTENTION:
                arguments.insert(0, state)
            values[node.output] = run(*arguments)
        return values[contract.LOGITS].cpu()

    def _attention(self, node: Node, weights: Weights) -> Operator:
        """An attention node: QK norm, RoPE, append, then sparse or dense attention."""
        layer, eps = int(node.attributes["layer"]), float(node.attributes["eps"])
        model = self.model
        q_norm, k_norm = weights.get("q_norm"), weights.get("k_norm")
        heads = (model.num_heads, model.num_kv_heads, model.num_kv_heads)

        def run(state: _StepState, qkv: torch.Tensor) -> torch.Tensor:
            rows = qkv.view(len(qkv), sum(heads), model.head_dim)
            q, k, v = rows.split(heads, dim=1)
            if q_norm is not None and k_norm is not None:
                q, k = rms_norm(q, q_norm, eps), rms_norm(k, k_norm, eps)
            q, k = rotate(q, *state.cos_sin), rotate(k, *state.cos_sin)
            append(self.kv[layer], self.summary[layer], k, v, state.plan)
            return state.attend(q, layer).reshape(len(qkv), model.attention_size)

        return run


class _StepState:
    """What every layer of one forward shares: device copies, RoPE table, where rows go."""

    def __init__(self, executor: TorchExecutor, step: Step) -> None:
        self._executor = executor
        self._phase = step.phase
        self._sparse = step.sparse or executor.sparse
        self._kv_lens_host = step.kv_lens.tolist()
        self._cu_host = step.cu_query_lens.tolist()
        self._lengths = [num_blocks(n, executor.sparse.block_size) for n in self._kv_lens_host]
        # One row per sequence, as in dense decoding: all sequences at once, by the function of the
        # sparse steps.
        self._everything: torch.Tensor | None = None
        if step.phase is Phase.DENSE and step.num_tokens == step.batch_size:
            heads = executor.model.num_kv_heads
            self._everything = all_blocks(self._lengths, heads, executor.device)
        self.kv_lens = self.tensor(step.kv_lens)
        self.block_table = self.tensor(step.block_table)
        self.plan: AppendPlan = plan_append(
            self.tensor(step.cu_query_lens),
            self.kv_lens,
            self.block_table,
            executor.sparse.block_size,
        )
        self.cos_sin = cos_sin(
            self.tensor(step.position_ids), executor._inv_freq, executor._attention_factor
        )

    def tensor(self, array: contract.Int32Array) -> torch.Tensor:
        return torch.from_numpy(array).to(self._executor.device, torch.int64)

    def attend(self, q: torch.Tensor, layer: int) -> torch.Tensor:
        kv, chosen = self._executor.kv[layer], self._everything
        if self._phase is Phase.SPARSE:
            summary = self._executor.summary[layer]
            chosen = select(q, summary, self._kv_lens_host, self.block_table, self._sparse)
        if chosen is not None:
            return sparse_attention(q, kv, chosen, self.kv_lens, self.block_table)
        parts = []
        for row, (kv_len, length) in enumerate(zip(self._kv_lens_host, self._lengths, strict=True)):
            rows = slice(self._cu_host[row], self._cu_host[row + 1])
            parts.append(dense_attention(q[rows], kv, kv_len, self.block_table[row, :length]))
        return torch.cat(parts)


def _compile(
    engine: EngineDirectory,
    device: torch.device,
    dtype: torch.dtype,
    attention: Callable[[Node, Weights], Operator],
) -> list[tuple[Node, Operator]]:
    """A function per node, in execution order."""
    built_for = engine.config.build_config.executors
    if "torch" not in built_for:
        raise EngineError(
            f"{engine.path} holds no weights for the torch executor (it was built with --executors "
            f"{','.join(built_for)}); build it again with --executors torch"
        )

    def read(file: str, nodes: tuple[Node, ...]) -> Iterator[tuple[Node, Weights]]:
        with _open(engine.path / file) as stored:
            for node in nodes:
                yield (
                    node,
                    {
                        role: _to(stored.get_tensor(weight.name), device, dtype)
                        for role, weight in node.weights.items()
                    },
                )

    compiled: dict[str, Operator] = {}
    for index, segment in enumerate(engine.network.segments()):
        for node, weights in read(segment_weights(index), segment.nodes):
            compiled[node.output] = compile_node(node, weights)
    attentions = engine.network.attention_nodes
    weighted = any(node.weights for node in attentions)
    pairs = read(ATTENTION_WEIGHTS, attentions) if weighted else ((node, {}) for node in attentions)
    for node, weights in pairs:
        compiled[node.output] = attention(node, weights)
    return [(node, compiled[node.output]) for node in engine.network.nodes]


def _to(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """On the device; floating tensors in ``dtype``, packed INT4 as it is."""
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype)


def _open(path: Path) -> safetensors.safe_open:
    try:
        return safetensors.safe_open(path, framework="pt")
    except (OSError, safetensors.SafetensorError) as error:
        raise EngineError(
            f"{path} cannot be read ({error}); build the engine again with trt-resa build-engine"
        ) from None
