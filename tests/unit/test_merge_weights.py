"""Merging two models: the arithmetic, what is kept of the initial model, and everything that is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

import steelyard_merge
from steelyard.errors import Interrupted, ModelError, SteelyardError
from steelyard.protocols import StageContext
from steelyard.records import StageResult
from steelyard.run.checkpoints import FolderCheckpoints
from steelyard.run.contexts import open_step_verifiers
from steelyard.testing import RecordedIO
from steelyard_merge import merge as merge_module
from steelyard_merge.config import MergeConfig
from steelyard_merge.merge import Merge
from steelyard_merge.weights import FolderWeights, write_shards
from steelyard_torch.bases import new_model
from steelyard_torch.models import load_model, load_tokenizer
from steelyard_torch.templates import template_hash

ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MARKERS = ("<|user|>", "<|assistant|>")


def make(folder: Path, seed: int, *, characters: str = "0123456789+= ", template: str = "compact", **architecture: Any) -> Path:
    options = {**ARCHITECTURE, **architecture}
    new_model(folder, architecture=options, characters=characters, extra_tokens=MARKERS, chat_template=template, seed=seed)
    return folder


def merge(root: Path, initial: Path, reference: Path | None, weight: float = 0.5, *, io: RecordedIO | None = None) -> StageResult:
    config = MergeConfig(weight=weight)

    def no_engine(model: Path | None = None, **overrides: Any) -> Any:
        raise AssertionError("a merge samples nothing")

    context = StageContext(
        config=config,
        model=initial,
        reference=reference,
        data=None,
        output=root / "merged",
        cache=root / "cache",
        seed=0,
        run_seed=0,
        checkpoints=FolderCheckpoints(root / "checkpoints", "r/merge", "key"),
        io=io or RecordedIO(),
        engine=no_engine,
        verifiers=open_step_verifiers(None, {}, root / "evidence", ExitStack()),  # type: ignore[arg-type]
    )
    return Merge(config).run(context)


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = tensors(folder)
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    return make(tmp_path / "one", 1), make(tmp_path / "two", 2)


@pytest.mark.parametrize("weight", [0.5, 0.3])
def test_every_tensor_is_the_weighted_average(tmp_path: Path, pair: tuple[Path, Path], weight: float) -> None:
    result = merge(tmp_path, *pair, weight)
    one, two, merged = (tensors(folder) for folder in (*pair, result.model))
    assert merged.keys() == one.keys()
    for name, tensor in merged.items():
        expected = (1 - weight) * one[name].double() + weight * two[name].double()
        torch.testing.assert_close(tensor.double(), expected, atol=1e-7, rtol=1e-6)


def test_the_result_loads_and_computes_with_the_averaged_weights(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    result = merge(tmp_path, *pair)
    model, one, two = (load_model(folder) for folder in (result.model, *pair))
    with torch.no_grad():
        for mine, first, second in zip(one.parameters(), one.parameters(), two.parameters(), strict=True):
            mine.copy_((first + second) / 2)
        ids = torch.tensor([[5, 6, 7, 8]])
        torch.testing.assert_close(model(ids).logits, one(ids).logits)


@pytest.mark.parametrize(("weight", "which"), [(0.0, 0), (1.0, 1)])
def test_at_either_end_it_is_one_of_the_models_exactly(tmp_path: Path, pair: tuple[Path, Path], weight: float, which: int) -> None:
    merged, expected = tensors(merge(tmp_path, *pair, weight).model), tensors(pair[which])
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_half_precision_is_averaged_exactly_and_rounded_once(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    # Numbers of bfloat16 near 1 are 2^-7 apart. The mean of 1 and 1.011 is 1.0055, nearer to 1 + 2^-7; had 1.011 been rounded first, the
    # mean would lie half-way and go to 1.
    rewrite(pair[0], lambda weights: weights.update({"model.norm.weight": torch.ones(32, dtype=torch.bfloat16)}))
    rewrite(pair[1], lambda weights: weights.update({"model.norm.weight": torch.full((32,), 1.011)}))
    merged = tensors(merge(tmp_path, *pair).model)["model.norm.weight"]
    assert merged.dtype == torch.bfloat16
    assert set(merged.tolist()) == {1 + 2**-7}


def test_the_result_has_the_initial_models_tokenizer_template_configuration_and_dtypes(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    rewrite(pair[0], lambda weights: weights.update({name: tensor.bfloat16() for name, tensor in weights.items()}))
    result = merge(tmp_path, *pair)
    assert {tensor.dtype for tensor in tensors(result.model).values()} == {torch.bfloat16}
    assert json.loads((result.model / "config.json").read_text()) == json.loads((pair[0] / "config.json").read_text())
    assert template_hash(load_tokenizer(result.model)) == template_hash(load_tokenizer(pair[0]))
    assert (result.model / "generation_config.json").is_file()


def test_records_of_the_initial_artifact_are_not_copied(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    for name in ("manifest.json", "lineage.json", "stage.json", "README.md"):
        (pair[0] / name).write_text("{}")
    files = {path.name for path in merge(tmp_path, *pair).model.iterdir()}
    assert not files & {"manifest.json", "lineage.json", "stage.json", "README.md"}


def test_it_reports_the_distance_and_says_what_it_did(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    io = RecordedIO()
    result = merge(tmp_path, *pair, io=io)
    one, two = (torch.cat([t.flatten().double() for _, t in sorted(tensors(folder).items())]) for folder in pair)
    expected = float((two - one).norm() / one.norm())
    assert result.metrics["merge/relative_distance"] == pytest.approx(expected, rel=1e-9)
    assert io.metrics == [(None, dict(result.metrics))]
    assert result.metrics["merge/relative_change"] == pytest.approx(expected / 2, rel=1e-6)
    assert io.done[-1][0] == io.done[-1][1] == len(tensors(pair[0]))
    assert result.facts["weight"] == 0.5 and result.facts["parameters"] == one.numel()


# Tied weights


@pytest.fixture
def tied(tmp_path: Path) -> tuple[Path, Path]:
    return make(tmp_path / "one", 1, tie_word_embeddings=True), make(tmp_path / "two", 2, tie_word_embeddings=True)


def test_tied_weights_are_averaged_once_and_stay_tied(tmp_path: Path, tied: tuple[Path, Path]) -> None:
    result = merge(tmp_path, *tied)
    assert "lm_head.weight" not in tensors(result.model)
    model = load_model(result.model)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight  # type: ignore[no-untyped-call]
    one, two = (tensors(folder)["model.embed_tokens.weight"] for folder in tied)
    torch.testing.assert_close(model.get_input_embeddings().weight, (one + two) / 2)


def test_a_folder_that_stores_a_tied_tensor_twice_merges_with_one_that_does_not(tmp_path: Path, tied: tuple[Path, Path]) -> None:
    rewrite(tied[1], lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"].clone()}))
    merged = tensors(merge(tmp_path, *tied).model)
    assert merged.keys() == tensors(tied[0]).keys()


def test_a_folder_that_stores_a_tied_tensor_under_its_other_name_merges(tmp_path: Path, tied: tuple[Path, Path]) -> None:
    expected = tensors(merge(tmp_path / "plain", *tied).model)
    rewrite(tied[1], lambda weights: weights.update({"lm_head.weight": weights.pop("model.embed_tokens.weight")}))
    merged = tensors(merge(tmp_path, *tied).model)
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_tied_names_with_different_numbers_are_refused(tmp_path: Path, tied: tuple[Path, Path]) -> None:
    rewrite(tied[1], lambda weights: weights.update({"lm_head.weight": weights["model.embed_tokens.weight"] + 1}))
    with pytest.raises(ModelError, match="are tied, but they hold different numbers"):
        merge(tmp_path, *tied)


# Files


def test_large_models_are_written_in_shards_that_load_as_one(
    tmp_path: Path, pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tensors(merge(tmp_path / "whole", *pair).model)

    def small(folder: Path, facts: Any, source: Any) -> None:
        write_shards(folder, facts, source, max_bytes=10_000)

    monkeypatch.setattr(merge_module, "write_shards", small)
    result = merge(tmp_path, *pair)
    files = sorted(result.model.glob("*.safetensors"))
    assert len(files) > 2
    assert all(sum(tensor.nbytes for tensor in load_file(file).values()) <= 10_000 for file in files)
    index = json.loads((result.model / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in whole.values())
    loaded = load_model(result.model).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in whole.items())


def test_the_two_models_may_be_cut_into_files_differently(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    expected = tensors(merge(tmp_path / "plain", *pair).model)
    weights = tensors(pair[1])
    half = len(weights) // 2
    (pair[1] / "model.safetensors").unlink()
    save_file(dict(list(weights.items())[:half]), pair[1] / "model-00001-of-00002.safetensors")
    save_file(dict(list(weights.items())[half:]), pair[1] / "model-00002-of-00002.safetensors")
    merged = tensors(merge(tmp_path, *pair).model)
    assert all(torch.equal(merged[name], expected[name]) for name in expected)


def test_merging_twice_gives_the_same_bytes(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    first, second = merge(tmp_path / "a", *pair), merge(tmp_path / "b", *pair)
    assert (first.model / "model.safetensors").read_bytes() == (second.model / "model.safetensors").read_bytes()


def test_a_tensor_in_two_files_is_refused(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    shutil.copy(pair[0] / "model.safetensors", pair[0] / "more.safetensors")
    with pytest.raises(ModelError, match="in two files"), FolderWeights(pair[0], tied={}):
        pass


# Refusals


def mismatch_of_architecture(root: Path) -> tuple[Path, Path]:
    return make(root / "one", 1), make(root / "two", 2, rms_norm_eps=1e-3)


def mismatch_of_layers(root: Path) -> tuple[Path, Path]:
    return make(root / "one", 1), make(root / "two", 2, num_hidden_layers=3)


def mismatch_of_vocabulary(root: Path) -> tuple[Path, Path]:
    return make(root / "one", 1), make(root / "two", 2, characters="0123456789+= a")


def mismatch_of_token_order(root: Path) -> tuple[Path, Path]:
    return make(root / "one", 1), make(root / "two", 2, characters="9876543210+= ")


def mismatch_of_template(root: Path) -> tuple[Path, Path]:
    return make(root / "one", 1), make(root / "two", 2, template="plain")


def one_tensor_more(root: Path) -> tuple[Path, Path]:
    folders = make(root / "one", 1), make(root / "two", 2)
    rewrite(folders[1], lambda weights: weights.update({"model.extra.weight": torch.ones(3)}))
    return folders


def another_shape(root: Path) -> tuple[Path, Path]:
    folders = make(root / "one", 1), make(root / "two", 2)
    rewrite(folders[1], lambda weights: weights.update({"model.norm.weight": torch.ones(16)}))
    return folders


def not_a_number(root: Path) -> tuple[Path, Path]:
    folders = make(root / "one", 1), make(root / "two", 2)
    rewrite(folders[1], lambda weights: weights["model.norm.weight"].fill_(float("nan")))  # type: ignore[arg-type]
    return folders


def infinity(root: Path) -> tuple[Path, Path]:
    folders = make(root / "one", 1), make(root / "two", 2)
    rewrite(folders[0], lambda weights: weights["lm_head.weight"].view(-1)[:1].fill_(float("inf")))  # type: ignore[arg-type]
    return folders


def equal_weights(root: Path) -> tuple[Path, Path]:
    return make(root / "one", 1), make(root / "two", 1)


def torn(root: Path) -> tuple[Path, Path]:
    folders = make(root / "one", 1), make(root / "two", 2)
    file = folders[1] / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return folders


def whole_numbers_apart(root: Path) -> tuple[Path, Path]:
    folders = make(root / "one", 1), make(root / "two", 2)
    for number, folder in enumerate(folders):
        value = torch.tensor([number])
        rewrite(folder, lambda weights, value=value: weights.update({"model.count": value}))  # type: ignore[misc]
    return folders


@pytest.mark.parametrize(
    ("case", "message"),
    [
        (mismatch_of_architecture, "different architectures: rms_norm_eps 1e-06 and 0.001"),
        (mismatch_of_layers, "num_hidden_layers 2 and 3"),
        (mismatch_of_vocabulary, r"different vocabularies \(18 and 19 tokens\)"),
        (mismatch_of_token_order, "different vocabularies"),
        (mismatch_of_template, "the reference model would use another chat template"),
        (one_tensor_more, "the reference model has tensor 'model.extra.weight', and the initial model has none"),
        (another_shape, r"'model.norm.weight' has shape \[32\] in the initial model and \[16\] in the reference model"),
        (not_a_number, "the reference model has non-finite weights in 'model.norm.weight'"),
        (infinity, "the initial model has non-finite weights in 'lm_head.weight'"),
        (equal_weights, "the same weights, so there is nothing to merge"),
        (torn, "torn or invalid safetensors"),
        (whole_numbers_apart, "'model.count' holds whole numbers"),
    ],
)
def test_models_that_do_not_go_together_are_refused(tmp_path: Path, case: Callable[[Path], tuple[Path, Path]], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        merge(tmp_path, *case(tmp_path))
    assert isinstance(caught.value, SteelyardError) and caught.value.exit_code == 5


def test_saves_of_one_architecture_by_different_versions_go_together(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    config = json.loads((pair[1] / "config.json").read_text())
    config |= {"transformers_version": "4.1.0", "dtype": "bfloat16", "use_cache": False, "_name_or_path": "elsewhere"}
    (pair[1] / "config.json").write_text(json.dumps(config))
    assert merge(tmp_path, *pair).metrics["merge/relative_distance"] > 0


def test_without_a_second_model_it_says_which_key_is_missing(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    for reference in (None, pair[0]):
        with pytest.raises(ModelError, match="needs a second model: name one by `reference:`"):
            merge(tmp_path, pair[0], reference)


def test_a_stop_between_tensors_leaves_no_model(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    io = RecordedIO()
    io.stop = True
    with pytest.raises(Interrupted):
        merge(tmp_path, *pair, io=io)
    assert not list((tmp_path / "merged").glob("*.safetensors"))


@pytest.mark.parametrize("weight", [-0.1, 1.1])
def test_weights_outside_zero_to_one_are_refused(weight: float) -> None:
    with pytest.raises(ValidationError, match="weight"):
        MergeConfig(weight=weight)


def test_the_plugin_names_a_stage_without_data_and_with_a_reference() -> None:
    (spec,) = steelyard_merge.steelyard_stages()
    assert (spec.name, spec.data, spec.needs_reference) == ("merge", None, True)
    assert spec.impl.load() is Merge
    assert spec.config is not None and spec.config.load() is MergeConfig
