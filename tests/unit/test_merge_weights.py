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
    return run(root, initial, reference, MergeConfig(weight=weight), {}, io=io)


def merge_named(root: Path, initial: Path, models: dict[str, Path], *, io: RecordedIO | None = None, **options: Any) -> StageResult:
    return run(root, initial, None, MergeConfig(**options), models, io=io)


def run(
    root: Path, initial: Path, reference: Path | None, config: MergeConfig, models: dict[str, Path], *, io: RecordedIO | None
) -> StageResult:

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
        inputs={f"model:{name}": folder for name, folder in models.items()},
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


def test_the_plugin_names_a_stage_without_data_and_with_a_reference_or_models() -> None:
    (spec,) = steelyard_merge.steelyard_stages()
    assert (spec.name, spec.data, spec.needs_reference, spec.models, spec.models_for_reference) == ("merge", None, True, "*", True)
    assert spec.impl.load() is Merge
    assert spec.config is not None and spec.config.load() is MergeConfig


# Models by name


@pytest.fixture
def family(tmp_path: Path) -> tuple[Path, dict[str, Path]]:
    """A base, and three models that were trained from it: its weights, each a little changed."""
    base, models = make(tmp_path / "base", 1), {}
    for seed, name in enumerate(("a", "b", "c")):
        models[name] = Path(shutil.copytree(base, tmp_path / name))
        draws = torch.Generator().manual_seed(seed)

        def change(weights: dict[str, torch.Tensor], draws: torch.Generator = draws) -> None:
            weights.update({key: tensor + 0.01 * torch.randn(tensor.shape, generator=draws) for key, tensor in weights.items()})

        rewrite(models[name], change)
    return base, models


def flat(folder: Path) -> torch.Tensor:
    """All weights of a model in order of names."""
    return torch.cat([tensor.flatten().double() for _, tensor in sorted(tensors(folder).items())])


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({}, (1 / 3, 1 / 3, 1 / 3)),
        ({"weights": {"a": 1, "b": 2, "c": 5}}, (0.125, 0.25, 0.625)),
        ({"weights": {"a": 0.5, "b": 0.4, "c": 0.3}, "normalize": False}, (0.5, 0.4, 0.3)),
    ],
)
def test_a_soup_has_each_model_by_its_weight_and_the_initial_one_takes_no_part(
    tmp_path: Path, family: tuple[Path, dict[str, Path]], options: dict[str, Any], weights: tuple[float, ...]
) -> None:
    base, models = family
    result = merge_named(tmp_path, base, models, **options)
    expected = sum(weight * flat(folder) for weight, folder in zip(weights, models.values(), strict=True))
    torch.testing.assert_close(flat(result.model), expected, atol=1e-7, rtol=1e-7)
    assert result.facts["method"] == "average"
    assert result.facts["weights"] == pytest.approx({f"model '{name}'": weight for name, weight in zip("abc", weights, strict=True)})


def test_the_order_of_the_names_decides_nothing(tmp_path: Path, family: tuple[Path, dict[str, Path]]) -> None:
    base, models = family
    first = merge_named(tmp_path / "1", base, models, method="ties")
    second = merge_named(tmp_path / "2", base, dict(reversed(models.items())), method="ties")
    assert (first.model / "model.safetensors").read_bytes() == (second.model / "model.safetensors").read_bytes()


def test_slerp_is_tensor_by_tensor(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    result = merge_named(tmp_path, pair[0], {"a": pair[0], "b": pair[1]}, method="slerp", weights={"a": 3, "b": 1})
    one, two, merged = (tensors(folder) for folder in (*pair, result.model))
    for name, tensor in merged.items():
        a, b = one[name].double(), two[name].double()
        theta = torch.acos(((a / a.norm()) * (b / b.norm())).sum().clamp(-1, 1))
        # The norms' weights are ones in both: no arc, so the straight line.
        expected = a if torch.equal(a, b) else (torch.sin(0.75 * theta) * a + torch.sin(0.25 * theta) * b) / torch.sin(theta)
        torch.testing.assert_close(tensor.double(), expected, atol=1e-7, rtol=1e-6)
    linear = sum("norm" in name for name in merged)
    assert result.facts["linear_tensors"] == linear and result.metrics["merge/mean_angle"] > 1
    torch.testing.assert_close(
        flat(run(tmp_path / "by_share", *pair, MergeConfig(method="slerp", weight=0.25), {}, io=None).model), flat(result.model)
    )


def test_task_vectors_are_of_the_initial_model(tmp_path: Path, family: tuple[Path, dict[str, Path]]) -> None:
    base, models = family
    options: dict[str, Any] = {"method": "task_arithmetic", "scale": 0.5, "weights": {"a": 1, "b": 0.6, "c": -1}}
    merged = flat(merge_named(tmp_path, base, models, **options).model)
    start, a, b, c = (flat(folder) for folder in (base, *models.values()))
    torch.testing.assert_close(merged, start + 0.5 * (a - start) + 0.3 * (b - start) - 0.5 * (c - start), atol=1e-7, rtol=1e-7)


def test_one_task_vector_added_whole_gives_its_model_to_the_last_bit(tmp_path: Path, family: tuple[Path, dict[str, Path]]) -> None:
    base, models = family
    for number, options in enumerate(({"method": "task_arithmetic"}, {"method": "ties", "density": 1.0})):
        merged = merge_named(tmp_path / str(number), base, {"b": models["b"]}, **options).model
        assert torch.equal(flat(merged), flat(models["b"]))


def test_dropping_changes_depends_on_the_steps_seed_alone(tmp_path: Path, family: tuple[Path, dict[str, Path]]) -> None:
    base, models = family
    first, again = (merge_named(tmp_path / n, base, models, method="task_arithmetic", drop=0.5) for n in ("1", "2"))
    assert torch.equal(flat(first.model), flat(again.model))
    untouched = float((flat(first.model) == flat(base)).double().mean())
    assert untouched == pytest.approx(0.125, abs=0.02)


def ties_over(start: torch.Tensor, models: list[torch.Tensor], density: float) -> torch.Tensor:
    """TIES over vectors (Yadav et al., arXiv 2306.01708, algorithm 1), weights and λ of 1."""
    changes = [model - start for model in models]
    keep = round(density * start.numel())
    trimmed = torch.stack([torch.where(c.abs() >= c.abs().sort(descending=True).values[keep - 1], c, 0.0) for c in changes])
    agree = (trimmed.sign() == trimmed.sum(0).sign()) & (trimmed != 0)
    return start + torch.where(agree, trimmed, 0.0).sum(0) / agree.sum(0).clamp(min=1)


def test_ties_trims_over_the_whole_model_or_in_each_tensor(tmp_path: Path, family: tuple[Path, dict[str, Path]]) -> None:
    base, models = family
    # One tensor has far larger changes than all others: over the whole model most of what is kept is there.
    rewrite(models["a"], lambda weights: weights.update({"lm_head.weight": weights["lm_head.weight"] + 1}))
    whole = merge_named(tmp_path / "whole", base, models, method="ties", density=0.3)
    expected = ties_over(flat(base), [flat(folder) for folder in models.values()], 0.3)
    torch.testing.assert_close(flat(whole.model), expected, atol=2e-7, rtol=1e-6)
    each = tensors(merge_named(tmp_path / "each", base, models, method="ties", density=0.3, trim="tensor").model)
    parts = [tensors(folder) for folder in (base, *models.values())]
    for name, tensor in each.items():
        start, *others = (part[name].flatten().double() for part in parts)
        torch.testing.assert_close(tensor.flatten().double(), ties_over(start, others, 0.3), atol=2e-7, rtol=1e-6)
    assert not torch.equal(each["model.layers.0.mlp.up_proj.weight"], tensors(whole.model)["model.layers.0.mlp.up_proj.weight"])


def test_ties_tells_how_often_signs_conflict_and_every_merge_how_far_apart_models_are(
    tmp_path: Path, family: tuple[Path, dict[str, Path]]
) -> None:
    base, models = family
    io = RecordedIO()
    result = merge_named(tmp_path, base, models, method="ties", density=1.0, io=io)
    # Three independent changes: of the elements that all three change, three in four have both signs.
    assert result.metrics["merge/sign_conflicts"] == pytest.approx(0.75, abs=0.02)
    assert result.metrics["merge/changed"] == pytest.approx(1, abs=0.01) and result.metrics["merge/shared"] == pytest.approx(1, abs=0.01)
    start, a, b = flat(base), flat(models["a"]), flat(models["b"])
    told = result.facts["distances"]
    assert told["the initial model – model 'a'"] == pytest.approx(float((a - start).norm() / start.norm()))
    assert told["model 'a' – model 'b'"] == pytest.approx(float((a - b).norm() / start.norm()))
    assert result.metrics["merge/relative_change"] == pytest.approx(float((flat(result.model) - start).norm() / start.norm()), rel=1e-5)
    assert any("sign conflicts 0.7" in line for line in io.lines)


def test_named_models_that_do_not_go_together_are_told_by_name(tmp_path: Path, family: tuple[Path, dict[str, Path]]) -> None:
    base, models = family
    alien = make(tmp_path / "alien", 5, num_hidden_layers=3)
    with pytest.raises(ModelError, match="the initial model and model 'x' have different architectures: num_hidden_layers 2 and 3"):
        merge_named(tmp_path, base, {**models, "x": alien})
    rewrite(models["c"], lambda weights: weights["model.norm.weight"].fill_(float("inf")))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"model 'c' has non-finite weights in 'model.norm.weight'"):
        merge_named(tmp_path, base, models)


def test_models_with_nothing_between_them_are_refused_and_twins_told(tmp_path: Path, family: tuple[Path, dict[str, Path]]) -> None:
    base, models = family
    twin = Path(shutil.copytree(models["a"], tmp_path / "twin"))
    with pytest.raises(ModelError, match="model 'a', model 'd' have the same weights, so there is nothing to merge"):
        merge_named(tmp_path / "1", base, {"a": models["a"], "d": twin})
    with pytest.raises(ModelError, match="model 'd' has the weights of the initial model, so there is no change of it to add"):
        merge_named(tmp_path / "2", base, {"a": models["a"], "d": base}, method="ties")
    io = RecordedIO()
    merge_named(tmp_path / "3", base, {"a": models["a"], "b": models["b"], "d": twin}, io=io)
    assert "model 'a' and model 'd' have the same weights" in io.lines


def test_an_adapter_alone_is_refused_with_the_way_out(tmp_path: Path, family: tuple[Path, dict[str, Path]]) -> None:
    base, models = family
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    save_file({"lora_A.weight": torch.ones(2, 2)}, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"model 'x' \('.*adapter'\) is an adapter.*merge it into its base first"):
        merge_named(tmp_path, base, {"a": models["a"], "x": adapter})


def say(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_reward_models_and_quantised_models_are_refused(tmp_path: Path, family: tuple[Path, dict[str, Path]]) -> None:
    base, models = family
    for folder in (base, *models.values()):
        say(folder, architectures=["LlamaForSequenceClassification"])
    with pytest.raises(ModelError, match="the models are LlamaForSequenceClassification, which score text"):
        merge_named(tmp_path, base, models)
    for folder in (base, *models.values()):
        say(folder, architectures=["LlamaForCausalLM"], quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(ModelError, match="the models are quantised"):
        merge_named(tmp_path, base, models)


# Options that go together


@pytest.mark.parametrize(
    ("options", "roles", "message"),
    [
        ({"method": "ties"}, "", "method 'ties' adds up what models changed of the initial one: name them under 'models'"),
        ({"weights": {"a": 1.0}}, "", "'weights' are of 'models', and there are none"),
        ({"normalize": False}, "", "'normalize' is about 'weights'"),
        ({"weight": 0.3}, "ab", "'weight' is the reference's share, and the models have names"),
        ({}, "a", r"method 'average' merges two models or more, and 'models' has 1 \(a\)"),
        ({"method": "slerp"}, "abc", r"method 'slerp' merges two models, and 'models' has 3 \(a, b, c\)"),
        ({"weights": {"a": 1.0, "bb": 1.0}}, ("a", "bbb"), r"'weights' names 'bb', and 'models' does not \(did you mean 'bbb'\?\)"),
        ({"weights": {"a": 1.0}}, "ab", "'weights' leaves out 'b'"),
        ({"weights": {"a": -1.0, "b": 2.0}}, "ab", "the weight of 'a' is -1.0: only task_arithmetic"),
        ({"weights": {"a": 0.0, "b": 0.0}}, "ab", "every weight is 0"),
        ({"density": 0.5}, "ab", "'density' does nothing under method 'average', only under ties"),
        ({"method": "ties", "drop": 0.5}, "ab", "'drop' does nothing under method 'ties'"),
        ({"scale": 2.0}, "ab", "'scale' does nothing under method 'average', only under task_arithmetic and ties"),
    ],
)
def test_options_that_say_nothing_or_too_much_are_refused(options: dict[str, Any], roles: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MergeConfig(**options).check_models(list(roles))
