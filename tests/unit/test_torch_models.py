"""What may be loaded, loading, saving, and the hash of the weights."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steelyard.errors import ModelError, StorageError
from steelyard_torch.bases import character_tokenizer
from steelyard_torch.models import check_model_folder, load_model, load_tokenizer, save_model, weights_sha256
from steelyard_torch.templates import template_hash


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    return character_tokenizer(string.ascii_letters, extra_tokens=["<|user|>", "<|assistant|>"], chat_template="tulu")


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer) + 5,  # padded embeddings are fine
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            tie_word_embeddings=True,
        )
    )


@pytest.fixture
def folder(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    save_model(model, tokenizer, tmp_path / "model")
    return tmp_path / "model"


def test_what_is_saved_loads_as_it_was(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    loaded, its_tokenizer = load_model(folder), load_tokenizer(folder)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert not loaded.training
    assert template_hash(its_tokenizer) == template_hash(tokenizer)
    assert loaded.generation_config is not None
    assert loaded.generation_config.pad_token_id == tokenizer.pad_token_id
    ends = loaded.generation_config.eos_token_id
    assert tokenizer.eos_token_id in (ends if isinstance(ends, list) else [ends])
    assert not [path for path in folder.iterdir() if path.suffix in (".bin", ".pt")]


def test_a_model_saved_in_bfloat16_says_so_and_keeps_its_tie(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    save_model(model, tokenizer, tmp_path / "half", dtype=torch.bfloat16)
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert "lm_head.weight" not in tensors
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    assert model.dtype == torch.float32
    assert load_model(tmp_path / "half").dtype == torch.float32


def test_a_model_is_never_written_over_another(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    before = weights_sha256(folder)
    with pytest.raises(StorageError, match="not an empty folder"):
        save_model(model, tokenizer, folder)
    assert weights_sha256(folder) == before


def test_embeddings_are_not_resized_silently(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.add_tokens([f"<{i}>" for i in range(9)])
    with pytest.raises(ModelError, match=r"highest token id is .* but the model has"):
        save_model(model, tokenizer, tmp_path / "out")


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, tmp_path: Path
) -> None:
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("inf")
    with pytest.raises(ModelError, match=r"non-finite weights in 'model.layers.1.mlp.up_proj.weight'"):
        save_model(model, tokenizer, tmp_path / "out")
    file = folder / "model.safetensors"
    tensors = {name: tensor.clone() for name, tensor in load_file(file).items()}
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"non-finite weights in 'model.norm.weight'"):
        load_model(folder)


def test_a_folder_with_pickled_weights_only_is_refused_without_opening_them(folder: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"

    class RunsCode:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (witness,))

    torch.save({"model.norm.weight": RunsCode()}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"only as pickle \(pytorch_model.bin\).*convert it to safetensors"):
        load_model(folder)
    assert not witness.exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert witness.exists(), "the file must be one that runs code when it is unpickled"


def test_safetensors_are_used_where_a_pickle_lies_beside_them(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    load_model(folder)


def test_a_folder_that_brings_code_is_refused_unless_allowed_by_name(folder: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "their_own", "auto_map": {"AutoConfig": "theirs.C", "AutoModelForCausalLM": "theirs.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "theirs.py").write_text(f"from pathlib import Path\nPath({str(witness)!r}).touch()\n")
    with pytest.raises(ModelError, match=r"brings its own Python code, which is off by default.*trust_remote_code"):
        load_model(folder)
    with pytest.raises(ModelError, match="brings its own Python code"):
        load_model(folder, allow_remote_code=["another/model"])
    assert not witness.exists()
    check_model_folder(folder, allow_remote_code=[str(folder)])


def test_a_native_class_is_used_where_code_lies_beside_it(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "theirs.M"}}))
    (folder / "theirs.py").write_text("raise SystemExit('ran')\n")
    assert isinstance(load_model(folder), LlamaForCausalLM)


@pytest.mark.parametrize("damage", ["cut", "header"])
def test_a_torn_safetensors_file_is_named(folder: Path, damage: str) -> None:
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-100] if damage == "cut" else b"\xff" * 8 + content[8:])
    with pytest.raises(ModelError, match="safetensors file"):
        load_model(folder)


def test_missing_and_unexpected_weights_are_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    tensors = dict(load_file(file))
    norm = tensors.pop("model.norm.weight").clone()
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "new", metadata={"format": "pt"})
    (folder / "new").rename(file)
    with pytest.raises(ModelError, match=r"missing keys model.norm.weight"):
        load_model(folder)
    tensors = {**load_file(file), "model.norm.weight": norm, "model.other.weight": norm.clone()}
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "new", metadata={"format": "pt"})
    (folder / "new").rename(file)
    with pytest.raises(ModelError, match=r"unexpected keys model.other.weight"):
        load_model(folder)


def test_a_missing_folder_and_a_folder_without_a_model_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="does not exist"):
        load_model(tmp_path / "none")
    with pytest.raises(ModelError, match=r"no config.json"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(ModelError, match=r"no \*.safetensors file"):
        load_model(tmp_path)


@pytest.mark.parametrize("pad", [None, "<eos>"])
def test_a_tokenizer_that_pads_with_its_end_token_is_refused(folder: Path, tokenizer: PreTrainedTokenizerFast, pad: str | None) -> None:
    tokenizer.pad_token = pad
    tokenizer.save_pretrained(folder)
    with pytest.raises(ModelError, match="they must differ"):
        load_tokenizer(folder)


def test_the_hash_of_the_weights_is_of_their_contents_and_not_of_their_files(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path, tmp_path: Path
) -> None:
    model.save_pretrained(tmp_path / "sharded", max_shard_size="8KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    assert weights_sha256(tmp_path / "sharded") == weights_sha256(folder)
    with torch.no_grad():
        model.model.norm.weight[0] += 1e-6
    save_model(model, tokenizer, tmp_path / "other")
    assert weights_sha256(tmp_path / "other") != weights_sha256(folder)
