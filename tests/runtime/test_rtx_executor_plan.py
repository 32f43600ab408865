"""The parts of the engine executor that need no GPU: buckets, buffers, choice, errors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.builder.networks import network_of, tiny_model
from trt_resa import LLM
from trt_resa.builder.random_engine import build_random
from trt_resa.config import BuildConfig, SparseAttentionConfig
from trt_resa.contract import INPUT_IDS, LOGIT_ROWS, Phase, Step
from trt_resa.engine_dir import EngineDirectory
from trt_resa.errors import ConfigError, EngineError, RequestError
from trt_resa.runtime.executors.activations import assign_buffers, stages
from trt_resa.runtime.executors.base import Limits
from trt_resa.runtime.executors.buckets import Buckets, ForwardShape, bucket, bucket_sizes
from trt_resa.runtime.executors.choose import choose
from trt_resa.runtime.executors.engine_loading import choose_linears, load_segments
from trt_resa.runtime.executors.greedy import greedy_tokens
from trt_resa.values import value_specs

LIMITS = Limits(
    max_batch_size=6, max_seq_len=512, max_input_len=512, max_num_tokens=200, max_logit_rows=32
)
BUCKETS = Buckets(LIMITS, few_rows=32)


def step(phase: Phase, rows: int, batch: int, logit_rows: int) -> Step:
    def ints(count: int) -> np.ndarray:
        return np.zeros(count, dtype=np.int32)

    return Step(
        phase=phase,
        input_ids=ints(rows),
        position_ids=ints(rows),
        cu_query_lens=ints(batch + 1),
        kv_lens=ints(batch),
        block_table=np.zeros((batch, 1), dtype=np.int32),
        logit_rows=ints(logit_rows),
    )


def test_buckets_are_powers_of_two_and_the_largest_size() -> None:
    assert [bucket(n, 6) for n in range(1, 7)] == [1, 2, 4, 4, 6, 6]
    assert bucket_sizes(6) == (1, 2, 4, 6)
    assert bucket_sizes(1) == (1,)
    for bad in (0, 7):
        with pytest.raises(ValueError, match="is not from 1 to 6"):
            bucket(bad, 6)


@pytest.mark.parametrize(
    ("given", "padded"),
    [
        ((Phase.SPARSE, 1, 1, 1), (Phase.SPARSE, 1, 1, 1)),
        ((Phase.SPARSE, 3, 3, 3), (Phase.SPARSE, 4, 4, 4)),
        ((Phase.SPARSE, 5, 5, 5), (Phase.SPARSE, 6, 6, 8)),
        ((Phase.DENSE, 32, 1, 32), (Phase.DENSE, 32, 1, 32)),
        ((Phase.DENSE, 27, 1, 0), (Phase.DENSE, 32, 1, 0)),
        ((Phase.DENSE, 33, 2, 2), (Phase.DENSE, 64, 2, 32)),
        ((Phase.DENSE, 150, 3, 0), (Phase.DENSE, 200, 4, 0)),
        ((Phase.DENSE, 200, 1, 1), (Phase.DENSE, 200, 1, 32)),
    ],
)
def test_a_forward_is_padded_to_its_bucket(
    given: tuple[Phase, int, int, int], padded: tuple[Phase, int, int, int]
) -> None:
    assert BUCKETS.shape_of(step(*given)) == ForwardShape(*padded)


def test_chunks_have_a_profile_of_their_own() -> None:
    assert [BUCKETS.profile(rows) for rows in (1, 32, 33, 200)] == [0, 0, 1, 1]
    assert [BUCKETS.is_chunk(rows) for rows in (1, 32, 33, 200)] == [False, False, True, True]


def test_the_shapes_of_chunks_are_few() -> None:
    """Row buckets times batch buckets times two: the most graphs of chunks that there can be."""
    shapes = {
        BUCKETS.shape_of(step(Phase.DENSE, rows, batch, logit_rows))
        for rows in range(33, 201)
        for batch in range(1, 7)
        for logit_rows in range(33)
    }
    assert len(shapes) == len((64, 128, 200)) * len((1, 2, 4, 6)) * 2


@pytest.mark.parametrize(
    ("rows", "batch", "logit_rows", "message"),
    [
        (201, 1, 1, "201 rows was asked for; 1 to 200"),
        (7, 7, 1, "7 sequences was asked for; 1 to 6"),
        (100, 1, 33, "33 logit rows was asked for; 1 to 32"),
        (0, 0, 0, "0 rows"),
    ],
)
def test_a_forward_beyond_the_limits(rows: int, batch: int, logit_rows: int, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        BUCKETS.shape_of(step(Phase.DENSE, rows, batch, logit_rows))


@pytest.mark.parametrize("layers", [1, 2, 7])
def test_few_buffers_serve_every_layer_and_none_is_overwritten(layers: int) -> None:
    """Walks the stages with a model of memory: a value is intact when its last reader runs."""
    model = tiny_model("qwen2", num_layers=layers)
    network = network_of(model, "float16")
    ordered, specs = stages(network), value_specs(network, model, "float16")
    chosen, kinds = assign_buffers(ordered, specs)
    assert len(ordered) == 2 * layers + 1
    assert len(kinds) <= 5
    memory: dict[int, str] = {}
    for stage in ordered:
        reads = [name for name in stage.inputs if name not in (INPUT_IDS, LOGIT_ROWS)]
        for name in reads:
            assert memory[chosen[name]] == name
        for name in stage.outputs:
            assert chosen[name] not in {chosen[read] for read in reads}
            memory[chosen[name]] = name
            assert kinds[chosen[name]][0] == specs[name].columns


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> EngineDirectory:
    pytest.importorskip("tensorrt_rtx")
    build = BuildConfig(dtype="float16", executors=("tensorrt_rtx",), max_num_tokens=64)
    path = tmp_path_factory.mktemp("random") / "engine"
    model = tiny_model("qwen3", num_layers=4)
    return build_random("tiny", model, path, build, SparseAttentionConfig(), share_layers=True)


def test_shared_layers_are_one_file_under_many_names(engines: EngineDirectory) -> None:
    files = [engines.path / f"segment_{index:03d}.engine" for index in range(5)]
    inodes = [file.stat().st_ino for file in files]
    assert inodes[1] == inodes[2] == inodes[3]
    assert len(set(inodes)) == 3


def test_auto_takes_engines_on_a_gpu_alone(engines: EngineDirectory, tiny_engine: Path) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose("auto", engines, gpu) == "tensorrt_rtx"
    assert choose("auto", engines, cpu) == "torch"
    assert choose("auto", EngineDirectory(tiny_engine), gpu) == "torch"
    assert choose("torch", engines, gpu) == "torch"
    with pytest.raises(
        ConfigError, match=r"needs an NVIDIA GPU and the device is cpu; use 'torch'"
    ):
        choose("tensorrt_rtx", engines, cpu)
    with pytest.raises(ConfigError, match=r"'onnx' cannot run here; use one of 'auto'"):
        choose("onnx", engines, gpu)


def test_llm_passes_the_choice_on(tiny_engine: Path) -> None:
    with pytest.raises(ConfigError, match="linears 'kernels' is for executor 'tensorrt_rtx'"):
        LLM(tiny_engine, linears="kernels", device="cpu")
    with pytest.raises(ConfigError, match="needs an NVIDIA GPU"):
        LLM(tiny_engine, executor="tensorrt_rtx", device="cpu")


@pytest.fixture
def ada(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU on which TensorRT-RTX runs 16-bit weights."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 9))


@pytest.mark.usefixtures("ada")
def test_an_engine_directory_without_engines(tiny_engine: Path) -> None:
    with pytest.raises(EngineError, match=r"built with --executors torch\); build it again"):
        load_segments(EngineDirectory(tiny_engine), "auto", torch.device("cuda"))


@pytest.mark.usefixtures("ada")
def test_engines_of_another_version_are_refused(engines: EngineDirectory) -> None:
    info = dataclasses.replace(engines.config.build_info, tensorrt_version="1.0.0.0")
    other = EngineDirectory(engines.path)
    other.config = dataclasses.replace(engines.config, build_info=info)
    with pytest.raises(EngineError, match=r"built with tensorrt_rtx 1\.0\.0\.0 and this is"):
        load_segments(other, "auto", torch.device("cuda"))


def test_a_gpu_that_this_tensorrt_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    rtx = pytest.importorskip("trt_resa.rtx")
    rtx.check_gpu((9, 0))
    monkeypatch.setattr(rtx, "VERSION", "1.7.1.116")
    rtx.check_gpu((12, 0))
    with pytest.raises(EngineError, match=r"1\.7\.1\.116 does not run on compute capability 9\.0"):
        rtx.check_gpu((9, 0))


def test_a_random_checkpoint_is_a_function_of_its_name(tmp_path: Path) -> None:
    build = BuildConfig(dtype="float32", executors=("torch",), quantization="none")
    sparse = SparseAttentionConfig()
    outputs = []
    for name, folder in (("a", "1"), ("a", "2"), ("b", "3")):
        build_random(name, tiny_model(), tmp_path / folder, build, sparse)
        outputs.append((tmp_path / folder / "segment_001.safetensors").read_bytes())
    assert outputs[0] == outputs[1] != outputs[2]


@pytest.mark.parametrize(
    ("changes", "on_9_0", "on_8_9"),
    [
        ({"quantization": "w4a16"}, "kernels", "kernels"),
        ({}, "kernels", "tensorrt"),
        ({"executors": ("tensorrt_rtx",)}, "tensorrt", "tensorrt"),
        ({"quantization": "w4a16", "executors": ("tensorrt_rtx",)}, "tensorrt", "tensorrt"),
    ],
)
def test_kernels_run_linears_where_they_are_faster_and_have_weights(
    tmp_path: Path, changes: dict[str, object], on_9_0: str, on_8_9: str
) -> None:
    pytest.importorskip("tensorrt_rtx")
    values = {"dtype": "float16", "executors": ("torch",), "max_num_tokens": 64, **changes}
    build = BuildConfig(**values)
    engine = build_random("tiny", tiny_model(), tmp_path / "e", build, SparseAttentionConfig())
    assert choose_linears("auto", engine, (9, 0)) == on_9_0
    assert choose_linears("auto", engine, (8, 9)) == on_8_9
    with pytest.raises(ConfigError, match="linears 'onnx' is not one of auto, tensorrt, kernels"):
        choose_linears("onnx", engine, (9, 0))
    other = "tensorrt" if "torch" in build.executors else "kernels"
    with pytest.raises(EngineError, match=f"holds nothing that linears '{other}' could run"):
        choose_linears(other, engine, (9, 0))


def test_shared_layers_share_their_weights_under_names_of_their_own(tmp_path: Path) -> None:
    build = BuildConfig(dtype="float16", quantization="w4a16", executors=("torch",))
    model = tiny_model(num_layers=4)
    sparse = SparseAttentionConfig()
    path = build_random("t", model, tmp_path / "e", build, sparse, share_layers=True).path
    first, third = (load_file(path / f"segment_00{index}.safetensors") for index in (1, 3))
    assert set(third) == {name.replace("s.1.", "s.3.").replace("s.0.", "s.2.") for name in first}
    assert torch.equal(first["layers.0.o.qweight"], third["layers.2.o.qweight"])
    alone = build_random("t", model, tmp_path / "f", build, sparse).path
    assert torch.equal(
        first["layers.0.o.scales"],
        load_file(alone / "segment_001.safetensors")["layers.0.o.scales"],
    )


@pytest.mark.parametrize("vocab", [1, 7, 259, 320, 4096])
def test_greedy_tokens_are_the_first_of_the_largest(vocab: int) -> None:
    generator = torch.Generator().manual_seed(vocab)
    for rows in (1, 5):
        logits = torch.randint(0, 12, (rows, vocab), generator=generator).float()
        expected = [row.tolist().index(row.max()) for row in logits]
        assert greedy_tokens(logits).tolist() == expected
