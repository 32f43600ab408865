"""Exported ONNX models: valid, inferable, and run by ONNX's evaluator like the torch executor."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from tests.builder.onnx_attention import OnnxExecutor
from tests.builder.quantized_files import quantize_checkpoint
from tests.checkpoints import large_checkpoint, tiny_checkpoint
from tests.driver import OneSequence
from trt_resa import LLM, contract, plugin_fields
from trt_resa.builder.build import build_plan
from trt_resa.builder.onnx_export import OPSET, export_onnx
from trt_resa.builder.plan import Plan, plan
from trt_resa.cli import main
from trt_resa.config import BuildConfig, SparseAttentionConfig
from trt_resa.errors import ConfigError, EngineError
from trt_resa.reference.compare import relative_error

ROOT = Path(__file__).resolve().parents[2]

#: Of 10 blocks a sparse step attends to 3; with 0.3 rounded to a float32 it would attend to 4.
SPARSE = SparseAttentionConfig(keep_ratio=0.3, min_blocks=2, dense_below=0)
TOKENS = torch.randint(0, 256, (190,), generator=torch.Generator().manual_seed(3)).tolist()


def planned(checkpoint: Path, dtype: str = "float32", **build: Any) -> Plan:
    return plan(checkpoint, BuildConfig(dtype=dtype, executors=("torch",), **build), SPARSE)


def logits(executor: Any) -> torch.Tensor:
    """A prefill, a dense pass of one row, sparse steps, a rectification of their rows."""
    sequence = OneSequence(executor, SPARSE.block_size, len(TOKENS))
    parts = [sequence.dense(TOKENS, 0, 150), sequence.dense(TOKENS, 150, 151)]
    parts += [sequence.sparse(TOKENS, position)[None] for position in range(151, 185)]
    parts.append(sequence.dense(TOKENS, 151, len(TOKENS)))
    return torch.cat(parts)


def assert_same_logits(source: Plan, path: Path) -> None:
    model = export_onnx(source, path / "model.onnx")
    engine = build_plan(source, path / "engine")
    with LLM(engine.path, device="cpu") as llm:
        expected = logits(llm._executor)
    actual = logits(OnnxExecutor(model, source.model, SPARSE.block_size, 16))
    worst = max(relative_error(a, e) for a, e in zip(actual, expected, strict=True))
    assert worst <= 1e-4


@pytest.mark.parametrize(
    ("family", "rope"),
    [("llama", "llama3"), ("mistral", "none"), ("qwen2", "yarn"), ("qwen3", "linear")],
)
def test_the_evaluator_agrees_with_the_torch_executor(
    family: str, rope: str, tmp_path: Path
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", family, rope, tie=family == "qwen2")
    assert_same_logits(planned(checkpoint), tmp_path)


@pytest.mark.parametrize("method", ["awq", "w4a16"])
def test_int4_weights_stay_int4(method: str, tmp_path: Path) -> None:
    """AWQ has zero points, so its linears have offsets; w4a16 is symmetric."""
    checkpoint = tiny_checkpoint(tmp_path / "checkpoint", "qwen2")
    if method == "awq":
        quantize_checkpoint(checkpoint, method)
    source = planned(checkpoint, quantization="none" if method == "awq" else "w4a16")
    assert_same_logits(source, tmp_path)
    graph = onnx.load(tmp_path / "model.onnx", load_external_data=False).graph
    stored = [t for t in graph.initializer if t.data_type == onnx.TensorProto.INT4]
    assert len(stored) == 8
    assert sum(node.op_type == "DequantizeLinear" for node in graph.node) == 8


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("quantization", ["none", "w4a16"])
def test_the_model_is_valid(dtype: str, quantization: str, tmp_path: Path) -> None:
    source = planned(tiny_checkpoint(tmp_path / "c", "qwen3"), dtype, quantization=quantization)
    path = export_onnx(source, tmp_path / "model.onnx")
    with registered_schema():
        onnx.checker.check_model(path, full_check=True, check_custom_domain=True)
    model = onnx.shape_inference.infer_shapes(
        onnx.load(path, load_external_data=False), strict_mode=True, data_prop=True
    )
    assert {entry.domain: entry.version for entry in model.opset_import} == {
        "": OPSET,
        plugin_fields.PLUGIN_NAMESPACE: 1,
    }
    assert shapes(model.graph.input) == {
        spec.name: [2 if size == "L" else size for size in spec.shape] for spec in contract.INPUTS
    }
    assert shapes(model.graph.output) == {contract.LOGITS: ["R", source.model.vocab_size]}
    inferred = shapes(model.graph.value_info) | shapes(model.graph.output)
    for name, spec in source.specs.items():
        if name not in (contract.INPUT_IDS, contract.LOGIT_ROWS):
            assert inferred[name] == [spec.rows, spec.columns], name
    assert path.stat().st_size < 300_000, "weights are in the model file"


def test_the_attention_node_has_every_field(tmp_path: Path) -> None:
    source = planned(tiny_checkpoint(tmp_path / "c", "qwen3", "yarn"))
    model = onnx.load(export_onnx(source, tmp_path / "m.onnx"), load_external_data=False)
    nodes = [node for node in model.graph.node if node.op_type == plugin_fields.PLUGIN_NAME]
    assert [node.domain for node in nodes] == ["trt_resa", "trt_resa"]
    kinds = {"int32": onnx.AttributeProto.INT, "float32": onnx.AttributeProto.FLOAT}
    for layer, node in enumerate(nodes):
        assert [(a.name, a.type) for a in sorted(node.attribute, key=lambda a: a.name)] == sorted(
            (field.name, kinds[field.kind]) for field in plugin_fields.FIELDS
        )
        values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert values["layer"] == layer
        assert plugin_fields.shortest_decimal(values["keep_ratio"]) == SPARSE.keep_ratio
        assert values["rope_scale"] > 1
        assert list(node.input) == [
            f"layers.{layer}.qkv",
            *plugin_fields.INPUTS,
            f"layers.{layer}.q_norm.weight",
            f"layers.{layer}.k_norm.weight",
        ]


def test_a_tied_head_is_stored_once(tmp_path: Path) -> None:
    sizes = {}
    for tie in (True, False):
        source = planned(tiny_checkpoint(tmp_path / f"c{tie}", tie=tie))
        sizes[tie] = (
            export_onnx(source, tmp_path / f"{tie}.onnx").with_suffix(".onnx.data").stat().st_size
        )
    assert sizes[False] - sizes[True] >= 259 * 256 * 4


def test_keep_ratio_has_to_fit_its_field(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c")
    sparse = SparseAttentionConfig(keep_ratio=0.123456789012)
    source = plan(checkpoint, BuildConfig(executors=("torch",)), sparse)
    with pytest.raises(ConfigError, match=r"six significant digits, such as 0\.123457"):
        export_onnx(source, tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "c")
    output = tmp_path / "out" / "model.onnx"
    command = ["export-onnx", "--checkpoint_dir", str(checkpoint), "--output", str(output)]
    command += ["--dtype", "bfloat16", "--keep_ratio", "0.25"]
    run(command)
    assert f"Wrote {output}" in capsys.readouterr().out
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "model.onnx",
        "model.onnx.data",
    ]
    assert run(command) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert run([*command, "--overwrite"]) in (0, None)
    assert run([*command[:-5], str(tmp_path / "model.pb")]) == 2
    assert "has to end in .onnx" in capsys.readouterr().err


MEMORY_SCRIPT = """
import sys
from trt_resa.builder.onnx_export import export_onnx
from trt_resa.builder.plan import plan
from trt_resa.config import BuildConfig, SparseAttentionConfig
from trt_resa.tables import segment_bytes
def peak():  # not ru_maxrss, which begins with that of the process that started this one
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
checkpoint, output = sys.argv[1:]
planned = plan(checkpoint, BuildConfig(executors=("torch",)), SparseAttentionConfig())
libraries = peak()
export_onnx(planned, output)
largest = max(map(segment_bytes, planned.network.segments()))
print(peak() - libraries, largest, planned.weight_bytes)
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    source = large_checkpoint(tmp_path / "checkpoint", layers=16)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, source, tmp_path / "model.onnx"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    growth, largest, weights = map(int, done.stdout.split())
    assert weights > 300e6
    print(f"growth by {growth / 1e6:.0f} MB, {largest / 1e6:.0f} MB the largest segment")
    assert growth < weights / 3, f"growth by {growth / 1e6:.0f} MB"


def test_a_failed_export_leaves_what_was_there(tmp_path: Path) -> None:
    output = tmp_path / "model.onnx"
    output.write_text("mine")
    source = planned(tiny_checkpoint(tmp_path / "c"))
    with pytest.raises(EngineError, match="exists already"):
        export_onnx(source, output)
    assert output.read_text() == "mine"
    assert not (tmp_path / "model.onnx.data").exists()


def run(arguments: list[str]) -> int | None:
    try:
        main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    return None


def shapes(values: Any) -> dict[str, list[int | str]]:
    return {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in values
    }


@contextlib.contextmanager
def registered_schema() -> Iterator[None]:
    """The plugin's operator known to onnx, so that the checker looks into its nodes."""
    schema = onnx.defs.OpSchema
    parameter, kinds = schema.FormalParameter, {"int32": "INT", "float32": "FLOAT"}
    inputs = [parameter(plugin_fields.QKV, "T")]
    inputs += [parameter(name, input_type(name)) for name in plugin_fields.INPUTS]
    inputs += [
        parameter(name, "T", param_option=onnx.defs.OpSchema.FormalParameterOption.Optional)
        for name in plugin_fields.NORM_INPUTS
    ]
    onnx.defs.register_schema(
        schema(
            plugin_fields.PLUGIN_NAME,
            plugin_fields.PLUGIN_NAMESPACE,
            1,
            inputs=inputs,
            outputs=[parameter("rows", "T")],
            type_constraints=[
                ("T", ["tensor(float)", "tensor(float16)", "tensor(bfloat16)"], "rows")
            ],
            attributes=[
                schema.Attribute(
                    field.name, getattr(schema.AttrType, kinds[field.kind]), required=True
                )
                for field in plugin_fields.FIELDS
            ],
        )
    )
    try:
        yield
    finally:
        onnx.defs.deregister_schema(plugin_fields.PLUGIN_NAME, 1, plugin_fields.PLUGIN_NAMESPACE)


def input_type(name: str) -> str:
    if name == plugin_fields.INV_FREQ:
        return "tensor(float)"
    (spec,) = (spec for spec in contract.INPUTS if spec.name == name)
    return f"tensor({spec.dtype})"


@pytest.mark.parametrize("quantization", ["none", "w4a16", "awq"])
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_tensorrts_parser_takes_everything_but_the_plugin(
    dtype: str, quantization: str, tmp_path: Path
) -> None:
    """TensorRT-RTX has TensorRT's parser but no plugins: a slice of qkv stands in for attention."""
    trt = pytest.importorskip("tensorrt_rtx")
    checkpoint = tiny_checkpoint(tmp_path / "c", "qwen2")
    if quantization == "awq":
        quantize_checkpoint(checkpoint, "awq")
    source = planned(checkpoint, dtype, quantization=quantization.replace("awq", "none"))
    path = export_onnx(source, tmp_path / "model.onnx")
    model = onnx.load(path, load_external_data=False)
    bounds = {"start": [0], "end": [source.model.attention_size], "axis": [1]}
    model.graph.initializer.extend(
        onnx.helper.make_tensor(name, onnx.TensorProto.INT64, [1], value)
        for name, value in bounds.items()
    )
    for node in model.graph.node:
        if node.op_type == plugin_fields.PLUGIN_NAME:
            node.op_type, node.domain = "Slice", ""
            node.input[1:] = list(bounds)
            del node.attribute[:]
    path.write_bytes(model.SerializeToString())
    from trt_resa.rtx import LOG

    network = trt.Builder(LOG).create_network(0)
    parser = trt.OnnxParser(network, LOG)
    assert parser.parse_from_file(str(path)), [
        parser.get_error(index).desc() for index in range(parser.num_errors)
    ]
    output = network.get_output(0)
    assert (output.name, output.dtype) == (contract.LOGITS, trt.float32)
    assert tuple(output.shape) == (-1, source.model.vocab_size)
