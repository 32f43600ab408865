"""The attention node in Python, and an executor that runs an exported model with it.

The node is ONNX's reference evaluator's view of the plugin: its caches are buffers found by the
addresses in ``kv_pool`` and ``summary_pool``, here keys of a dictionary.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from trt_resa import contract, plugin_fields
from trt_resa.blocks import num_blocks
from trt_resa.config import SparseAttentionConfig
from trt_resa.contract import Phase, Step
from trt_resa.model_config import ModelConfig
from trt_resa.reference.attention import dense_attention, sparse_attention
from trt_resa.reference.paged_cache import append, plan_append
from trt_resa.reference.rotary import cos_sin, rms_norm, rotate
from trt_resa.reference.selection import select

#: Buffers by address.
MEMORY: dict[int, torch.Tensor] = {}


class ReSAAttention(OpRun):
    op_domain = plugin_fields.PLUGIN_NAMESPACE

    def _run(self, *inputs: np.ndarray, **given: Any) -> tuple[np.ndarray]:
        fields = {f.name: given.pop(f.name) for f in plugin_fields.FIELDS}
        assert not given, f"unknown attributes {list(given)}"
        names = ("qkv", *plugin_fields.INPUTS, *plugin_fields.NORM_INPUTS)
        x = {name: torch.tensor(a) for name, a in zip(names, inputs, strict=False)}
        sparse = SparseAttentionConfig(
            keep_ratio=plugin_fields.shortest_decimal(fields["keep_ratio"]),
            **{
                key: fields[key]
                for key in ("block_size", "min_blocks", "local_blocks", "sink_blocks")
            },
            dense_below=fields["dense_below"],
        )
        layer, block = fields["layer"], sparse.block_size
        kv = MEMORY[int(x[contract.KV_POOL][layer])]
        summary = MEMORY[int(x[contract.SUMMARY_POOL][layer])]
        cu, kv_lens, table = (
            x[name].long()
            for name in (contract.CU_QUERY_LENS, contract.KV_LENS, contract.BLOCK_TABLE)
        )
        q, k, v = self._heads(x, fields)
        append(kv, summary, k, v, plan_append(cu, kv_lens, table, block))
        lengths = kv_lens.tolist()
        if x[contract.PHASE].shape == (0,):
            chosen = select(q, summary, lengths, table, sparse)
            out = sparse_attention(q, kv, chosen, kv_lens, table)
        else:
            out = torch.cat(
                [
                    dense_attention(
                        q[cu[row] : cu[row + 1]],
                        kv,
                        length,
                        table[row, : num_blocks(length, block)],
                    )
                    for row, length in enumerate(lengths)
                ]
            )
        return (out.reshape(len(out), -1).numpy(),)

    def _heads(self, x: dict[str, torch.Tensor], fields: dict[str, Any]) -> list[torch.Tensor]:
        """q, k and v rows, normed and rotated."""
        q_heads, kv_heads = fields["q_heads"], fields["kv_heads"]
        assert fields["softmax_scale"] == np.float32(fields["head_dim"] ** -0.5)
        assert fields["rotary_dim"] == 2 * len(x[plugin_fields.INV_FREQ])
        rows = x["qkv"].view(-1, q_heads + 2 * kv_heads, fields["head_dim"])
        q, k, v = rows.split((q_heads, kv_heads, kv_heads), dim=1)
        if plugin_fields.Q_NORM in x:
            q = rms_norm(q, x[plugin_fields.Q_NORM], fields["norm_eps"])
            k = rms_norm(k, x[plugin_fields.K_NORM], fields["norm_eps"])
        angles = cos_sin(x[contract.POSITION_IDS], x[plugin_fields.INV_FREQ], fields["rope_scale"])
        return [rotate(q, *angles), rotate(k, *angles), v]


class OnnxExecutor:
    """Implements ``trt_resa.runtime.executors.base.Executor`` with the reference evaluator."""

    def __init__(self, path: Path, model: ModelConfig, block_size: int, blocks: int) -> None:
        self.model, self.num_blocks = model, blocks
        self._evaluator = ReferenceEvaluator(str(path), new_ops=[ReSAAttention])
        heads, width = model.num_kv_heads, model.head_dim
        self._pools = {
            contract.KV_POOL: self._allocate(blocks, 2, heads, block_size, width),
            contract.SUMMARY_POOL: self._allocate(blocks, heads, 2, width),
        }

    def _allocate(self, *shape: int) -> np.ndarray:
        """Addresses of a buffer per layer."""
        buffers = [torch.zeros(shape) for _ in range(self.model.num_layers)]
        MEMORY.update((buffer.data_ptr(), buffer) for buffer in buffers)
        return np.array([buffer.data_ptr() for buffer in buffers], dtype=np.int64)

    def forward(self, step: Step) -> torch.Tensor:
        extent = {Phase.SPARSE: 0, Phase.DENSE: 1}[step.phase]
        feeds = {
            contract.INPUT_IDS: step.input_ids,
            contract.POSITION_IDS: step.position_ids,
            contract.CU_QUERY_LENS: step.cu_query_lens,
            contract.KV_LENS: step.kv_lens,
            contract.BLOCK_TABLE: step.block_table,
            contract.LOGIT_ROWS: step.logit_rows,
            contract.PHASE: np.zeros(extent, dtype=np.int8),
            **self._pools,
        }
        (logits,) = self._evaluator.run([contract.LOGITS], feeds)
        return torch.from_numpy(logits)
