"""The stage `distill`: a student learns a teacher's token distributions on the trained tokens of given conversations.

Loss of a token: ``divergence_coefficient · D(teacher, student) + ce_coefficient · −log student(y_t)``, with D as in
:mod:`steelyard_distill.divergences`. The teacher is the stage's reference model; its logits are computed as they are needed.
"""

from __future__ import annotations

from collections import defaultdict

import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from steelyard.errors import ModelError
from steelyard.protocols import StageContext
from steelyard.records import StageResult
from steelyard_distill.config import DistillConfig
from steelyard_distill.divergences import token_divergences
from steelyard_distill.target_logits import target_logits
from steelyard_torch.batching import MicroBatch, StepSampler, StepTotals, count_targets, micro_batches
from steelyard_torch.losses import sft_loss
from steelyard_torch.models import check_vocabulary, load_model, load_tokenizer, weights_sha256
from steelyard_torch.templates import check_template, template_hash
from steelyard_torch.trainee import Trainee, memory_errors

__all__ = ["Distill"]


class Distill:
    """Trains on rows with ``messages``."""

    def __init__(self, config: DistillConfig):
        self._config = config

    def run(self, context: StageContext) -> StageResult:
        config = self._config
        trainee = Trainee(context, config, dropout=False)
        teacher = _teacher(trainee, config)
        encoded = trainee.conversations(max_length=config.max_length, on_too_long=config.on_too_long, trained_turns=config.trained_turns)
        data = encoded.rows
        context.io.log(encoded.stats.describe())
        sampler = StepSampler(
            [len(row) for row in data], batch_size=config.batch_size, seed=context.seed, epochs=config.epochs, max_steps=config.max_steps
        )
        trainee.schedule(sampler.total_steps)
        position = trainee.resume()
        if position is not None:
            sampler.resume(position)
        while trainee.step < sampler.total_steps:
            rows = [data[i] for i in sampler.rows(trainee.step)]
            totals = count_targets(rows)
            loss_value, metrics = 0.0, defaultdict[str, float](float)
            for batch in micro_batches(
                rows, token_budget=config.micro_batch_tokens, pad_id=trainee.tokenizer.pad_token_id, device=trainee.runtime.device
            ):
                with memory_errors(padded_tokens=batch.padded_tokens, options=config):
                    loss_value += _backward(trainee, teacher, config, batch, totals, metrics)
            trainee.update(
                loss_value,
                tokens=sum(len(row) for row in rows),
                trained_tokens=totals.tokens,
                sequences=len(rows),
                metrics={**{f"distill/{name}": value for name, value in metrics.items()}, "train/epoch": sampler.epoch(trainee.step + 1)},
            )
            trainee.rest(sampler.state(trainee.step))
        return trainee.finish({"data": encoded.stats.to_json(), "divergence": config.divergence})


def _backward(
    trainee: Trainee,
    teacher: PreTrainedModel,
    config: DistillConfig,
    batch: MicroBatch,
    totals: StepTotals,
    metrics: defaultdict[str, float],
) -> float:
    """Loss and gradients of one micro-batch; adds its share of the step's metrics (means over the step's trained tokens)."""
    with trainee.runtime.autocast():
        with torch.no_grad():
            theirs = target_logits(teacher, batch)
        mine = target_logits(trainee.model, batch)
    divergence = token_divergences(mine, theirs, divergence=config.divergence, beta=config.beta, temperature=config.temperature)
    cross_entropy = F.cross_entropy(mine.float(), batch.target_ids, reduction="none")
    per_token = config.divergence_coefficient * divergence + config.ce_coefficient * cross_entropy
    # The reductions of a cross-entropy serve any loss of a token: they take its negative.
    loss = sft_loss(-per_token, batch.target_rows, len(batch), reduction=config.loss_reduction, totals=totals)
    loss.backward()  # type: ignore[no-untyped-call]
    with torch.no_grad():
        measured = {
            "divergence": divergence,
            "cross_entropy": cross_entropy,
            "teacher_cross_entropy": F.cross_entropy(theirs.float(), batch.target_ids, reduction="none"),
            "agreement": (mine.argmax(dim=-1) == theirs.argmax(dim=-1)).float(),
        }
        for name, values in measured.items():
            metrics[name] += float(values.sum()) / max(totals.tokens, 1)
    return float(loss.item())


def _teacher(trainee: Trainee, config: DistillConfig) -> PreTrainedModel:
    """The reference model in evaluation mode, without gradients; refused unless it reads the same tokens under the same template."""
    context = trainee.context
    if context.reference is None:
        raise ModelError("stage 'distill' needs a teacher: name it by `reference:` (champion, base, previous or stage:NAME)")
    if config.ce_coefficient == 0 and weights_sha256(context.reference) == weights_sha256(context.model):
        raise ModelError("the teacher has the student's own weights, so there is nothing to learn; name another model by `reference:`")
    remote = bool(context.options.get("trust_remote_code"))
    tokenizer = load_tokenizer(context.reference, allow_remote_code=remote)
    if tokenizer.get_vocab() != trainee.tokenizer.get_vocab():
        raise ModelError(
            f"the teacher has another vocabulary than the student ({len(tokenizer):,} and {len(trainee.tokenizer):,} tokens), so their "
            "distributions cannot be compared; take a teacher with the student's tokenizer, or train on its texts by `sft`"
        )
    check_template(template_hash(trainee.tokenizer), tokenizer, where="the teacher")
    teacher = load_model(context.reference, device=str(trainee.runtime.device), allow_remote_code=remote)
    check_vocabulary(teacher, tokenizer)
    return teacher.requires_grad_(False)
