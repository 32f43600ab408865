"""``trt-resa triton-repo`` and what it writes, without a server."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from tests.checkpoints import byte_tokenizer
from trt_resa.cli import main
from trt_resa.config import KvCacheConfig, SchedulerConfig, SparseAttentionConfig
from trt_resa.errors import TrtResaError
from trt_resa.runtime.metrics import Metrics
from trt_resa.runtime.serving import tensors
from trt_resa.runtime.serving.cli import triton_repo
from trt_resa.runtime.serving.parameters import llm_arguments
from trt_resa.runtime.serving.requests import RequestLimits, read_request
from trt_resa.runtime.serving.triton_metrics import LLM_FAMILIES
from trt_resa.runtime.tokenizer import TextTokenizer
from trt_resa.sampling_params import SamplingParams

LIMITS = RequestLimits(max_seq_len=100, max_prompt_bytes=1000)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    try:
        main(["triton-repo", *map(str, arguments)])
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def model_config(model: Path) -> model_config_pb2.ModelConfig:
    """config.pbtxt, by Triton's own definition of it."""
    text = (model / "config.pbtxt").read_text(encoding="utf-8")
    return text_format.Parse(text, model_config_pb2.ModelConfig())


def strings(model: Path) -> dict[str, str]:
    return {name: p.string_value for name, p in model_config(model).parameters.items()}


def test_the_written_configuration(
    tiny_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    yaml = tmp_path / "resa.yaml"
    yaml.write_text("sparse_attention_config:\n  keep_ratio: 0.3\n  rectify_mode: verify\n")
    flags = ("--executor", "torch", "--max_batch_size", 4, "--kv_cache_max_tokens", 999)
    more = ("--config", yaml, "--keep_ratio", 0.25, "--kv_cache_enable_block_reuse", "false")
    code, out, _ = run(
        capsys, "--engine_dir", tiny_engine, "--output_dir", tmp_path / "models", *flags, *more
    )
    assert code == 0
    assert f"--model-repository={tmp_path / 'models'}" in out
    model = tmp_path / "models" / "trt_resa"
    config = model_config(model)
    assert (config.name, config.backend, config.max_batch_size) == ("trt_resa", "python", 1)
    assert config.model_transaction_policy.decoupled
    assert [i.name for i in config.input] == [tensor.name for tensor in tensors.INPUTS]
    assert [i.name for i in config.input if not i.optional] == ["text_input"]
    assert [o.name for o in config.output] == [tensor.name for tensor in tensors.OUTPUTS]
    assert strings(model) == {
        "engine_dir": str(tiny_engine),
        "executor": "torch",
        "max_batch_size": "4",
        "kv_cache_max_tokens": "999",
        "kv_cache_enable_block_reuse": "false",
        "keep_ratio": "0.25",
        "rectify_mode": "verify",
    }
    arguments = llm_arguments(strings(model), model / "1")
    assert arguments["model"] == tiny_engine
    assert arguments["max_batch_size"] == 4
    assert "TritonPythonModel" in (model / "1" / "model.py").read_text()


def test_a_copied_engine_and_another_model(
    tiny_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / 'mod"els'
    flags = ("--engine_dir", tiny_engine, "--output_dir", repository)
    assert run(capsys, *flags, "--copy_engine")[0] == 0
    version = repository / "trt_resa" / "1"
    engine = llm_arguments(strings(version.parent), version)["model"]
    assert engine == version / "engine"
    assert {f.name for f in engine.iterdir()} == {f.name for f in tiny_engine.iterdir()}
    second = ("--engine_dir", engine, "--output_dir", repository, "--model_name", "second")
    assert run(capsys, *second)[0] == 0
    assert strings(repository / "second")["engine_dir"] == str(engine)

    code, _, err = run(capsys, *flags)
    assert code == 2
    assert "exists already; give --overwrite to replace it" in err
    assert run(capsys, *flags, "--overwrite", "--max_batch_size", 2)[0] == 0
    assert strings(version.parent)["max_batch_size"] == "2"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model_name", "a/b"), "model_name 'a/b' cannot name a Triton model"),
        (("--max_batch_size", 33), "max_batch_size 33 must be from 1 to the engine's 32"),
        (("--max_batch_size", -1), "max_batch_size = '-1' is not a whole number"),
        (("--keep_ratio", 2), "keep_ratio = '2.0': input should be less than or equal to 1"),
        (("--sink_blocks", 9), "local_blocks + sink_blocks = 10 exceeds min_blocks = 4"),
        (("--kv_cache_free_gpu_memory_fraction", 7), "free_gpu_memory_fraction = '7.0'"),
        (("--executor", "onnx"), "'onnx' is not one of"),
        (("--engine_dir", "/nowhere"), "/nowhere is not an engine directory"),
    ],
)
def test_bad_flags_write_nothing(
    tiny_engine: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    flags: tuple[object, ...],
    message: str,
) -> None:
    common = ("--engine_dir", tiny_engine, "--output_dir", tmp_path / "models")
    code, _, err = run(capsys, *common, *flags)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1
    assert not (tmp_path / "models").exists()


def test_files_that_are_no_model_are_left_alone(
    tiny_engine: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "trt_resa" / "notes.txt"
    other.parent.mkdir()
    other.write_text("mine")
    flags = ("--engine_dir", tiny_engine, "--output_dir", tmp_path, "--overwrite")
    code, _, err = run(capsys, *flags)
    assert code == 2
    assert "holds files that are no Triton model" in err
    assert list(other.parent.iterdir()) == [other]


def test_parameters_of_a_hand_written_configuration() -> None:
    arguments = llm_arguments(
        {"engine_dir": "engine", "EXECUTION_ENV_PATH": "/venv", "min_blocks": "8"}, Path("/m/1")
    )
    assert arguments["model"] == Path("/m/1/engine")
    assert arguments["sparse_attention_config"] == {"min_blocks": "8"}
    with pytest.raises(TrtResaError, match="unknown parameter 'min_block'; allowed: engine_dir"):
        llm_arguments({"engine_dir": "engine", "min_block": "8"}, Path())
    with pytest.raises(TrtResaError, match="the parameter engine_dir is missing"):
        llm_arguments({}, Path())
    with pytest.raises(TrtResaError, match="max_seq_len = 'long' is not a whole number"):
        llm_arguments({"engine_dir": "engine", "max_seq_len": "long"}, Path())


def test_every_setting_has_one_name() -> None:
    """Flat names must not collide, and each sampling field has a tensor or a reason."""
    names = [name for cls in (SchedulerConfig, SparseAttentionConfig) for name in _fields(cls)]
    names += [f"kv_cache_{name}" for name in _fields(KvCacheConfig)]
    assert len(set(names)) == len(names)
    # logprobs is return_log_probs; the completions of n would share one response stream.
    assert {tensor.sampling for tensor in tensors.INPUTS} - {None} == set(
        _fields(SamplingParams)
    ) - {"logprobs", "n"}
    assert set(LLM_FAMILIES) == set(_fields(Metrics))


def _fields(cls: type) -> list[str]:
    return list(cls.__dataclass_fields__)  # type: ignore[attr-defined]


def test_reading_a_request() -> None:
    def text(*values: str) -> np.ndarray:
        return np.array([[value.encode() for value in values]], dtype=np.object_)

    request = read_request(
        {
            "text_input": text("héllo"),
            "stop_words": text("a", "b"),
            "bad_token_ids": np.array([[1, 2]], dtype=np.int32),
            "seed": np.array([[2**64 - 1]], dtype=np.uint64),
            "temperature": np.array([[0.5]], dtype=np.float32),
            "stream": np.array([[True]]),
            "rectify_mode": text("verify"),
            "exclude_input_in_output": np.array([[False]]),
        },
        {"id": "7"},
        LIMITS,
    )
    assert request.prompt == "héllo"
    assert request.params == SamplingParams(
        stop=("a", "b"), bad_token_ids=(1, 2), seed=2**64 - 1, temperature=0.5
    )
    assert (request.stream, request.echo, request.rectify_mode) == (True, True, "verify")

    with pytest.raises(TrtResaError, match="text_input has 1001 characters"):
        read_request({"text_input": text("x" * 1001)}, {}, LIMITS)
    for value in (np.nan, np.inf):
        temperature = np.array([[value]], dtype=np.float32)
        with pytest.raises(TrtResaError, match="temperature = "):
            read_request({"text_input": text("x"), "temperature": temperature}, {}, LIMITS)


def test_the_longest_token(tmp_path: Path) -> None:
    byte_tokenizer().save_pretrained(tmp_path)
    tokenizer = TextTokenizer.load(tmp_path)
    assert tokenizer is not None
    assert tokenizer.longest_token_bytes == len("<|endoftext|>")


def test_the_page_names_every_tensor_parameter_and_metric() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "serving.md").read_text()
    named = set(re.findall(r"`(\w+)`", page))
    wanted = {tensor.name for tensor in (*tensors.INPUTS, *tensors.OUTPUTS)}
    wanted |= {f"trt_resa_{family.name}" for family in LLM_FAMILIES.values()}
    assert wanted - named == set()
    flags = set(re.findall(r"`--(\w+)`", page))
    assert "max_seq_len" in flags
    assert flags - {option.name for option in triton_repo.params} == set()
