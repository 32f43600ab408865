"""Hugging Face directories: shards, headers, tokenizer files, and damaged ones."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.checkpoints import edit_config, tiny_checkpoint
from trt_resa.builder.checkpoint import open_checkpoint
from trt_resa.builder.safetensors_checkpoint import INDEX
from trt_resa.errors import CheckpointError

WEIGHTS = "model.safetensors"


def rewrite(path, change):
    """Replace the weights of a checkpoint of one file by ``change`` applied to them."""
    save_file(change(load_file(path / WEIGHTS)), path / WEIGHTS)


def test_names_shapes_and_values_are_those_of_the_file(tmp_path):
    path = tiny_checkpoint(tmp_path, dtype=torch.bfloat16)
    checkpoint = open_checkpoint(path)
    assert checkpoint.dtype == "bfloat16"
    for name, tensor in load_file(path / WEIGHTS).items():
        assert checkpoint.shape(name) == tuple(tensor.shape)
        assert torch.equal(checkpoint.tensor(name), tensor)
    assert checkpoint.int4("model.layers.0.self_attn.q_proj") is None
    assert checkpoint.int4_has_offsets("model.layers.0.self_attn.q_proj") is None


def test_shards_hold_the_same_tensors(tmp_path):
    whole = open_checkpoint(tiny_checkpoint(tmp_path / "whole"))
    sharded_path = tiny_checkpoint(tmp_path / "sharded", shards=3)
    sharded = open_checkpoint(sharded_path)
    assert len(list(sharded_path.glob("*.safetensors"))) >= 3
    for name in load_file(tmp_path / "whole" / WEIGHTS):
        assert torch.equal(sharded.tensor(name), whole.tensor(name))
    assert sharded.largest_shard_bytes() < whole.largest_shard_bytes()
    assert whole.largest_shard_bytes() == (tmp_path / "whole" / WEIGHTS).stat().st_size


def test_no_file_stays_mapped(tmp_path):
    checkpoint = open_checkpoint(tiny_checkpoint(tmp_path))
    kept = checkpoint.tensor("model.norm.weight")
    with open("/proc/self/maps", encoding="utf-8") as maps:
        assert str(tmp_path) not in maps.read()
    assert kept.shape == (256,)


def test_the_hash_follows_configuration_names_and_layout(tmp_path):
    path = tiny_checkpoint(tmp_path / "a")
    shutil.copytree(path, tmp_path / "b")
    first = open_checkpoint(path).sha256()
    assert open_checkpoint(tmp_path / "b").sha256() == first
    edit_config(path, rope_theta=5.0)
    assert open_checkpoint(path).sha256() != first
    (tmp_path / "b" / WEIGHTS).rename(tmp_path / "b" / "other.safetensors")
    assert open_checkpoint(tmp_path / "b").sha256() != first


def test_eos_comes_from_generation_config(tmp_path):
    path = tiny_checkpoint(tmp_path)
    (path / "generation_config.json").write_text('{"eos_token_id": [256, 258]}')
    assert open_checkpoint(path).model.eos_token_ids == (256, 258)


def test_the_tokenizer_loads_from_where_it_was_saved(tmp_path):
    from transformers import AutoTokenizer

    (tmp_path / "out").mkdir()
    open_checkpoint(tiny_checkpoint(tmp_path / "in")).save_tokenizer(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = tokenizer.encode("Grüße, 世界\n")
    assert tokenizer.decode(ids) == "Grüße, 世界\n"
    assert len(ids) == len("Grüße, 世界\n".encode())
    assert tokenizer.eos_token_id == 256


def test_a_checkpoint_without_tokenizer_saves_none(tmp_path):
    path = tiny_checkpoint(tmp_path / "in")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (path / name).unlink()
    (tmp_path / "out").mkdir()
    open_checkpoint(path).save_tokenizer(tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_tokenizer_that_cannot_be_converted_is_reported(tmp_path):
    path = tiny_checkpoint(tmp_path / "in")
    (path / "tokenizer.json").unlink()
    (path / "tokenizer.model").write_bytes(b"no sentencepiece model")
    with pytest.raises(CheckpointError, match=r"tokenizer of .* cannot be converted"):
        open_checkpoint(path).save_tokenizer(tmp_path)


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"nowhere does not exist; give a directory"):
        open_checkpoint(tmp_path / "nowhere")


def test_another_file_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"is a file but no \.gguf"):
        open_checkpoint(tiny_checkpoint(tmp_path) / WEIGHTS)


def test_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="holds no weights; give a directory"):
        open_checkpoint(tmp_path)


def test_pytorch_weights_are_refused_with_the_way_out(tmp_path):
    path = tiny_checkpoint(tmp_path)
    (path / WEIGHTS).rename(path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="convert them to safetensors"):
        open_checkpoint(path)


def test_a_missing_configuration_is_refused(tmp_path):
    path = tiny_checkpoint(tmp_path)
    (path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no config\.json"):
        open_checkpoint(path)


@pytest.mark.parametrize("content", ['{"model_type": ', "[1]", "\xff"])
def test_broken_json_is_refused(tmp_path, content):
    path = tiny_checkpoint(tmp_path)
    (path / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"config\.json (cannot be read|must hold a JSON)"):
        open_checkpoint(path)


def test_a_shard_missing_beside_its_index_is_named(tmp_path):
    path = tiny_checkpoint(tmp_path, shards=2)
    lost = sorted(path.glob("*.safetensors"))[1]
    lost.unlink()
    with pytest.raises(CheckpointError, match=rf"lacks {lost.name}, which {INDEX} names"):
        open_checkpoint(path)


def test_an_index_without_map_is_refused(tmp_path):
    path = tiny_checkpoint(tmp_path, shards=2)
    (path / INDEX).write_text(json.dumps({"metadata": {}}))
    with pytest.raises(CheckpointError, match="has no weight_map"):
        open_checkpoint(path)


@pytest.mark.parametrize("kept", [0, 4, 2000, -1])
def test_a_truncated_file_is_named(tmp_path, kept):
    path = tiny_checkpoint(tmp_path)
    content = (path / WEIGHTS).read_bytes()
    (path / WEIGHTS).write_bytes(content[:kept])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no whole safetensors file"):
        open_checkpoint(path)


def test_an_unsupported_element_type_is_named(tmp_path):
    path = tiny_checkpoint(tmp_path)
    name = "model.layers.0.mlp.down_proj.weight"
    rewrite(path, lambda tensors: tensors | {name: tensors[name].to(torch.float8_e4m3fn)})
    with pytest.raises(CheckpointError, match=r"down_proj\.weight has element type F8_E4M3; allow"):
        open_checkpoint(path).tensor(name)
