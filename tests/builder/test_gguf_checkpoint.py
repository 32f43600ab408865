"""GGUF files: equal to the safetensors they were made from, and to transformers on a real one."""

from __future__ import annotations

import shutil
import struct

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.builder.dense_model import dense_logits
from tests.builder.gguf_files import write_gguf
from tests.checkpoints import ROPE, tiny_checkpoint
from trt_resa.builder.checkpoint import open_checkpoint
from trt_resa.builder.families import describe
from trt_resa.config import BuildConfig
from trt_resa.errors import CheckpointError
from trt_resa.rope import inverse_frequencies

TYPES = gguf.GGMLQuantizationType


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("llama"))


@pytest.mark.parametrize(
    ("arch", "overrides"),
    [
        ("llama", {}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
        ("qwen2", {"tie": True}),
        ("qwen3", {"head_dim": 128}),
    ],
)
def test_tensors_equal_those_of_the_safetensors(tmp_path, arch, overrides):
    source = tiny_checkpoint(tmp_path / "hf", arch, **overrides)
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", source, arch))
    assert checkpoint.model == open_checkpoint(source).model
    assert checkpoint.dtype == "float16"
    for name, tensor in load_file(source / "model.safetensors").items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert torch.equal(checkpoint.tensor(name), tensor), name


def test_the_network_computes_the_same_logits(tmp_path, llama):
    path = write_gguf(tmp_path / "model.gguf", llama)
    ids = torch.arange(40)
    torch.testing.assert_close(dense_logits(path, ids), dense_logits(llama, ids))


@pytest.mark.parametrize("kind", [TYPES.F16, TYPES.BF16, TYPES.Q8_0, TYPES.Q4_0])
def test_quantized_types_are_dequantized(tmp_path, llama, kind):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", llama, quantization=kind))
    name = "model.layers.1.mlp.up_proj.weight"
    original = load_file(llama / "model.safetensors")[name]
    bits = {TYPES.F16: 10, TYPES.BF16: 7, TYPES.Q8_0: 7, TYPES.Q4_0: 3}[kind]
    found = checkpoint.tensor(name)
    assert found.shape == original.shape
    assert (found - original).abs().max() <= original.abs().max() * 2.0**-bits


def test_a_directory_with_one_gguf_is_that_file(tmp_path, llama):
    write_gguf(tmp_path / "model.gguf", llama)
    assert open_checkpoint(tmp_path).path == tmp_path / "model.gguf"
    shutil.copyfile(tmp_path / "model.gguf", tmp_path / "other.gguf")
    with pytest.raises(CheckpointError, match="holds 2 GGUF files; give the path of one"):
        open_checkpoint(tmp_path)


def test_int4_of_a_gguf_is_rounded_by_the_builder(tmp_path, llama):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "model.gguf", llama))
    assert checkpoint.int4("model.layers.0.mlp.up_proj") is None
    network = describe(checkpoint, BuildConfig(quantization="w4a16")).network
    assert "qweight" in next(node for node in network.nodes if node.op == "linear").weights


def test_every_end_token_counts_once(tmp_path, llama):
    ends = {"tokenizer.ggml.eot_token_id": 258, "tokenizer.ggml.eom_token_id": 256}
    path = write_gguf(tmp_path / "model.gguf", llama, metadata=ends)
    assert open_checkpoint(path).model.eos_token_ids == (256, 258)


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"scaling.type": "none"}, ("none", 1.0, None)),
        ({"scaling.type": "linear", "scaling.factor": 4.0}, ("linear", 4.0, None)),
        ({"scale_linear": 2.0}, ("linear", 2.0, None)),
        (
            {
                "scaling.type": "yarn",
                "scaling.factor": 4.0,
                "scaling.original_context_length": 512,
            },
            ("yarn", 4.0, 512),
        ),
    ],
)
def test_rope_scaling_metadata(tmp_path, llama, metadata, expected):
    metadata = {f"llama.rope.{key}": value for key, value in metadata.items()}
    rope = open_checkpoint(write_gguf(tmp_path / "a.gguf", llama, metadata=metadata)).model.rope
    found = (rope.scaling, rope.factor, rope.original_max_position_embeddings)
    assert found == expected


def test_yarn_attention_factor_multiplies_the_formula(tmp_path, llama):
    yarn = {"scaling.type": "yarn", "scaling.factor": 4.0, "scaling.attn_factor": 0.5}
    metadata = {f"llama.rope.{key}": value for key, value in yarn.items()}
    rope = open_checkpoint(write_gguf(tmp_path / "a.gguf", llama, metadata=metadata)).model.rope
    assert inverse_frequencies(rope)[1] == pytest.approx(0.5 * (0.1 * np.log(4.0) + 1))


def test_llama3_factors_become_the_llama3_scaling(tmp_path):
    llama3 = ROPE["llama3"] | {"original_max_position_embeddings": 8192, "factor": 32.0}
    source = tiny_checkpoint(
        tmp_path / "hf", rope_parameters=llama3, max_position_embeddings=131072
    )
    expected = open_checkpoint(source).model.rope
    plain = 1.0 / expected.theta ** (torch.arange(0, 64, 2) / 64)
    factors = (plain / inverse_frequencies(expected)[0]).numpy().astype(np.float32)
    path = write_gguf(tmp_path / "a.gguf", source, tensors={"rope_freqs.weight": factors})
    found = open_checkpoint(path).model.rope
    torch.testing.assert_close(
        inverse_frequencies(found)[0], inverse_frequencies(expected)[0], rtol=1e-5, atol=0
    )
    assert found.scaling == "llama3"


def test_other_rope_factors_are_refused(tmp_path, llama):
    factors = {"rope_freqs.weight": np.linspace(1, 5, 32, dtype=np.float32)}
    path = write_gguf(tmp_path / "a.gguf", llama, tensors=factors)
    with pytest.raises(CheckpointError, match=r"not those of Llama 3\.x"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    ("arch", "metadata", "message"),
    [
        ("gemma3", {}, "GGUF architecture 'gemma3', which is not supported; supported are llama, "),
        ("llama", {"llama.expert_count": 8}, "is a mixture of experts"),
        ("llama", {"split.count": 3}, "one of 3 parts; merge them first"),
        ("llama", {"llama.context_length": None}, "lacks the metadata llama.context_length"),
        ("llama", {"llama.attention.head_count_kv": [2, 1]}, "another number of KV heads"),
        ("llama", {"llama.attention.value_length": 32}, "values of another size than its keys"),
        (
            "llama",
            {"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0},
            "RoPE type 'longrope' is not supported",
        ),
    ],
)
def test_what_is_not_supported_is_named(tmp_path, llama, arch, metadata, message):
    path = write_gguf(tmp_path / "a.gguf", llama, arch, metadata=metadata)
    with pytest.raises(CheckpointError, match=message) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [0, 3, 24, 300, 0.5, -100])
def test_a_truncated_file_is_refused(tmp_path, llama, kept):
    path = write_gguf(tmp_path / "a.gguf", llama)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    with pytest.raises(
        CheckpointError, match=r"a\.gguf (is no whole GGUF file|ends within tensor)"
    ):
        open_checkpoint(path)


def test_a_damaged_count_neither_hangs_nor_fills_the_memory(tmp_path, llama):
    """An array of 2^50 strings; read as it says, it would never end."""
    names = ["one", "two", "three"]
    path = write_gguf(tmp_path / "a.gguf", llama, metadata={"general.languages": names})
    content = bytearray(path.read_bytes())
    kinds = struct.pack("<II", gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING)
    place = content.index(b"general.languages" + kinds) + len(b"general.languages" + kinds)
    assert struct.unpack_from("<Q", content, place) == (3,)
    struct.pack_into("<Q", content, place, 1 << 50)
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="is no whole GGUF file"):
        open_checkpoint(path)


def test_a_file_that_is_no_gguf_is_refused(tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"not a model" * 100)
    with pytest.raises(CheckpointError, match="is no whole GGUF file"):
        open_checkpoint(tmp_path)


def test_a_missing_tensor_is_named_in_both_languages(tmp_path, llama):
    path = write_gguf(tmp_path / "a.gguf", llama, metadata={"llama.block_count": 3})
    message = r"no tensor blk.2.attn_output.weight \(model.layers.2.self_attn.o_proj.weight\)"
    with pytest.raises(CheckpointError, match=message):
        describe(open_checkpoint(path), BuildConfig())


def test_no_file_stays_mapped(tmp_path, llama):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "a.gguf", llama))
    checkpoint.tensor("model.norm.weight")
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert str(tmp_path) not in maps.read()


def test_a_file_without_tokenizer_saves_none(tmp_path, llama):
    checkpoint = open_checkpoint(write_gguf(tmp_path / "a.gguf", llama))
    (tmp_path / "out").mkdir()
    checkpoint.save_tokenizer(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.slow
def test_a_real_model_has_the_tensors_that_transformers_reads(smol_checkpoint):
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    path = smol_checkpoint
    checkpoint = open_checkpoint(path)
    assert (checkpoint.model.num_layers, checkpoint.model.head_dim) == (30, 64)
    with torch.device("meta"):
        config = AutoConfig.from_pretrained(path.parent, gguf_file=path.name)
        model = AutoModelForCausalLM.from_config(config)
    expected = load_gguf_checkpoint(path, return_tensors=True, model_to_load=model)["tensors"]
    for tensor_names in describe(checkpoint, BuildConfig()).sources.values():
        for name in tensor_names:
            assert torch.equal(checkpoint.tensor(name), expected[name]), name


def test_a_real_tokenizer_is_saved_as_hugging_face_does(tmp_path, smol_checkpoint):
    from transformers import AutoTokenizer

    open_checkpoint(smol_checkpoint).save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    text = "The capital of France is Paris."
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert "<|im_start|>" in tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False
    )
