"""Bringing a base model in: from a folder, from GGUF, or new."""

from __future__ import annotations

import json
import os
import string
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
from tokenizers import models as tokenizer_models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from steelyard.errors import ModelError
from steelyard.protocols import StageContext
from steelyard_torch import bases
from steelyard_torch.bases import character_tokenizer, choose_pad_token, import_base, new_model
from steelyard_torch.config import ImportConfig
from steelyard_torch.import_stage import Import
from steelyard_torch.models import load_model, load_tokenizer, weights_sha256
from steelyard_torch.templates import TEMPLATES

TINY = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_a_character_is_a_token_and_text_comes_back_whole() -> None:
    tokenizer = character_tokenizer(string.printable + "é", extra_tokens=["<|user|>"])
    text = "<|user|>a  B\n\té<eos>"
    ids = tokenizer(text)["input_ids"]
    assert ids[:2] == [3, 4 + string.printable.index("a")]
    assert len(ids) == 9
    assert tokenizer.decode(ids) == text
    assert tokenizer("€a")["input_ids"] == [tokenizer.unk_token_id, ids[1]]


def test_a_new_model_is_the_same_for_the_same_seed_and_leaves_the_generators_alone(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        new_model(tmp_path / name, architecture=TINY, characters="abc", chat_template="compact", seed=seed)
    assert torch.equal(torch.get_rng_state(), state)
    a, b, c = (weights_sha256(tmp_path / name) for name in "abc")
    assert a == b != c
    model, tokenizer = load_model(tmp_path / "a"), load_tokenizer(tmp_path / "a")
    assert model.config.vocab_size == len(tokenizer) == 6
    assert model.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.chat_template == TEMPLATES["compact"]


def test_an_unknown_architecture_or_field_is_answered_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"unknown model_type 'lama' \(did you mean 'llama'\?\)"):
        new_model(tmp_path / "x", architecture={"model_type": "lama"}, characters="a", seed=0)
    with pytest.raises(ModelError, match=r"no field 'hiden_size' \(did you mean 'hidden_size'\?\)"):
        new_model(tmp_path / "x", architecture={**TINY, "hiden_size": 3}, characters="a", seed=0)


def test_a_local_folder_is_imported_with_another_template_and_the_same_weights(tmp_path: Path) -> None:
    new_model(tmp_path / "source", architecture=TINY, characters=string.printable, seed=0)
    import_base(str(tmp_path / "source"), tmp_path / "base", chat_template="tulu")
    assert weights_sha256(tmp_path / "base") == weights_sha256(tmp_path / "source")
    assert load_tokenizer(tmp_path / "base").chat_template == TEMPLATES["tulu"]


def test_a_folder_is_imported_in_another_dtype_or_keeps_its_own(tmp_path: Path) -> None:
    new_model(tmp_path / "source", architecture=TINY, characters="abc", seed=0)
    import_base(str(tmp_path / "source"), tmp_path / "half", dtype=torch.bfloat16)
    import_base(str(tmp_path / "half"), tmp_path / "again")
    assert weights_sha256(tmp_path / "again") == weights_sha256(tmp_path / "half") != weights_sha256(tmp_path / "source")


def pads_with_its_end(special: list[str], *, unk: str | None = None) -> PreTrainedTokenizerFast:
    tokenizer = character_tokenizer("abc", extra_tokens=special)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.unk_token = unk
    return tokenizer


def test_a_model_that_pads_with_its_end_token_is_given_a_spare_token() -> None:
    tokenizer = pads_with_its_end(["<|endoftext|>"])
    choose_pad_token(tokenizer, where="base 'x'")
    assert tokenizer.pad_token == "<pad>"
    assert tokenizer.eos_token == "<eos>"


def test_a_token_that_ends_generation_or_stands_in_the_template_is_not_taken_for_padding() -> None:
    tokenizer = pads_with_its_end(["<|endoftext|>"])
    pad_id = tokenizer.convert_tokens_to_ids("<pad>")
    tokenizer.chat_template = "<|endoftext|>" + TEMPLATES["tulu"]
    choose_pad_token(tokenizer, where="base 'x'", also_ends=[pad_id])
    assert tokenizer.pad_token == "<unk>"


def test_a_tokenizer_without_a_spare_token_is_refused() -> None:
    backend = Tokenizer(tokenizer_models.BPE({"a": 0, "</s>": 1}, []))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")
    with pytest.raises(ModelError, match="no spare token to pad with"):
        choose_pad_token(tokenizer, where="base 'x'")


def test_a_pickle_file_and_a_name_that_is_nothing_are_refused(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="is a pickle file"):
        import_base(str(tmp_path / "weights.bin"), tmp_path / "out")
    with pytest.raises(ModelError, match="does not exist"):
        import_base(str(tmp_path / "none.gguf"), tmp_path / "out")
    with pytest.raises(ModelError, match=r"neither a folder, a .gguf file nor a hub id"):
        import_base("no/such/hub/id", tmp_path / "out")


def test_what_the_hub_says_is_told_in_one_clause(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object, **__: object) -> str:
        raise OSError("Cannot reach huggingface.co.\nCheck your connection and try again.")

    monkeypatch.setattr(bases, "snapshot_download", gone)
    with pytest.raises(ModelError) as caught:
        import_base("owner/model", tmp_path / "out")
    assert str(caught.value) == (
        "base model 'owner/model' is no local folder and could not be fetched from the hub (Cannot reach huggingface.co); "
        "give a local folder or a .gguf file to work offline"
    )


# GGUF files are written with the reference writer, the `gguf` package of llama.cpp.


def gguf_permutation(weight: np.ndarray[Any, Any], heads: int) -> np.ndarray[Any, Any]:
    """llama.cpp stores the rotary halves of query and key rows interleaved."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def write_gguf(path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, *, quantised: bool) -> None:
    gguf = pytest.importorskip("gguf")
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    vocabulary = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)  # type: ignore[arg-type]
    special = set(tokenizer.all_special_tokens)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([3 if token in special else 1 for token in vocabulary])
    merges = json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.eos_token_id)  # as published files often do
    writer.add_chat_template(TEMPLATES["chatml"])
    names = {"embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output", "input_layernorm": "attn_norm"}
    names |= {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output"}
    names |= {"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm"}
    for name, parameter in model.named_parameters():
        array = parameter.detach().numpy()
        if "q_proj" in name or "k_proj" in name:
            array = gguf_permutation(array, config.num_attention_heads if "q_proj" in name else config.num_key_value_heads)
        target = name
        for theirs, ours in names.items():
            target = target.replace(theirs, ours)
        target = target.replace("model.layers", "blk").replace("model.", "")
        if quantised and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(target, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(target, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("quantised", [False, True])
def test_a_gguf_file_becomes_a_trainable_folder_with_the_models_own_logits(tmp_path: Path, quantised: bool) -> None:
    backend = Tokenizer(tokenizer_models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|unused|>", "<|im_end|>"]  # the end token's id is not Llama's default of 2
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(["hello world how are you user assistant"] * 20, trainer)
    extra = {"additional_special_tokens": special[:2]}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", **extra)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.1,
    )
    original = LlamaForCausalLM(config).eval()
    write_gguf(tmp_path / "tiny.gguf", original, tokenizer, quantised=quantised)

    import_base(str(tmp_path / "tiny.gguf"), tmp_path / "base")

    model, imported = load_model(tmp_path / "base"), load_tokenizer(tmp_path / "base")
    text = "<|im_start|>user\nhello world<|im_end|>\n"
    ids = imported(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    assert ids.tolist()[0] == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert (imported.eos_token, imported.pad_token) == ("<|im_end|>", "<|endoftext|>")
    assert imported.chat_template == TEMPLATES["chatml"]
    for ids_of in (model.config, model.generation_config):
        assert (ids_of.eos_token_id, ids_of.pad_token_id, ids_of.bos_token_id) == (3, 0, None)
    loss = model.train()(input_ids=ids, labels=ids).loss
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    with torch.no_grad():
        difference = (model.eval()(input_ids=ids).logits - original(input_ids=ids).logits).abs().max()
        scale = original(input_ids=ids).logits.abs().max()
    # Q8_0 keeps eight bits a weight; the unquantised file must agree to float32.
    assert difference / scale < (0.05 if quantised else 1e-5)
    assert not quantised or difference > 0


def test_a_torn_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "torn.gguf").write_bytes(b"GGUF\x03\x00\x00\x00" + b"\x00" * 20)
    with pytest.raises(ModelError, match=r"torn.gguf' cannot be converted"):
        import_base(str(tmp_path / "torn.gguf"), tmp_path / "out")


@pytest.mark.slow
def test_a_published_gguf_model_is_converted_once_and_trains(tmp_path: Path) -> None:
    source = os.environ.get("STEELYARD_TEST_GGUF", "")
    if not source or not Path(source).is_file():
        pytest.skip("set STEELYARD_TEST_GGUF to a .gguf file, such as SmolLM2-135M-Instruct, to test its conversion")
    import_base(source, tmp_path / "base")
    model, tokenizer = load_model(tmp_path / "base"), load_tokenizer(tmp_path / "base")
    text = "The capital of France is Paris, and the capital of Italy is"
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    loss = model(input_ids=ids, labels=ids).loss
    assert loss.item() < 4, "a language model must find plain English likely"
    loss.backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


# The stage that the conductor places first.


def context(tmp_path: Path, **options: Any) -> StageContext:
    return cast(StageContext, SimpleNamespace(output=tmp_path / "out", seed=3, options=options))


def test_the_import_stage_makes_a_new_model_and_tells_its_hashes(tmp_path: Path) -> None:
    config = ImportConfig.model_validate(
        {"new": {"architecture": TINY, "tokenizer": {"characters": "abc", "extra_tokens": ["<|user|>"]}}, "chat_template": "compact"}
    )
    result = Import(config).run(context(tmp_path))
    assert result.model == tmp_path / "out"
    assert result.facts["weights_sha256"] == weights_sha256(tmp_path / "out")


def test_the_import_stage_finds_paths_from_the_recipes_folder(tmp_path: Path) -> None:
    home = tmp_path / "home"
    new_model(home / "models" / "tiny", architecture=TINY, characters="abc", seed=0)
    (home / "mine.jinja").write_text(TEMPLATES["plain"])
    config = ImportConfig(model="models/tiny", chat_template="mine.jinja")
    Import(config).run(context(tmp_path, recipe_dir=str(home)))
    assert load_tokenizer(tmp_path / "out").chat_template == TEMPLATES["plain"]
    before = config.fingerprint(home)
    (home / "models" / "tiny" / "config.json").write_text("{}")
    assert config.fingerprint(home) != before


def test_the_import_stage_wants_exactly_one_source() -> None:
    with pytest.raises(ValueError, match="give model or new, and not both"):
        ImportConfig()
