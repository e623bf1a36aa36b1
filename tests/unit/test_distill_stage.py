"""The stage `distill` on small models: what it learns, what it computes, how it resumes, what it refuses."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from transformers import Gemma2Config, Gemma2ForCausalLM, GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedModel

import steelyard_distill
from steelyard.errors import DataError, Interrupted, ModelError
from steelyard.protocols import StageContext
from steelyard.records import StageResult
from steelyard.rows import write_rows
from steelyard.run.checkpoints import FolderCheckpoints
from steelyard.run.contexts import open_step_verifiers
from steelyard.testing import RecordedIO
from steelyard_distill.config import DistillConfig
from steelyard_distill.distill import Distill
from steelyard_distill.states import target_states
from steelyard_torch.bases import new_model
from steelyard_torch.batching import MicroBatch, micro_batches
from steelyard_torch.encoding import EncodedRow, encode_chats
from steelyard_torch.head import prepare_scoring, token_logprobs
from steelyard_torch.models import load_model, load_tokenizer, weights_sha256

MARKERS = ("<|user|>", "<|assistant|>")


def make(
    folder: Path, seed: int, *, hidden: int = 32, layers: int = 1, characters: str = "0123456789+= ", template: str = "compact"
) -> Path:
    architecture = {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": 2 * hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        # Wide enough that a model with random weights prefers some tokens.
        "initializer_range": 0.3,
    }
    new_model(folder, architecture=architecture, characters=characters, extra_tokens=MARKERS, chat_template=template, seed=seed)
    return folder


def conversations(count: int = 48) -> list[list[dict[str, str]]]:
    random = np.random.RandomState(0)
    made = []
    for _ in range(count):
        a, b = (int(x) for x in random.randint(0, 60, size=2))
        made.append([{"role": "user", "content": f"{a}+{b}="}, {"role": "assistant", "content": str(a + b)}])
    return made


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """Student, a wider and deeper teacher of the same tokenizer, and conversations."""
    torch.set_num_threads(1)
    make(tmp_path / "student", 1)
    make(tmp_path / "teacher", 2, hidden=48, layers=2)
    write_rows(tmp_path / "data", [{"messages": messages} for messages in conversations()])
    return tmp_path


def distill(
    world: Path,
    name: str,
    *,
    io: RecordedIO | None = None,
    student: str = "student",
    teacher: str | None = "teacher",
    data: str | None = "data",
    **options: Any,
) -> StageResult:
    config = DistillConfig(**{"lr": 3e-3, "batch_size": 12, "epochs": 2, "schedule": "constant", **options})

    def no_engine(model: Path | None = None, **overrides: Any) -> Any:
        raise AssertionError("distillation on given conversations samples nothing")

    context = StageContext(
        config=config,
        model=world / student,
        reference=None if teacher is None else world / teacher,
        data=None if data is None else world / data,
        output=world / f"out-{name}",
        cache=world / "cache",
        seed=7,
        run_seed=7,
        checkpoints=FolderCheckpoints(world / f"checkpoints-{name}", "r/distill", "key"),
        io=io or RecordedIO(),
        engine=no_engine,
        verifiers=open_step_verifiers(None, {}, world / "evidence", ExitStack()),  # type: ignore[arg-type]
    )
    return Distill(config).run(context)


def metric(io: RecordedIO, name: str) -> list[float]:
    return [values[name] for _, values in io.metrics]


@pytest.mark.parametrize(
    "options",
    [{"divergence": "forward_kl"}, {"divergence": "reverse_kl"}, {"divergence": "jsd", "beta": 0.3}],
    ids=lambda o: o["divergence"],
)
def test_the_student_comes_nearer_to_the_teacher(world: Path, options: dict[str, Any]) -> None:
    io = RecordedIO()
    result = distill(world, "near", io=io, epochs=20, **options)
    divergence = metric(io, "distill/divergence")
    assert divergence[-1] < 0.5 * divergence[0]
    assert metric(io, "distill/agreement")[-1] > metric(io, "distill/agreement")[0]
    assert weights_sha256(result.model) != weights_sha256(world / "student")
    assert result.facts["optimiser_steps"] == 80


def test_the_first_loss_is_the_formula_on_the_models_own_logits(world: Path) -> None:
    io = RecordedIO()
    distill(
        world, "formula", io=io, max_steps=1, batch_size=48, temperature=2.0, divergence="reverse_kl", divergence_coefficient=3.0,
        ce_coefficient=0.5, micro_batch_tokens=60,
    )  # fmt: skip
    tokenizer = load_tokenizer(world / "student")
    student, teacher = load_model(world / "student", dtype=torch.float64), load_model(world / "teacher", dtype=torch.float64)
    divergence = cross_entropy = 0.0
    tokens = 0
    for row in encode_chats(tokenizer, conversations(), max_length=64).rows:
        ids = torch.from_numpy(row.input_ids.astype(np.int64))[None]
        with torch.no_grad():
            mine, theirs = student(ids).logits[0], teacher(ids).logits[0]
        for place in np.nonzero(row.trained)[0]:
            q, p = (mine[place - 1] / 2).softmax(-1), (theirs[place - 1] / 2).softmax(-1)
            divergence += float((q * (q.log() - p.log())).sum())
            cross_entropy -= float(mine[place - 1].log_softmax(-1)[ids[0, place]])
            tokens += 1
    (loss,) = metric(io, "train/loss")
    assert loss == pytest.approx((3.0 * divergence + 0.5 * cross_entropy) / tokens, rel=1e-4)
    assert metric(io, "distill/divergence") == pytest.approx([divergence / tokens], rel=1e-4)
    assert metric(io, "distill/cross_entropy") == pytest.approx([cross_entropy / tokens], rel=1e-4)


@pytest.mark.parametrize("reduction", ["token_mean", "sum", "sequence_mean"])
def test_the_cut_into_micro_batches_changes_nothing(world: Path, reduction: str) -> None:
    losses = []
    for budget in (16384, 40):
        io = RecordedIO()
        distill(world, f"cut-{budget}", io=io, max_steps=3, micro_batch_tokens=budget, loss_reduction=reduction, ce_coefficient=0.2)
        losses.append(metric(io, "train/loss") + metric(io, "train/grad_norm") + metric(io, "distill/agreement"))
    assert losses[0] == pytest.approx(losses[1], rel=2e-4)


def test_cross_entropy_alone_is_supervised_fine_tuning(world: Path) -> None:
    io = RecordedIO()
    distill(world, "ce", io=io, divergence_coefficient=0.0, ce_coefficient=1.0, epochs=6)
    assert metric(io, "train/loss") == pytest.approx(metric(io, "distill/cross_entropy"), rel=1e-6)
    tokenizer = load_tokenizer(world / "student")
    rows = encode_chats(tokenizer, conversations(), max_length=64).rows
    (batch,) = micro_batches(rows, token_budget=10**6, pad_id=tokenizer.pad_token_id)
    with torch.no_grad():
        before, after = (float(-token_logprobs(load_model(world / f), batch).logprobs.mean()) for f in ("student", "out-ce"))
    assert after < before


def test_an_interrupted_distillation_ends_with_the_same_bits(world: Path) -> None:
    class StopsAfter(RecordedIO):
        def should_stop(self) -> bool:
            return len(self.metrics) >= 3

    options: dict[str, Any] = {"divergence": "jsd", "ce_coefficient": 0.1, "epochs": 2}
    whole = distill(world, "whole", **options)
    with pytest.raises(Interrupted):
        distill(world, "cut", io=StopsAfter(), **options)
    io = RecordedIO()
    resumed = distill(world, "cut", io=io, **options)
    assert [step for step, _ in io.metrics] == [4, 5, 6, 7, 8]
    assert weights_sha256(resumed.model) == weights_sha256(whole.model)


def test_bf16_autocast_trains_too(world: Path) -> None:
    io = RecordedIO()
    distill(world, "bf16", io=io, precision="bf16", epochs=10)
    divergence = metric(io, "distill/divergence")
    assert np.isfinite(divergence).all() and divergence[-1] < divergence[0]


# Refusals


def test_a_teacher_with_another_vocabulary_is_refused(world: Path) -> None:
    make(world / "other", 3, characters="0123456789+= abc")
    with pytest.raises(ModelError, match=r"another vocabulary than the student \(21 and 18 tokens\)"):
        distill(world, "refused", teacher="other")


def test_a_teacher_under_another_template_is_refused(world: Path) -> None:
    make(world / "other", 3, template="plain")
    with pytest.raises(ModelError, match="the teacher would use another chat template"):
        distill(world, "refused", teacher="other")


def test_a_student_is_not_its_own_teacher_unless_the_data_teach_too(world: Path) -> None:
    with pytest.raises(ModelError, match="the teacher has the student's own weights"):
        distill(world, "refused", teacher="student")
    io = RecordedIO()
    distill(world, "tied", io=io, teacher="student", ce_coefficient=1.0)
    divergence = metric(io, "distill/divergence")
    assert divergence[0] == pytest.approx(0.0, abs=1e-6) and divergence[-1] > 1e-4


def test_without_a_teacher_it_says_which_key_is_missing(world: Path) -> None:
    with pytest.raises(ModelError, match="name it by `reference:`"):
        distill(world, "refused", teacher=None)


def test_without_conversations_it_says_what_the_rows_have(world: Path) -> None:
    write_rows(world / "texts", [{"text": "1+1=2"}])
    with pytest.raises(DataError, match="has no 'messages'; it has text"):
        distill(world, "refused", data="texts")
    with pytest.raises(DataError, match="no dataset"):
        distill(world, "refused", data=None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"divergence_coefficient": 0}, "nothing to learn"),
        ({"beta": 0.2}, "beta belongs to divergence 'jsd'"),
        ({"divergence": "jsd", "beta": 1.2}, "beta"),
        ({"temperature": 0}, "temperature"),
        ({"divergence": "kl"}, "divergence"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DistillConfig(**{"lr": 1e-3, **options})


# Logits at trained positions


def rows() -> list[EncodedRow]:
    random = np.random.RandomState(0)
    made = []
    for length in (12, 5, 9, 7):
        trained = np.zeros(length, dtype=np.bool_)
        trained[random.randint(1, length) :] = True
        made.append(EncodedRow(random.randint(2, 31, size=length).astype(np.int32), trained))
    return made


def llama() -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(vocab_size=31, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, initializer_range=0.3)
    )


def gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(GPT2Config(vocab_size=31, n_embd=32, n_layer=1, n_head=4, n_positions=32, initializer_range=0.3))


def gemma2() -> PreTrainedModel:
    return Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=31,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            head_dim=8,
            initializer_range=0.3,
            final_logit_softcapping=2.0,
        )
    )


def whole_logits(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """By a pass over each row alone."""
    found = []
    for row in batch.rows:
        logits = model(input_ids=torch.from_numpy(row.input_ids.astype(np.int64))[None]).logits[0]
        found.append(logits[torch.from_numpy(np.flatnonzero(row.trained)) - 1])
    return torch.cat(found)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("architecture", [llama, gpt2, gemma2])
def test_target_states_lead_to_the_models_own_logits(architecture: Any, packed: bool) -> None:
    torch.manual_seed(0)
    model = architecture().train(False)
    (batch,) = micro_batches(rows(), token_budget=10**6, pad_id=0, packed=packed and prepare_scoring(model))
    found = target_states(model, batch)
    assert found.width == 31 and found.states.shape == (len(batch.target_ids), 32)
    torch.testing.assert_close(found.logits(found.states), whole_logits(model, batch), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.logits(found.states[3:5]), whole_logits(model, batch)[3:5], rtol=1e-5, atol=1e-5)


def test_a_model_without_a_head_of_its_own_kind_gets_the_selection_afterwards() -> None:
    torch.manual_seed(0)
    model = llama().train(False)
    model.get_output_embeddings = lambda: None
    (batch,) = micro_batches(rows(), token_budget=10**6, pad_id=0)
    found = target_states(model, batch)
    assert found.states.shape == (len(batch.target_ids), 31)
    torch.testing.assert_close(found.logits(found.states), whole_logits(model, batch), rtol=1e-5, atol=1e-5)


def test_the_plugin_names_a_stage_with_messages_and_a_reference() -> None:
    (spec,) = steelyard_distill.steelyard_stages()
    assert (spec.name, spec.data, spec.needs_reference) == ("distill", "messages", True)
    assert spec.models == ("teacher",) and spec.models_for_reference
    assert spec.impl.load() is Distill
    assert spec.config is not None and spec.config.load() is DistillConfig
