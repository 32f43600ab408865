"""Segments as TensorRT-RTX engines: every one builds, and on a GPU computes what its nodes say."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.builder.networks import (
    FAMILIES,
    TORCH_TYPES,
    network_of,
    random_weights,
    run_segment,
    tiny_model,
)
from trt_resa.contract import INPUT_IDS, LOGIT_ROWS, LOGITS
from trt_resa.errors import EngineError
from trt_resa.values import value_specs

pytest.importorskip("tensorrt_rtx")
from trt_resa.builder import rtx
from trt_resa.builder.trt_build import monitor, signals_deferred
from trt_resa.rtx import check_engine_file, create_context, load_engine, trt

OPTIONS = rtx.RtxOptions(
    max_batch_size=4,
    max_num_tokens=128,
    rectify_interval=32,
    compute_capabilities=("8.0", "8.6", "8.9", "12.0"),
)
#: (family, dtype, INT4 form); the bound on the relative error is that of the dtype.
CASES = [(family, "float16", None) for family in FAMILIES] + [
    ("qwen2", "bfloat16", None),
    ("llama", "float16", "symmetric"),
    ("qwen2", "float16", "offsets"),
    ("llama", "bfloat16", "symmetric"),
    ("qwen2", "bfloat16", "offsets"),
]
ERROR_BOUND = {"float16": 2e-3, "bfloat16": 2e-2}


def build_all(family: str, dtype: str, int4: str | None, path: Path) -> list[tuple]:
    """(segment, weights, engine file) of each segment, and the specs of all values."""
    model = tiny_model(family)
    network = network_of(model, dtype, int4)
    specs = value_specs(network, model, dtype)
    built = []
    for index, segment in enumerate(network.segments()):
        weights = random_weights(segment.weights, seed=index)
        file = path / f"{index}.engine"
        rtx.build_segment(segment, weights, specs, OPTIONS, file)
        built.append((segment, weights, specs, file))
    return built


@pytest.mark.parametrize(("family", "dtype", "int4"), CASES)
def test_every_segment_builds(family: str, dtype: str, int4: str | None, tmp_path: Path) -> None:
    built = build_all(family, dtype, int4, tmp_path)
    assert len(built) == 3
    for segment, weights, _, file in built:
        check_engine_file(file)
        stored = sum(tensor.nbytes for tensor in weights.values())
        assert file.stat().st_size >= stored, "weights are missing from the engine"
        content = file.read_bytes()
        for name in (*segment.inputs, *segment.outputs):
            assert name.encode() in content


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_weights_stay_in_16_bits(family: str, tmp_path: Path) -> None:
    """TensorRT sees the casts around a GEMM of fp16 as one kernel, with a bias and without."""
    model = tiny_model(family, hidden_size=1024, num_heads=16, intermediate_size=2048)
    network = network_of(model, "float16")
    segment, specs = network.segments()[1], value_specs(network, model, "float16")
    weights = random_weights(segment.weights, seed=0)
    rtx.build_segment(segment, weights, specs, OPTIONS, tmp_path / "1.engine")
    stored = sum(tensor.nbytes for tensor in weights.values())
    size = (tmp_path / "1.engine").stat().st_size
    assert stored > 16e6
    assert size < 1.2 * stored, "some of the weights are stored in fp32"


def test_the_segments_of_a_network_meet_at_their_seams() -> None:
    model = tiny_model()
    network = network_of(model, "float16")
    specs = value_specs(network, model, "float16")
    segments = network.segments()
    assert segments[0].inputs == (INPUT_IDS,)
    assert set(segments[1].inputs) == {"layers.0.attention", "embedding"}
    assert LOGIT_ROWS in segments[-1].inputs
    assert segments[-1].outputs == (LOGITS,)
    assert str(specs[LOGITS]) == "logits float32 [R, 320]"
    assert str(specs["layers.0.qkv"]) == "layers.0.qkv float16 [T, 512]"
    assert str(specs["layers.0.attention"]) == "layers.0.attention float16 [T, 256]"


def test_profiles_serve_a_window_and_a_chunk() -> None:
    few, many = OPTIONS.profiles()
    assert few == {"T": (1, 4, 32), "R": (0, 4, 32)}
    assert many == {"T": (1, 128, 128), "R": (0, 4, 32)}


def test_a_refused_layer_is_quoted(tmp_path: Path) -> None:
    model = tiny_model()
    network = network_of(model, "float16")
    segment = network.segments()[0]
    weights = random_weights(segment.weights, seed=0)
    weights["layers.0.qkv.weight"] = weights["layers.0.qkv.weight"][:, :100].contiguous()
    specs = value_specs(network, model, "float16")
    with pytest.raises(EngineError, match=r"could not build 0\.engine: .*layers\.0\.qkv"):
        rtx.build_segment(segment, weights, specs, OPTIONS, tmp_path / "0.engine")


def test_a_damaged_engine_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "segment_000.engine"
    for content in (b"", b"not an engine" * 20):
        file.write_bytes(content)
        with pytest.raises(EngineError, match="is not a TensorRT-RTX engine"):
            check_engine_file(file)


def test_a_signal_during_a_build_is_raised_after_it() -> None:
    with pytest.raises(KeyboardInterrupt), signals_deferred() as pending:  # noqa: PT012
        os.kill(os.getpid(), signal.SIGINT)
        assert pending == [signal.SIGINT]
        assert not monitor(trt, pending).step_complete("phase", 0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def relative_error(out: torch.Tensor, reference: torch.Tensor) -> float:
    error = ((out.float() - reference).norm() / reference.norm()).item()
    return error if error == error else float("inf")


class GpuEngine:
    """A deserialised engine that runs on torch's CUDA tensors."""

    def __init__(self, file: Path) -> None:
        self.engine = load_engine(file)
        self.context = create_context(self.engine)

    def run(
        self, profile: int, inputs: dict[str, torch.Tensor], outputs: dict[str, torch.Tensor]
    ) -> None:
        stream = torch.cuda.current_stream().cuda_stream
        assert self.context.set_optimization_profile_async(profile, stream)
        for name, tensor in inputs.items():
            assert self.context.set_input_shape(name, tuple(tensor.shape))
        for name, tensor in {**inputs, **outputs}.items():
            assert self.context.set_tensor_address(name, tensor.data_ptr() or 256)
        assert self.context.execute_async_v3(stream)
        torch.cuda.synchronize()


def gpu_inputs(segment, specs, rows: int, logit_rows: int, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = {}
    for name in segment.inputs:
        spec = specs[name]
        if name == LOGIT_ROWS:
            inputs[name] = torch.randperm(rows, generator=generator)[:logit_rows].int()
        elif spec.columns is None:
            inputs[name] = torch.randint(320, (rows,), generator=generator).int()
        else:
            values = torch.randn(rows, spec.columns, generator=generator)
            inputs[name] = values.to(TORCH_TYPES[spec.dtype])
    return inputs


@pytest.mark.gpu
@pytest.mark.parametrize(("family", "dtype", "int4"), CASES)
def test_engines_compute_what_their_nodes_say(
    family: str, dtype: str, int4: str | None, tmp_path: Path
) -> None:
    worst = 0.0
    for segment, weights, specs, file in build_all(family, dtype, int4, tmp_path):
        engine = GpuEngine(file)
        for profile, rows, logit_rows in (
            (0, 1, 1), (0, 4, 4), (0, 32, 32), (0, 32, 0), (1, 1, 1), (1, 33, 2), (1, 128, 0)
        ):  # fmt: skip
            inputs = gpu_inputs(segment, specs, rows, logit_rows, seed=rows)
            expected = run_segment(segment, weights, inputs)
            outputs = {
                name: torch.full(
                    value.shape, torch.nan, dtype=TORCH_TYPES[specs[name].dtype]
                ).cuda()
                for name, value in expected.items()
            }
            engine.run(profile, {name: value.cuda() for name, value in inputs.items()}, outputs)
            for name, reference in expected.items():
                if reference.numel():
                    error = relative_error(outputs[name].cpu(), reference)
                    assert error < ERROR_BOUND[dtype], (file.name, name, profile, rows)
                    worst = max(worst, error)
    print(f"{family} {dtype} INT4 {int4}: worst relative error {worst:.2e}")


@pytest.mark.gpu
def test_the_engine_inspector_agrees_with_the_contract(tmp_path: Path) -> None:
    for segment, _, specs, file in build_all("llama", "float16", None, tmp_path):
        engine = GpuEngine(file).engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        assert set(names) == {*segment.inputs, *segment.outputs}
        for name in names:
            spec = specs[name]
            assert engine.get_tensor_dtype(name) == getattr(trt, spec.dtype)
            columns = () if spec.columns is None else (spec.columns,)
            assert tuple(engine.get_tensor_shape(name)) == (-1, *columns)
            if name in segment.inputs:
                for index, ranges in enumerate(OPTIONS.profiles()):
                    shapes = [tuple(s) for s in engine.get_tensor_profile_shape(name, index)]
                    assert shapes == [(extent, *columns) for extent in ranges[spec.rows]]
        listing = engine.create_engine_inspector().get_engine_information(
            trt.LayerInformationFormat.JSON
        )
        assert len(listing) > 100
