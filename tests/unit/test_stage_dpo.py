"""The stages on pairs, `dpo`, `simpo` and `orpo`: their losses, the reference's log-probabilities, kept or computed beside, and that
neither memory nor a stop changes the result."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from steelyard.errors import DataError, Interrupted, ModelError
from steelyard_preference.config import DpoConfig, OrpoConfig, SimpoConfig
from steelyard_preference.dpo import Dpo, Orpo, Simpo
from steelyard_torch.batching import MicroBatch
from steelyard_torch.models import load_model, load_tokenizer
from steelyard_torch.trainee import Trainee


class Side(NamedTuple):
    """Summed log-probabilities of an answer."""

    policy: float
    reference: float
    tokens: int


def pairs(bench: Any, count: int = 18) -> list[dict[str, Any]]:
    words = ["ab", "cde", "f", "ghij"]
    rows = []
    for i in range(count):
        word = words[i % 4] * (1 + i % 3)
        prompt, chosen, rejected = bench.chat(word, word[::-1])[:1], word[::-1], f"ans: {word}"
        rows.append({"prompt": prompt, "chosen": [_said(chosen)], "rejected": [_said(rejected)]})
    return rows


def _said(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def config(**keys: Any) -> DpoConfig:
    return DpoConfig(**{"lr": 2e-3, "batch_size": 6, "max_length": 64, **keys})


def train(
    bench: Any,
    options: DpoConfig,
    *,
    name: str = "step",
    rows: list[dict[str, Any]] | None = None,
    io: Any = None,
    reference: Path | None = None,
) -> Any:
    data = bench.root / "data"
    if not data.exists():
        bench.data(pairs(bench) if rows is None else rows)
    context = bench.context(options, model=bench.model(), data=data, name=name, io=io, reference=reference or bench.model())
    return Dpo(options).run(context), context


def answer_logprobs(model: Any, tokenizer: Any, row: dict[str, Any], side: str) -> list[float]:
    """Log-probabilities of an answer's tokens and its end token, straight from logits in float64."""
    head = f"<|user|>{row['prompt'][0]['content']}<|assistant|>"
    start = len(tokenizer(head, add_special_tokens=False)["input_ids"])
    ids = torch.tensor([tokenizer(f"{head}{row[side][0]['content']}<eos>", add_special_tokens=False)["input_ids"]])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(input_ids=ids).logits[0], dim=-1)
    return [float(logprobs[i - 1, ids[0, i]]) for i in range(start, ids.shape[1])]


@pytest.mark.parametrize("loss", ["dpo", "dpo_norm"])
@pytest.mark.parametrize("budget", [1, 100_000])
def test_the_first_loss_is_log_2_when_the_policy_is_the_reference(bench: Any, loss: str, budget: int) -> None:
    _, context = train(bench, config(loss=loss, beta=5.0, max_steps=1, micro_batch_tokens=budget))
    first = context.io.metrics[0][1]
    assert first["train/loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert first["dpo/margin"] == pytest.approx(0, abs=1e-4)
    assert first["train/grad_norm"] > 0


def expected_step(bench: Any, of: Callable[[list[Side]], float], *, masked: bool, nll_reduction: str) -> tuple[float, float]:
    """The mean over all pairs of a loss of both sides, and the NLL of the chosen, computed pair by pair in float64."""
    tokenizer = load_tokenizer(bench.model())
    policy, reference = load_model(bench.model()).double(), load_model(bench.model(1)).double()
    losses, nll = [], []
    for row in pairs(bench):
        sides = []
        for side in ("chosen", "rejected"):
            mine, theirs = answer_logprobs(policy, tokenizer, row, side), answer_logprobs(reference, tokenizer, row, side)
            if side == "chosen":
                nll.append([-value for value in mine])
            if masked:  # the end token, the last
                mine, theirs = mine[:-1], theirs[:-1]
            sides.append(Side(sum(mine), sum(theirs), len(mine)))
        losses.append(of(sides))
    tokens = sum(map(sum, nll)) / sum(map(len, nll))
    sequences = sum(sum(values) / len(values) for values in nll) / len(nll)
    return sum(losses) / len(losses), {"token_mean": tokens, "sequence_mean": sequences, "sum": sum(map(sum, nll))}[nll_reduction]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def delta(sides: list[Side], *, mean: bool = False) -> float:
    chosen, rejected = ((side.policy - side.reference) / (side.tokens if mean else 1) for side in sides)
    return chosen - rejected


def odds(side: Side) -> float:
    p = math.exp(side.policy / side.tokens)
    return p / (1 - p)


LOSSES: dict[str, tuple[Any, dict[str, Any], Callable[[list[Side]], float]]] = {
    "dpo": (Dpo, {"beta": 0.3}, lambda s: -math.log(sigmoid(0.3 * delta(s)))),
    "dpo_norm": (Dpo, {"loss": "dpo_norm", "beta": 4.0}, lambda s: -math.log(sigmoid(4 * delta(s, mean=True)))),
    "ipo": (Dpo, {"loss": "ipo", "beta": 0.5}, lambda s: (delta(s, mean=True) - 1) ** 2),
    "ipo of sums": (Dpo, {"loss": "ipo", "beta": 0.5, "ipo_delta": "sum"}, lambda s: (delta(s) - 1) ** 2),
    "cdpo": (
        Dpo,
        {"loss": "cdpo", "beta": 0.3, "label_smoothing": 0.2},
        lambda s: -0.8 * math.log(sigmoid(0.3 * delta(s))) - 0.2 * math.log(sigmoid(-0.3 * delta(s))),
    ),
    "simpo": (
        Simpo,
        {"beta": 2.0, "gamma": 0.5},
        lambda s: -math.log(sigmoid(2 * (s[0].policy / s[0].tokens - s[1].policy / s[1].tokens) - 0.5)),
    ),
    "orpo": (Orpo, {"odds_weight": 0.4}, lambda s: -0.4 * math.log(sigmoid(math.log(odds(s[0]) / odds(s[1]))))),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("nll_reduction", "masked"), [("token_mean", False), ("sequence_mean", True), ("sum", False)])
def test_a_steps_loss_is_its_formula(bench: Any, loss: str, nll_reduction: str, masked: bool) -> None:
    """With another model as reference; Llama 3's mask leaves the end token to the NLL term alone."""
    stage, keys, of = LOSSES[loss]
    made = {Dpo: DpoConfig, Simpo: SimpoConfig, Orpo: OrpoConfig}[stage]
    shared = {"lr": 1e-3, "batch_size": 18, "max_steps": 1, "max_length": 64, "micro_batch_tokens": 60, "mask_format_tokens": masked}
    options = made(**shared, **keys, nll_coefficient=0.7, nll_reduction=nll_reduction)
    reference = bench.model(1) if stage is Dpo else None
    context = bench.context(options, model=bench.model(), data=bench.data(pairs(bench)), reference=reference)
    stage(options).run(context)
    preference, nll = expected_step(bench, of, masked=masked, nll_reduction=nll_reduction)
    found, name = context.io.metrics[0][1], {Dpo: "dpo", Simpo: "simpo", Orpo: "orpo"}[stage]
    assert found["train/loss"] == pytest.approx(preference + 0.7 * nll, rel=1e-5)
    assert found[f"{name}/nll"] == pytest.approx(nll, rel=1e-5)
    assert found[f"{name}/margin"] == pytest.approx(found[f"{name}/chosen_reward"] - found[f"{name}/rejected_reward"], abs=1e-4)


@pytest.mark.parametrize("stage", [Simpo, Orpo])
def test_a_loss_without_a_reference_loads_none_and_still_learns(bench: Any, stage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard_torch.trainee.Trainee.load_reference", lambda self: pytest.fail("a reference was loaded"))
    options = (SimpoConfig if stage is Simpo else OrpoConfig)(lr=2e-3, batch_size=6, max_length=64, epochs=6)
    context = bench.context(options, model=bench.model(), data=bench.data(pairs(bench)))
    result = stage(options).run(context)
    name = "simpo" if stage is Simpo else "orpo"
    assert context.io.series(f"{name}/accuracy")[-1] == 1.0
    assert context.io.series(f"{name}/margin")[-1] > context.io.series(f"{name}/margin")[0]
    assert "reference" not in result.facts and not (result.model / "reference").exists()


def test_a_reference_beside_gives_what_a_kept_one_gives(bench: Any) -> None:
    options = {"max_steps": 3, "beta": 1.0, "lr": 1e-3}
    kept, first = train(bench, config(**options), name="kept", reference=bench.model(1))
    beside, second = train(bench, config(**options, reference_logprobs="beside"), name="beside", reference=bench.model(1))
    assert first.io.series("train/loss") == pytest.approx(second.io.series("train/loss"), rel=1e-5)
    for name, tensor in bench.weights(kept.model).items():
        torch.testing.assert_close(bench.weights(beside.model)[name], tensor, atol=2e-6, rtol=0)
    assert beside.facts["reference"]["logprobs"] == "beside" and not (beside.model / "reference").exists()
    assert beside.facts["reference"]["weights_sha256"] == kept.facts["reference"]["weights_sha256"]
    assert (kept.model / "reference" / "logprobs.safetensors").is_file()


@pytest.mark.parametrize("how", ["kept", "beside"])
def test_with_adapters_the_model_without_them_is_the_reference(bench: Any, how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard_torch.trainee.Trainee.load_frozen", lambda self, folder: pytest.fail("a second model was loaded"))
    options = config(max_steps=6, beta=1.0, lr=1e-2, adapter={"rank": 4}, reference_logprobs=how)
    _, context = train(bench, options)
    losses = context.io.series("train/loss")
    assert losses[0] == pytest.approx(math.log(2), abs=1e-5)
    assert losses[-1] < losses[0] - 0.05


def test_a_shared_prompt_is_run_once_for_both_answers_and_changes_nothing(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = [{"role": "user", "content": "a long question of some forty characters"}]
    rows = [{"prompt": prompt, "chosen": [_said(f"{i} good")], "rejected": [_said(f"{i} bad one")]} for i in range(6)]
    sizes: list[int] = []
    batches = Trainee.micro_batches

    def seen(self: Trainee, *args: Any, **keys: Any) -> list[MicroBatch]:
        found = batches(self, *args, **keys)
        sizes.append(sum(batch.input_ids.numel() for batch in found))
        return found

    monkeypatch.setattr(Trainee, "micro_batches", seen)
    options = {"max_steps": 2, "beta": 1.0, "lr": 1e-3, "max_length": 100}
    shared, first = train(bench, config(**options), rows=rows, name="shared", reference=bench.model(1))
    together, sizes[:] = sizes[-1], []
    monkeypatch.setattr("steelyard_torch.batching._SHORTEST_SHARED", 1000)
    apart, second = train(bench, config(**options), name="apart", reference=bench.model(1))
    assert together < 0.7 * sizes[-1]
    assert first.io.series("train/loss") == pytest.approx(second.io.series("train/loss"), rel=1e-5)
    for name, tensor in bench.weights(shared.model).items():
        torch.testing.assert_close(bench.weights(apart.model)[name], tensor, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("keys", "complaint"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing belongs to the loss 'cdpo' and does nothing in 'dpo'"),
        ({"loss": "dpo_norm", "ipo_delta": "sum"}, "ipo_delta belongs to the loss 'ipo'"),
        ({"nll_reduction": "sum"}, "nll_reduction does nothing with nll_coefficient 0"),
        ({"loss": "cdpo", "label_smoothing": 0.5}, "less than 0.5"),
        ({"beta": math.inf}, "finite"),
        ({"nll_coefficient": math.inf}, "finite"),
    ],
)
def test_a_dial_that_does_nothing_is_refused(keys: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        config(**keys)


def test_answers_of_the_templates_own_tokens_alone_are_left_out_under_the_mask(bench: Any) -> None:
    # All that is left of these answers is their end token's place: the content is another special token.
    rows = [*pairs(bench, 6), {"prompt": pairs(bench, 1)[0]["prompt"], "chosen": [_said("<eos>")], "rejected": [_said("ab")]}]
    result, context = train(bench, config(max_steps=1, mask_format_tokens=True), rows=rows)
    assert (result.facts["pairs"], result.facts["nothing_to_score"]) == (6, 1)
    assert any(line.startswith("1 pairs left out: beside the template's own tokens") for line in context.io.lines)


def test_training_prefers_the_chosen_answers(bench: Any) -> None:
    result, context = train(bench, config(epochs=8))
    assert context.io.series("dpo/accuracy")[-1] == 1.0
    assert context.io.series("dpo/margin")[-1] > 0.5
    assert context.io.series("train/loss")[-1] < 0.3
    tokenizer, before, after = load_tokenizer(result.model), load_model(bench.model()).double(), load_model(result.model).double()
    for row in pairs(bench)[:4]:
        gained = {
            s: sum(answer_logprobs(after, tokenizer, row, s)) - sum(answer_logprobs(before, tokenizer, row, s))
            for s in ("chosen", "rejected")
        }
        assert gained["chosen"] > gained["rejected"]


def test_the_nll_term_keeps_the_chosen_answers_likely(bench: Any) -> None:
    tokenizer = load_tokenizer(bench.model())
    likelihood = {}
    for coefficient in (0.0, 1.0):
        result, _ = train(bench, config(epochs=4, nll_coefficient=coefficient), name=f"nll-{coefficient}")
        model = load_model(result.model).double()
        likelihood[coefficient] = sum(sum(answer_logprobs(model, tokenizer, row, "chosen")) for row in pairs(bench))
    assert likelihood[1.0] > likelihood[0.0] + 1


def test_micro_batches_do_not_change_the_result(bench: Any) -> None:
    options = {"max_steps": 3, "nll_coefficient": 0.5, "lr": 1e-3}
    whole, context = train(bench, config(**options, micro_batch_tokens=100_000), name="whole")
    split, other = train(bench, config(**options, micro_batch_tokens=1), name="split")
    assert context.io.series("train/loss") == pytest.approx(other.io.series("train/loss"), rel=1e-5)
    for name, tensor in bench.weights(whole.model).items():
        torch.testing.assert_close(bench.weights(split.model)[name], tensor, atol=2e-6, rtol=0)


def test_the_reference_is_scored_once(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, context = train(bench, config(max_steps=3), name="first", reference=bench.model(1))
    kept = list((bench.root / "cache/reference-logprobs").glob("*.safetensors"))
    assert [path.stem for path in kept] == [first.facts["reference"]["logprobs"]]
    assert not any("kept from before" in line for line in context.io.lines)
    # And they stay with the model, whatever becomes of the cache.
    assert (first.model / "reference" / "logprobs.safetensors").read_bytes() == kept[0].read_bytes()

    def fail(*args: Any, **keys: Any) -> None:
        raise AssertionError("the reference was loaded again")

    monkeypatch.setattr("steelyard_torch.trainee.Trainee.load_reference", fail)
    second, context = train(bench, config(max_steps=3), name="second", reference=bench.model(1))
    assert any("kept from before" in line for line in context.io.lines)
    assert all(torch.equal(bench.weights(first.model)[n], t) for n, t in bench.weights(second.model).items())
    assert first.facts == second.facts
    for others in ({"options": config(max_steps=3, max_length=63)}, {"options": config(max_steps=3), "reference": bench.model(2)}):
        with pytest.raises(AssertionError, match="loaded again"):
            train(bench, others["options"], name=f"other-{len(others)}", reference=others.get("reference", bench.model(1)))


def test_damaged_reference_log_probabilities_are_made_anew(bench: Any) -> None:
    first, _ = train(bench, config(max_steps=2), name="first", reference=bench.model(1))
    kept = next((bench.root / "cache/reference-logprobs").glob("*.safetensors"))
    whole = kept.read_bytes()
    for number, damaged in enumerate((whole[:-3], whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:], b"")):
        kept.write_bytes(damaged)
        again, context = train(bench, config(max_steps=2), name=f"again-{number}", reference=bench.model(1))
        assert not any("kept from before" in line for line in context.io.lines)
        assert kept.read_bytes() == whole
        assert all(torch.equal(bench.weights(first.model)[n], t) for n, t in bench.weights(again.model).items())


def test_kept_log_probabilities_belong_to_the_rows_they_were_made_of(bench: Any) -> None:
    """With batches drawn at random, a mix-up of pairs would not give log 2 at the first step, whose policy is the reference."""
    train(bench, config(max_steps=1, batch_size=5), name="first")
    for seed in (1, 2, 3):
        options = config(max_steps=1, batch_size=5, beta=1.0)
        context = bench.context(options, model=bench.model(), data=bench.root / "data", name=f"s{seed}", reference=bench.model(), seed=seed)
        Dpo(options).run(context)
        assert any("kept from before" in line for line in context.io.lines)
        assert context.io.series("train/loss")[0] == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("stop", [1, 5])
def test_a_stopped_step_resumes_to_the_very_same_weights(bench: Any, stop: int) -> None:
    options = config(epochs=2, nll_coefficient=0.3, warmup_ratio=0.2)
    whole, uninterrupted = train(bench, options, name="whole")
    with pytest.raises(Interrupted):
        train(bench, options, name="stopped", io=bench.io(stop_after=stop))
    resumed, context = train(bench, options, name="stopped")
    assert context.io.series("train/loss") == uninterrupted.io.series("train/loss")[stop:]
    assert all(torch.equal(bench.weights(whole.model)[n], t) for n, t in bench.weights(resumed.model).items())


def test_a_stop_while_the_reference_is_scored_writes_nothing(bench: Any) -> None:
    with pytest.raises(Interrupted, match="scoring the reference"):
        train(bench, config(), io=bench.io(stop_after=0))
    assert not list(bench.root.glob("cache/reference-logprobs/*"))
    train(bench, config())


def test_a_reference_that_computes_no_numbers_is_named_and_nothing_is_kept(bench: Any) -> None:
    broken = bench.root / "broken"
    shutil.copytree(bench.model(), broken)
    weights = bench.weights(broken)
    # Finite weights whose products are not.
    large = {name: torch.full_like(tensor, 3e38) if "down_proj" in name else tensor for name, tensor in weights.items()}
    save_file(large, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="the reference model gives log-probabilities that are not finite"):
        train(bench, config(), reference=broken)
    assert not list(bench.root.glob("cache/reference-logprobs/*"))


def test_pairs_that_teach_nothing_are_left_out_and_counted(bench: Any) -> None:
    same = [{"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["chosen"]} for row in pairs(bench, 3)]
    # These two differ behind the twelfth token only, where they are cut.
    cut = [{**same[0], "chosen": [_said("c" * 20 + "d")], "rejected": [_said("c" * 20 + "e")]}]
    empty = [{**same[0], "rejected": [_said(" ")]}, {**same[0], "chosen": []}]
    other = {"role": "user", "content": "z"}
    unshared = [{**same[0], "chosen": [*same[0]["prompt"], _said("a")], "rejected": [other, _said("b")]}]
    rows = [*pairs(bench, 6), *same, *cut, *empty, *unshared]
    for name in ("first", "from the cache"):
        result, context = train(bench, config(max_length=14, max_steps=1, batch_size=6), rows=rows, name=name)
        data = result.facts["data"]
        assert (data["rows_in"], result.facts["pairs"]) == (13, 6)
        assert (data["dropped_identical"], data["dropped_empty"], data["dropped_unshared"]) == (4, 2, 1)
        assert any("4 dropped as chosen and rejected are the same" in line for line in context.io.lines)
        assert context.io.series("train/epoch") == [1.0]


def test_nothing_but_identical_pairs_is_an_error(bench: Any) -> None:
    rows = [{"prompt": row["prompt"], "chosen": row["chosen"], "rejected": row["chosen"]} for row in pairs(bench, 3)]
    with pytest.raises(DataError, match="none of the 3 pairs has anything to prefer: 3 with the same tokens on both sides"):
        train(bench, config(), rows=rows)


def test_a_row_without_messages_is_named(bench: Any) -> None:
    with pytest.raises(DataError, match="row 'p1' has no messages under 'rejected'"):
        train(bench, config(), rows=[{"id": "p1", **{k: v for k, v in pairs(bench, 1)[0].items() if k != "rejected"}}])


def test_a_reference_with_another_template_is_refused(bench: Any) -> None:
    with pytest.raises(ModelError, match="template"):
        train(bench, config(), reference=bench.model(template="plain"))


def test_a_reference_with_another_tokenizer_is_refused(bench: Any) -> None:
    with pytest.raises(ModelError, match="the reference model"):
        train(bench, config(), reference=bench.model(characters=bench.characters[::-1]))


def test_a_missing_reference_says_what_to_write(bench: Any) -> None:
    data = bench.data(pairs(bench))
    with pytest.raises(ModelError, match="reference: init"):
        Dpo(config()).run(bench.context(config(), model=bench.model(), data=data, reference=None))


def test_dropout_is_off_so_that_policy_and_reference_agree(bench: Any) -> None:
    model = bench.model(4, attention_dropout=0.5)
    data = bench.data(pairs(bench))
    options = config(max_steps=1, beta=5.0)
    context = bench.context(options, model=model, data=data, reference=model)
    result = Dpo(options).run(context)
    assert context.io.series("train/loss")[0] == pytest.approx(math.log(2), abs=1e-5)
    assert load_model(result.model).config.attention_dropout == 0.5, "the model keeps its configuration"


def test_a_copied_model_folder_is_the_same_reference(bench: Any) -> None:
    first, _ = train(bench, config(max_steps=1), name="first", reference=bench.model(1))
    copy = bench.root / "copy"
    shutil.copytree(bench.model(1), copy)
    second, context = train(bench, config(max_steps=1), name="second", reference=copy)
    assert first.facts["reference"] == second.facts["reference"]
    assert any("kept from before" in line for line in context.io.lines)
