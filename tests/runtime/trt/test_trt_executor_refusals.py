"""What the executor of data-centre TensorRT refuses, each in one sentence, and who chooses it."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.runtime.rtx_engines import SPARSE, Batch, build_tiny, limits_of
from trt_resa import LLM
from trt_resa.cli import main
from trt_resa.config import KvCacheConfig
from trt_resa.contract import Phase
from trt_resa.engine_dir import EngineDirectory
from trt_resa.errors import ConfigError, EngineError, RequestError
from trt_resa.runtime.executors.choose import choose
from trt_resa.runtime.executors.trt_executor import TrtExecutor
from trt_resa.runtime.serving.parameters import llm_arguments

pytest.importorskip("tensorrt_rtx")
from tests.runtime.trt import stand_in
from tests.runtime.trt.conftest import Make
from tests.runtime.trt.stand_in import StandIn
from trt_resa.rtx import trt as rtx

CPU = torch.device("cpu")


def test_lower_limits_fit_and_wider_profiles_are_asked_for(
    make: Make, engine: EngineDirectory
) -> None:
    lower = limits_of(engine, max_batch_size=2, max_seq_len=500, max_num_tokens=8)
    executor = make(limits=lower)
    batch = Batch(1, executor.model.vocab_size, executor.num_blocks)
    executor.forward(batch.step(Phase.DENSE, {0: (0, 8)}))
    for change, message in (
        ({"max_batch_size": 5}, r"profile 0 of .*model.engine takes cu_query_lens from \[2\] to"),
        (
            {"max_num_tokens": 512},
            r"profile 1 of .* input_ids from \[1\] to \[256\], and .*\[512\]",
        ),
        ({"max_seq_len": 4096}, r"block_table from \[1, 1\] to \[4, 64\], and up to \[4, 256\]"),
    ):
        with pytest.raises(EngineError, match=message):
            make(limits=limits_of(engine, **change))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensorrt_version": "10.1.0.0"}, r"built with tensorrt 10\.1\.0\.0 and this is tensorrt"),
        ({"compute_capabilities": ("8.6",)}, r"compute capability 8\.6 and this one has 9\.0"),
        ({"plugin_library_sha256": "a" * 64}, r"sha256 a{16} and this one has [0-9a-f]{16}; build"),
    ],
)
def test_an_engine_of_another_build_is_refused(
    make: Make,
    engine: EngineDirectory,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
) -> None:
    library = tmp_path / "plugin.so"
    library.write_bytes(b"a plugin")
    monkeypatch.setenv("TRT_RESA_PLUGIN_LIBRARY", str(library))
    info = dataclasses.replace(
        engine.config.build_info, compute_capabilities=("9.0",), plugin_library_sha256=None
    )
    monkeypatch.setattr(engine, "config", dataclasses.replace(engine.config, build_info=info))
    make()
    info = dataclasses.replace(info, **changes)
    monkeypatch.setattr(engine, "config", dataclasses.replace(engine.config, build_info=info))
    with pytest.raises(EngineError, match=message):
        make()


def test_the_engine_directory_records_the_plugin(
    module: StandIn, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    library = tmp_path / "plugin.so"
    library.write_bytes(b"a plugin")
    monkeypatch.setenv("TRT_RESA_PLUGIN_LIBRARY", str(library))
    built = build_tiny(tmp_path / "engine", "llama", executors=("tensorrt",))
    module.builders.pop()
    from trt_resa.trt import plugin_library_sha256

    assert built.config.build_info.plugin_library_sha256 == plugin_library_sha256() is not None


def test_engines_that_are_no_decoder(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    names = stand_in.Engine.get_tensor_name
    with monkeypatch.context() as patch:
        patch.setattr(
            stand_in.Engine,
            "get_tensor_name",
            lambda e, i: names(e, min(i, e.num_io_tensors - 2)),
        )
        with pytest.raises(EngineError, match=r"other tensors .*that differs is logits\)"):
            make()
    with monkeypatch.context() as patch:
        patch.setattr(stand_in.Engine, "get_tensor_dtype", lambda e, n: rtx.int32)
        with pytest.raises(EngineError, match=r"that differs is kv_pool\); build it again"):
            make()


def test_a_file_that_does_not_load(
    make: Make, engine: EngineDirectory, module: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(module, "Runtime", rtx.Runtime)  # the real one, which wants a GPU
        if not torch.cuda.is_available():
            with pytest.raises(EngineError, match=r"could not load .*model\.engine: .+"):
                make()
    monkeypatch.setattr(module, "stripped", 1)
    with pytest.raises(EngineError, match=r"built with --strip_plan and holds no weights; refit"):
        make()


def test_an_empty_file_is_said(module: StandIn, tmp_path: Path) -> None:
    from trt_resa.trt import load_engine

    (tmp_path / "model.engine").touch()
    with pytest.raises(EngineError, match=r"model\.engine cannot be read .* build it again"):
        load_engine(tmp_path / "model.engine")


def test_weight_streaming(make: Make, module: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"0\.5 needs an engine built with --weight_streaming"):
        make(gpu_weights_percent=0.5)
    monkeypatch.setattr(module, "streamable", 1000)
    with pytest.raises(ConfigError, match=r"gpu_weights_percent 50\.0 must be from 0 to 1"):
        make(gpu_weights_percent=50.0)
    for share, budget, captured in ((None, 1000, 1), (1.0, 1000, 1), (0.25, 250, 0), (0.0, 0, 0)):
        executor = make(gpu_weights_percent=share)
        batch = Batch(1, executor.model.vocab_size, executor.num_blocks)
        executor.forward(batch.step(Phase.DENSE, {0: (0, 3)}))
        assert module.engines[-1].weight_streaming_budget_v2 == budget
        assert executor.captures == captured


@pytest.mark.parametrize("name", ["keep_ratio", "min_blocks", "sink_blocks", "dense_below"])
def test_the_selection_is_the_engines(make: Make, name: str) -> None:
    value = {"keep_ratio": 0.5, "min_blocks": 7, "sink_blocks": 1, "dense_below": 64}[name]
    other = dataclasses.replace(SPARSE, **{name: value})
    with pytest.raises(ConfigError, match=rf"{name} {value} differs from .* --{name} {value}, or"):
        make(sparse=other)
    executor = make(sparse=dataclasses.replace(SPARSE, rectify_mode="verify"))
    batch = Batch(1, executor.model.vocab_size, executor.num_blocks)
    step = batch.step(Phase.SPARSE, {0: (0, 1)})
    with pytest.raises(RequestError, match="selection that its engine was built with"):
        executor.submit(dataclasses.replace(step, sparse=other))


def test_which_executor_runs(engine: EngineDirectory, tiny_engine: Path) -> None:
    gpu = torch.device("cuda")
    assert choose("auto", engine, gpu) == "tensorrt"
    assert choose("auto", engine, CPU) == "torch"
    assert choose("tensorrt", engine, gpu) == "tensorrt"
    with pytest.raises(ConfigError, match=r"'tensorrt' needs an NVIDIA GPU and the device is cpu"):
        choose("tensorrt", engine, CPU)
    with pytest.raises(ConfigError, match=r"gpu_weights_percent 0.5 is for executor 'tensorrt'"):
        LLM(tiny_engine, device="cpu", gpu_weights_percent=0.5)


def test_a_directory_without_the_engine(tiny_engine: Path) -> None:
    engine = EngineDirectory(tiny_engine)
    limits = dataclasses.replace(limits_of(engine), max_seq_len=256)
    with pytest.raises(EngineError, match=r"holds no engine for the executor tensorrt \(it was"):
        TrtExecutor(engine, engine.config.sparse_attention_config, KvCacheConfig(), limits, CPU)


def test_without_tensorrt_the_way_out_is_said(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    known = sys.modules.pop("trt_resa.trt")
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    try:
        with pytest.raises(EngineError, match=r"install it with pip install 'trt-resa\[tensorrt\]"):
            make()
    finally:
        sys.modules["trt_resa.trt"] = known


def test_the_commands(
    engine: EngineDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--engine_dir", str(engine.path), "--executor", "tensorrt", "--device", "cpu"]
    with pytest.raises(SystemExit):
        main(["generate", "--prompt", "a", *chosen])
    assert "executor 'tensorrt' needs an NVIDIA GPU" in capsys.readouterr().err
    models = ["--output_dir", str(tmp_path), "--gpu_weights_percent", "0.5"]
    main(["triton-repo", *chosen, *models])
    text = (tmp_path / "trt_resa" / "config.pbtxt").read_text()
    for name, value in (("executor", "tensorrt"), ("gpu_weights_percent", "0.5")):
        assert f'parameters {{ key: "{name}" value {{ string_value: "{value}" }} }}' in text
    read = llm_arguments({"engine_dir": "e", "gpu_weights_percent": "0.5"}, tmp_path)
    assert read["gpu_weights_percent"] == 0.5
    with pytest.raises(ConfigError, match="gpu_weights_percent = 'half' is not a number"):
        llm_arguments({"engine_dir": "e", "gpu_weights_percent": "half"}, tmp_path)
