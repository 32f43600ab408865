"""The executor of data-centre TensorRT without TensorRT and without a GPU.

A stand-in runs the engine from the extents and addresses that it is given, with the torch executor
over the cache behind the addresses: what is bound wrongly gives wrong logits, or fails.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from tests.runtime.rtx_engines import (
    SPARSE,
    Batch,
    a_loop,
    check_captures_of_chunks,
    limits_of,
)
from trt_resa import LLM, contract
from trt_resa.config import KvCacheConfig
from trt_resa.contract import INPUTS, Phase
from trt_resa.engine_dir import EngineDirectory
from trt_resa.errors import ConfigError, RequestError
from trt_resa.runtime.executors import choose as choosing
from trt_resa.runtime.executors.torch_executor import TorchExecutor
from trt_resa.sampling_params import SamplingParams

pytest.importorskip("tensorrt_rtx")
from tests.runtime.trt import stand_in
from tests.runtime.trt.conftest import Make
from tests.runtime.trt.stand_in import StandIn
from trt_resa.rtx import trt as rtx

CPU = torch.device("cpu")


@pytest.mark.parametrize("engine", ["llama", "qwen3"], indirect=True)
@pytest.mark.parametrize("graphs", [True, False])
def test_logits_are_those_of_the_torch_executor(
    make: Make, engine: EngineDirectory, graphs: bool
) -> None:
    ours = make(graphs=graphs)
    limits = limits_of(engine)
    theirs = TorchExecutor(engine, SPARSE, KvCacheConfig(), limits, CPU, torch.float16)
    batch = Batch(3, ours.model.vocab_size, ours.num_blocks)
    for _ in range(2):  # the second time with the graphs of the first
        for step in a_loop(batch):
            assert_same(ours.forward(step), theirs.forward(step))
    assert (ours.captures > 0) is graphs
    for cache, same in ((ours.cache.kv, theirs.kv), (ours.cache.summary, theirs.summary)):
        full = batch._blocks[0][: 300 // SPARSE.block_size]
        for a, b in zip(cache, same, strict=True):
            assert_same(a[full], b[full])


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    """But for a few steps of fp16: the stand-in runs padded rows, whose sums have another order."""
    torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-3)


def test_contexts_and_what_is_set_in_them(make: Make, module: StandIn) -> None:
    executor = make()
    batch = Batch(4, executor.model.vocab_size, executor.num_blocks)
    for rows in (256, 130, 256, 40):  # profile 1
        executor.forward(batch.step(Phase.DENSE, {0: (0, rows)}))
    for seq in range(3):
        executor.forward(batch.step(Phase.DENSE, {seq: (0, 7)}))
    for turn in range(3):
        for count in (1, 2, 3):
            spans = {seq: (7 + turn, 8 + turn) for seq in range(count)}
            executor.forward(batch.step(Phase.SPARSE, spans))
    chunk, tail, window, *sparse = module.engines[-1]._contexts
    before = ["set_device_memory", "set_optimization_profile_async", "set_tensor_address"]
    run = ["set_input_shape", "execute_async_v3"]
    everything = (chunk, tail, window, *sparse)
    for context in everything:
        assert context._calls == [*before, *run]
        assert len({tuple(ran.items()) for ran in context._ran}) == 1
    assert [context._profile for context in everything] == [1, 1, 0, 0, 0, 0]
    assert [len(context._ran) for context in everything] == [3, 1, 3, 3, 3, 3]
    assert executor.captures == 5, "256 and 130 rows are one shape, 40 came once"
    assert len({context._memory for context in everything}) == 1
    assert len({tuple(context._addresses.items()) for context in everything}) == 1

    blocks, layers = 64, executor.model.num_layers
    assert [context._ran[0][contract.INPUT_IDS] for context in (chunk, tail)] == [(256,), (64,)]
    assert [context._ran[0][contract.LOGIT_ROWS] for context in (chunk, tail)] == [(8,), (8,)]
    assert window._ran[0] == {
        "input_ids": (8,),
        "position_ids": (8,),
        "cu_query_lens": (2,),
        "kv_lens": (1,),
        "block_table": (1, blocks),
        "logit_rows": (1,),
        "phase": (1,),
        "kv_pool": (layers,),
        "summary_pool": (layers,),
    }
    assert [context._ran[0] for context in sparse] == [
        {
            "input_ids": (size,),
            "position_ids": (size,),
            "cu_query_lens": (size + 1,),
            "kv_lens": (size,),
            "block_table": (size, blocks),
            "logit_rows": (size,),
            "phase": (0,),
            "kv_pool": (layers,),
            "summary_pool": (layers,),
        }
        for size in (1, 2, 4)
    ]


def test_chunks_of_growing_prompts_are_captured_once(make: Make) -> None:
    check_captures_of_chunks(make(), make(graphs=False))


def test_chunks_that_are_not_captured_share_a_context(make: Make, module: StandIn) -> None:
    executor = make(graphs=False)
    batch = Batch(1, executor.model.vocab_size, executor.num_blocks)
    for rows in (256, 130, 256, 40):
        executor.forward(batch.step(Phase.DENSE, {0: (0, rows)}))
    (chunks,) = module.engines[-1]._contexts
    assert chunks._calls.count("set_input_shape") == 2, "256 and 130 rows are one shape"
    assert [ran[contract.INPUT_IDS][0] for ran in chunks._ran] == [256, 256, 256, 64]
    assert executor.captures == 0


def test_the_addresses_are_the_caches(make: Make, module: StandIn) -> None:
    executor = make()
    batch = Batch(1, executor.model.vocab_size, executor.num_blocks)
    executor.forward(batch.step(Phase.DENSE, {0: (0, 3)}))
    bound = module.engines[-1]._contexts[0]._addresses
    assert set(bound) == {spec.name for spec in (*INPUTS, *contract.OUTPUTS)}
    assert len(set(bound.values())) == len(bound)
    layers = (executor.model.num_layers,)
    for name, buffers in (("kv_pool", executor.cache.kv), ("summary_pool", executor.cache.summary)):
        stored = stand_in.view(bound[name], layers, torch.int64)
        assert stored.tolist() == [buffer.data_ptr() for buffer in buffers]


def test_the_host_can_be_a_step_ahead(make: Make) -> None:
    executor = make()
    batch = Batch(2, executor.model.vocab_size, executor.num_blocks)

    def generate(late: bool) -> np.ndarray:
        fetched = [executor.submit(batch.step(Phase.DENSE, {0: (0, 90), 1: (0, 30)})).tokens()]
        for turn in range(12):
            step = batch.step(Phase.SPARSE, {0: (90 + turn, 91 + turn), 1: (30 + turn, 31 + turn)})
            ids = np.array([-1, -2], dtype=np.int32) if late else fetched[-1].get()
            fetched.append(executor.submit(dataclasses.replace(step, input_ids=ids)).tokens())
        return np.stack([each.get() for each in fetched])

    expected = generate(late=False)
    assert len(np.unique(expected)) > 3, "a constant output would show nothing"
    assert np.array_equal(generate(late=True), expected)


def test_some_rows_of_the_logits_are_read_behind(make: Make) -> None:
    executor = make()
    batch = Batch(1, executor.model.vocab_size, executor.num_blocks)
    first = batch.step(Phase.DENSE, {0: (0, 8)}, all_logits=True)
    expected = executor.forward(first)
    submitted = executor.submit(first)
    chosen, tokens = submitted.logits([7, 0, 3]), submitted.tokens()
    executor.submit(batch.step(Phase.SPARSE, {0: (8, 9)}))
    assert torch.equal(chosen.get(), expected[[7, 0, 3]])
    assert tokens.get().tolist() == expected.argmax(-1).tolist()
    with pytest.raises(RuntimeError, match="before the next one only"):
        submitted.logits([0])


def test_a_forward_without_logits(make: Make, engine: EngineDirectory) -> None:
    executor = make()
    batch = Batch(1, executor.model.vocab_size, executor.num_blocks)
    first = batch.step(Phase.DENSE, {0: (0, 40)})
    silent = dataclasses.replace(first, logit_rows=first.logit_rows[:0])
    assert executor.forward(silent).shape == (0, executor.model.vocab_size)
    then = batch.step(Phase.SPARSE, {0: (40, 41)})
    ours = executor.forward(then)
    executor.forward(first)
    assert torch.equal(ours, executor.forward(then))


def test_the_stand_in_has_no_names_of_its_own() -> None:
    """Whatever the executor calls is there in the real bindings."""
    for ours, real in (
        (stand_in.Engine, rtx.ICudaEngine),
        (stand_in.Context, rtx.IExecutionContext),
    ):
        names = {name for name in vars(ours) if not name.startswith("_")}
        assert len(names) >= 5
        assert not {name for name in names if not hasattr(real, name)}
    for name in ("device_memory_size_v2", "streamable_weights_size", "num_optimization_profiles"):
        assert hasattr(rtx.ICudaEngine, name)


@pytest.mark.usefixtures("make")
def test_llm_generates(engine: EngineDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [[*range(1, 150)], [*range(7, 40)]]
    params = SamplingParams(max_tokens=40, ignore_eos=True)
    with LLM(engine.path, executor="torch", device="cpu", dtype="float16") as llm:
        expected = [r.outputs[0].token_ids for r in llm.generate(prompts, params)]
        assert llm.generate(prompts[0], params, sparse_attention_config={"keep_ratio": 0.5})
    monkeypatch.setattr(choosing, "choose", lambda choice, *_: choice)  # the device is a CPU
    with LLM(engine.path, executor="tensorrt", device="cpu") as llm:
        assert [r.outputs[0].token_ids for r in llm.generate(prompts, params)] == expected
        assert llm.generate(prompts[0], params, rectify_mode="verify").finished
        with pytest.raises(RequestError, match=r"keep_ratio, .* are fixed in an engine of"):
            llm.generate(prompts[0], params, sparse_attention_config={"keep_ratio": 0.5})
        assert [r.outputs[0].token_ids for r in llm.generate(prompts, params)] == expected
    with pytest.raises(ConfigError, match=r"keep_ratio 0\.5 differs from the engine's 0\.25"):
        LLM(
            engine.path,
            executor="tensorrt",
            device="cpu",
            sparse_attention_config={"keep_ratio": 0.5},
        )
    with pytest.raises(ConfigError, match="dtype 'float32' differs from the engine's 'float16'"):
        LLM(engine.path, executor="tensorrt", device="cpu", dtype="float32")
    with pytest.raises(ConfigError, match="linears 'kernels' is for executor 'tensorrt_rtx', and"):
        LLM(engine.path, executor="tensorrt", device="cpu", linears="kernels")
