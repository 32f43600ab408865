"""The paper's decoding loop, plainly: an oracle that shares nothing with the package. Blocks are
scored as this project does it.

Keys and values lie contiguously in one tensor per layer; blocks are slices, summaries are taken
afresh at every step, selections are sorted Python lists, one head at a time. The linear layers and
norms are those of a ``transformers`` Llama.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb


class PaperLoop:
    """Rectified Sparse Attention as in algorithm 1 of arXiv 2506.04108, greedy, one sequence."""

    def __init__(
        self, model: Any, block_size: int, keep_ratio: float, min_blocks: int, interval: int
    ) -> None:
        self.model = model
        self.block_size, self.keep_ratio = block_size, keep_ratio
        self.min_blocks, self.interval = min_blocks, interval
        config = model.config
        self.group = config.num_attention_heads // config.num_key_value_heads
        self.head_dim = config.head_dim
        nothing = torch.empty(0, config.num_key_value_heads, config.head_dim)
        self.keys = [nothing for _ in model.model.layers]
        self.values = [nothing for _ in model.model.layers]

    @torch.inference_mode()
    def generate(self, prompt: list[int], new_tokens: int) -> list[int]:
        """f sparse steps, then a dense pass over those f tokens whose logits are thrown away."""
        tokens = list(prompt)
        tokens.append(self.forward(tokens, 0, sparse=False))
        exact = len(prompt)
        while len(tokens) - len(prompt) < new_tokens:
            for _ in range(self.interval):
                tokens.append(self.forward(tokens[-1:], len(tokens) - 1, sparse=True))
            written = tokens[exact : exact + self.interval]
            self.forward(written, exact, sparse=False)
            exact += self.interval
        return tokens[len(prompt) : len(prompt) + new_tokens]

    def forward(self, tokens: list[int], start: int, *, sparse: bool) -> int:
        """Write K/V of ``tokens`` at ``start`` on; the greedy token after the last one."""
        inner = self.model.model
        hidden = inner.embed_tokens(torch.tensor([tokens]))
        positions = torch.arange(start, start + len(tokens))[None]
        cos, sin = inner.rotary_emb(hidden, positions)
        for number, layer in enumerate(inner.layers):
            x = layer.input_layernorm(hidden)
            attention = layer.self_attn
            shape = (1, len(tokens), -1, self.head_dim)
            q = attention.q_proj(x).view(shape).transpose(1, 2)
            k = attention.k_proj(x).view(shape).transpose(1, 2)
            v = attention.v_proj(x).view(shape).transpose(1, 2)
            q, k = apply_rotary_pos_emb(q, k, cos, sin)
            self.keys[number] = torch.cat([self.keys[number][:start], k[0].transpose(0, 1)])
            self.values[number] = torch.cat([self.values[number][:start], v[0].transpose(0, 1)])
            out = torch.stack(
                [self.attend(number, q[0, :, i], start + i + 1, sparse) for i in range(len(tokens))]
            )
            hidden = hidden + attention.o_proj(out.reshape(1, len(tokens), -1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        logits = self.model.lm_head(inner.norm(hidden[:, -1]))
        return int(logits.argmax())

    def attend(self, layer: int, q: torch.Tensor, length: int, sparse: bool) -> torch.Tensor:
        """q [heads, head_dim] over the first ``length`` positions, or a selection of them."""
        keys, values = self.keys[layer][:length], self.values[layer][:length]
        outputs = []
        for head in range(keys.shape[1]):
            queries = q[head * self.group : (head + 1) * self.group]
            k, v = keys[:, head], values[:, head]
            if sparse:
                places = self.selected_places(queries, k)
                k, v = k[places], v[places]
            weights = torch.softmax(queries @ k.T / math.sqrt(self.head_dim), dim=-1)
            outputs.append(weights @ v)
        return torch.cat(outputs).flatten()

    def selected_places(self, queries: torch.Tensor, keys: torch.Tensor) -> list[int]:
        size = self.block_size
        starts = list(range(0, len(keys), size))
        terms = []  # of all blocks but the last, which is always in
        for start in starts[:-1]:
            block = keys[start : start + size]
            low, high = block.min(dim=0).values, block.max(dim=0).values
            largest = queries @ (low + high) / 2 + (queries * (high - low) / 2).norm(dim=1)
            terms.append(largest / math.sqrt(self.head_dim))
        scores = torch.stack(terms).softmax(dim=0).sum(dim=1).tolist() if terms else []
        wanted = max(math.ceil(self.keep_ratio * len(starts)), min(len(starts), self.min_blocks))
        earlier = sorted(range(len(starts) - 1), key=lambda i: (-scores[i], i))
        chosen = sorted([*earlier[: wanted - 1], len(starts) - 1])
        return [p for i in chosen for p in range(i * size, min((i + 1) * size, len(keys)))]
