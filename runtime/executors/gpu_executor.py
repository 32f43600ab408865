"""What the executors of engines have in common: inputs at fixed addresses, a program per shape, the
cache, sampling on the device, one forward ahead of the host."""

from __future__ import annotations

import abc
from collections.abc import Iterator

import torch

from trt_resa.blocks import num_blocks
from trt_resa.config import KvCacheConfig, SparseAttentionConfig
from trt_resa.contract import Phase, Step, max_logit_rows
from trt_resa.engine_dir import EngineDirectory
from trt_resa.runtime.executors.attention_kernels import Cache
from trt_resa.runtime.executors.base import Limits
from trt_resa.runtime.executors.buckets import Buckets, ForwardShape
from trt_resa.runtime.executors.forward_program import ForwardProgram, Launch
from trt_resa.runtime.executors.greedy import greedy_tokens
from trt_resa.runtime.executors.step_inputs import StepInputs
from trt_resa.runtime.executors.submitted import Submitted
from trt_resa.runtime.memory import cache_blocks


class GpuExecutor(abc.ABC):
    """Runs forwards as programs of launches on one stream.

    A subclass calls ``allocate_cache`` once its weights are in place, and says what a forward
    launches and where its logits stand. Every shape is captured as a CUDA graph, chunks when they
    recur; ``graphs`` False launches everything one by one.
    """

    fixed_selection = False

    def __init__(
        self,
        engine: EngineDirectory,
        sparse: SparseAttentionConfig,
        limits: Limits,
        device: torch.device,
        graphs: bool,
    ) -> None:
        build = engine.config.build_config
        self.model = engine.config.pretrained_config
        self.device = device
        self.dtype: torch.dtype = getattr(torch, build.dtype)
        self.sparse, self.limits, self._graphs = sparse, limits, graphs
        few = max_logit_rows(
            build.max_batch_size, engine.config.sparse_attention_config.rectify_interval
        )
        self.buckets = Buckets(limits, min(few, build.max_num_tokens, limits.max_num_tokens))
        self.stream = torch.cuda.Stream(device)
        self._inputs = StepInputs(limits, num_blocks(limits.max_seq_len, sparse.block_size), device)
        self._programs: dict[ForwardShape, ForwardProgram] = {}
        self.graph_pool = torch.cuda.graph_pool_handle()
        self._submitted = 0

    def allocate_cache(self, kv_cache: KvCacheConfig) -> None:
        """Sets ``num_blocks`` and ``cache``; raises RequestError when no cache fits."""
        model, size = self.model, self.sparse.block_size
        self.num_blocks = cache_blocks(model, size, self.limits, kv_cache, self.device, self.dtype)
        self.cache = Cache.allocate(model, size, self.num_blocks, self.dtype, self.device)

    @property
    @abc.abstractmethod
    def logits(self) -> torch.Tensor:
        """Float32 [max_logit_rows, vocab] on the device: those of the last forward in front."""

    @abc.abstractmethod
    def prepare(self, shape: ForwardShape, captured: bool) -> None:
        """Make ready for forwards of ``shape``, which will be ``captured`` as a graph or not."""

    @abc.abstractmethod
    def launches(
        self, shape: ForwardShape, *, sparse: SparseAttentionConfig | None = None
    ) -> Iterator[Launch]:
        """What a forward of a prepared shape enqueues, in order; the last is ``sample``.

        ``sparse``: what a selection follows; None: the executor's own settings.
        """

    @property
    def captures(self) -> int:
        """Graphs captured so far."""
        return sum(program.captures for program in self._programs.values())

    @torch.inference_mode()
    def forward(self, step: Step) -> torch.Tensor:
        """Float32 logits [R, vocab] on the host."""
        return self.submit(step).logits().get()

    @torch.inference_mode()
    def submit(self, step: Step) -> Submitted:
        """Enqueue a forward and return at once, unless its shape is new.

        A negative token id -1 - j stands for the token that the forward submitted before sampled
        from its logit row j. So the host can submit the next forward before it has read a token.
        """
        shape = self.buckets.shape_of(step)
        program = self.program(shape, step.sparse)
        self._inputs.upload(step, shape, self.stream)
        program.run()
        self._submitted += 1
        number, rows = self._submitted, len(step.logit_rows)
        return Submitted(
            self.logits[:rows],
            self._inputs.tokens[:rows],
            self.stream,
            lambda: number == self._submitted,
        )

    @torch.inference_mode()
    def program(
        self, shape: ForwardShape, sparse: SparseAttentionConfig | None = None
    ) -> ForwardProgram:
        """The program of a shape, made when it is first asked for.

        One for a selection other than the executor's own is launched one by one and not kept, so
        that requests with settings of their own cannot fill the memory with graphs. A dense pass
        selects nothing.
        """
        own = sparse is None or sparse.selection == self.sparse.selection
        own = own or shape.phase is Phase.DENSE
        if own and shape in self._programs:
            return self._programs[shape]
        captured, chunk = own and self._graphs, self.buckets.is_chunk(shape.rows)
        self.prepare(shape, captured)
        launches = list(self.launches(shape, sparse=sparse))
        program = ForwardProgram(launches, self.stream, self.graph_pool, captured, chunk)
        if own:
            self._programs[shape] = program
        return program

    def sample(self, count: int) -> None:
        """Enqueue the choice of the likeliest token of ``count`` logit rows."""
        self._inputs.tokens[:count].copy_(greedy_tokens(self.logits[:count]))
