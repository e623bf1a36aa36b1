"""What a rollout step samples, rewards and keeps; see `config.py` for the stages."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steelyard_rl.monitor_options import MonitorOptions, PhraseOptions
from steelyard_rl.prompt_options import CurriculumOptions, GuessOptions

__all__ = [
    "CurriculumOptions",
    "GuessOptions",
    "MonitorOptions",
    "PartialOptions",
    "PhraseOptions",
    "RepetitionOptions",
    "RewardOptions",
    "RolloutOptions",
]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class RewardOptions(_Section):
    """What several verifiers of one answer make its reward. A row names them as `verifiers`; without shapers the reward is `reward_scale`
    times what is made here."""

    weights: dict[str, float] = Field(default_factory=dict)
    """The reward is Σ weight · score over the row's verifiers, each of which has a weight here."""
    order: tuple[str, ...] = ()
    """The reward goes by the verifiers in this order: a later one decides only between answers that all earlier ones give the same score.
    From 0 (nothing right) to 1 (full marks by all)."""
    levels: int = Field(default=2, ge=2, le=1001)
    """Under `order`, scores from 0 to 1 are rounded to so many levels, 0 and 1 included, the half upwards."""
    accuracy: str | None = None
    """The verifier by which answers are right or wrong for accuracy, for groups without signal, for the curriculum and for the monitors.
    By default the first that the row names; rows that do not name this one go by their first too."""

    @model_validator(mode="after")
    def _one_way(self) -> RewardOptions:
        if bool(self.weights) == bool(self.order):
            raise ValueError("reward takes `weights` or `order`, one of them")
        if self.weights and not any(self.weights.values()):
            raise ValueError("every weight is 0, so that every reward would be")
        if len(set(self.order)) < len(self.order) or len(self.order) == 1:
            raise ValueError(f"order names two or more verifiers, each once, not {list(self.order)!r}")
        if self.levels != 2 and not self.order:
            raise ValueError("levels belongs to `order`")
        return self


class RepetitionOptions(_Section):
    """End answers that go round in circles. Engines sample on to the end of what they were asked for: an answer is looked at after
    `check_every` tokens, or after its part of a step, and cut where it was caught."""

    loop_tokens: int | None = Field(default=None, ge=8)
    """Tokens in a row that do nothing but repeat what stands up to `max_period` tokens before them, for an answer to be a loop."""
    max_period: int = Field(default=64, ge=1)
    """The longest piece whose repetition is looked for, in tokens."""
    confident_tokens: int | None = Field(default=None, ge=8)
    """Tokens in a row with a probability above `confidence`, for an answer to be a loop (MiniMax-M1: 3000)."""
    confidence: float = Field(default=0.99, gt=0, lt=1)
    """That probability, in the distribution that is sampled from."""
    reward: float = 0.0
    """The reward of such an answer, before shapers; its verdict stays what the verifier says of the tokens up to the cut."""
    check_every: int | None = Field(default=None, ge=16)
    """Tokens after which sampling pauses to look, so that a caught answer costs no more of them. Each pause reads the answers so far
    anew. Without it an answer is looked at when it has ended, or its `partial.budget` has."""

    @model_validator(mode="after")
    def _something_to_look_for(self) -> RepetitionOptions:
        if self.loop_tokens is None and self.confident_tokens is None:
            raise ValueError("repetition looks for nothing: set `loop_tokens` or `confident_tokens`")
        if self.loop_tokens is not None and self.loop_tokens < 2 * self.max_period:
            raise ValueError(f"loop_tokens {self.loop_tokens} is less than twice max_period {self.max_period}: a piece would hardly repeat")
        if self.max_period != 64 and self.loop_tokens is None:
            raise ValueError("max_period belongs to `loop_tokens`")
        if self.confidence != 0.99 and self.confident_tokens is None:
            raise ValueError("confidence belongs to `confident_tokens`")
        return self


class PartialOptions(_Section):
    """Partial rollouts (Kimi k1.5, arXiv 2501.12599, section 2.6.2): long answers are written over several rollout steps."""

    budget: int = Field(gt=0)
    """Tokens that an answer may get in one rollout step. One that has not ended is kept, and goes on in the next step from there, up to
    `max_new_tokens` in all; its group is trained on when all its answers have ended."""
    stale: Literal["mask", "keep"] = "mask"
    """What becomes of the tokens that an answer got before the step in which it ended: no loss on them; or they are trained on, by the
    log-probabilities that they were sampled with. An answer that ended and waited for its group is trained on whole."""


class RolloutOptions(BaseModel):
    """Prompts, sampling, rewards, and which groups are trained on."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    steps: int = Field(gt=0)
    """Rollout steps: each samples, verifies and trains once."""
    prompts_per_step: int = Field(default=16, gt=0)
    """Prompts whose groups are trained on in a rollout step; with `partial`, prompts that are begun, which in the mean is the same."""
    samples_per_prompt: int = Field(default=8, ge=1)
    """Answers in a group (G). One is enough only where an answer's advantage does not come from its group."""
    max_new_tokens: int = Field(default=1024, gt=0)
    """Tokens of an answer, its end token included."""
    max_prompt_length: int = Field(default=2048, gt=0)
    """Prompts of more tokens are left out, and counted."""
    temperature: float = Field(default=1.0, gt=0)
    """Of sampling, and of the log-probabilities that are trained. There is no top-p or top-k here: a truncated distribution that the
    trainer does not share would bias every ratio."""
    curriculum: CurriculumOptions = Field(default_factory=CurriculumOptions)
    """Which prompts are taken, and in what order."""
    guess: GuessOptions | None = None
    """Leave out prompts that are answered right without thinking."""
    reward: RewardOptions | None = None
    """How several verifiers of one row make a reward."""
    reward_scale: float = Field(default=1.0, gt=0)
    """The reward of full marks (Tülu 3: 10)."""
    drop_without_signal: bool = True
    """Leave out groups whose answers are all right or all wrong, judged by the verifier and not by shaped rewards."""
    max_refills: float = Field(default=3.0, ge=0)
    """Further prompts that may be sampled in a rollout step to replace such groups, as a multiple of `prompts_per_step`."""
    generation_batch: int | None = Field(default=None, gt=0)
    """Prompts that are sampled at a time, more than `prompts_per_step`, until that many groups are there (DAPO: 1536 for 512). By default
    as many as are missing, up to `max_refills`."""
    max_generation_batches: int = Field(default=10, ge=1)
    """Such batches in a rollout step, after which it goes on with the groups it has (DAPO: 10)."""
    surplus: Literal["drop", "keep"] = "drop"
    """Groups of a generation batch beyond `prompts_per_step`: dropped (as DAPO's code does), or kept for the next rollout step, one
    policy late."""
    max_empty_steps: int = Field(default=10, ge=1)
    """Rollout steps in a row without any group to learn from before the stage stops."""
    partial: PartialOptions | None = None
    """Write long answers over several rollout steps."""
    truncated: Literal["mask", "penalise", "keep"] = "mask"
    """What becomes of answers cut off at `max_new_tokens`: no loss on them, though they count in their group's mean; a reward of
    `truncation_reward`; or nothing."""
    truncation_reward: float = 0.0
    """The reward of a cut-off answer under `penalise`."""
    repetition: RepetitionOptions | None = None
    """End answers that go round in circles."""
    monitors: MonitorOptions = Field(default_factory=MonitorOptions)
    """What is watched for signs of reward hacking."""
    heldout_prompts: int = Field(default=0, ge=0)
    """Prompts, drawn by the seed, that are never trained on but sampled and verified now and then, for `rl/heldout_accuracy`."""
    heldout_every: int = Field(default=10, ge=1)
    """Rollout steps from one such look to the next."""

    @model_validator(mode="after")
    def _rollout_dials_that_do_something(self) -> RolloutOptions:
        if self.truncation_reward != 0 and self.truncated != "penalise":
            raise ValueError(f"truncation_reward belongs to truncated 'penalise', and truncated is {self.truncated!r}")
        if self.heldout_every != 10 and not self.heldout_prompts:
            raise ValueError(f"heldout_every {self.heldout_every} does nothing without heldout_prompts")
        self._check_generation_batch()
        if self.partial is not None and self.partial.budget >= self.max_new_tokens:
            raise ValueError(
                f"partial.budget {self.partial.budget} leaves nothing to go on with: max_new_tokens is {self.max_new_tokens}; "
                "lower it, or leave `partial` out"
            )
        self._check_repetition()
        hard = self.curriculum.hard_from_step
        if hard is not None and hard >= self.steps:
            raise ValueError(f"curriculum.hard_from_step {hard} is never reached: the stage has {self.steps} rollout steps, from 0")
        return self

    def _check_generation_batch(self) -> None:
        if self.generation_batch is None:
            for name, default in (("max_generation_batches", 10), ("surplus", "drop")):
                if getattr(self, name) != default:
                    raise ValueError(f"{name} belongs to `generation_batch`, which is not set")
            return
        if self.generation_batch < self.prompts_per_step:
            raise ValueError(f"generation_batch {self.generation_batch} is less than prompts_per_step {self.prompts_per_step}")
        if self.max_refills != 3.0:
            raise ValueError("max_refills does nothing with `generation_batch`; the limit is `max_generation_batches`")
        if self.partial is not None:
            raise ValueError("generation_batch and partial do not go together: with `partial` a step begins prompts_per_step prompts")

    def _check_repetition(self) -> None:
        looks = self.repetition
        if looks is None:
            return
        for name in ("loop_tokens", "confident_tokens"):
            if (tokens := getattr(looks, name)) is not None and tokens > self.max_new_tokens:
                raise ValueError(f"repetition.{name} {tokens} is never reached: max_new_tokens is {self.max_new_tokens}")
        limit = self.max_new_tokens if self.partial is None else self.partial.budget
        if looks.check_every is not None and looks.check_every >= limit:
            raise ValueError(f"repetition.check_every {looks.check_every} does nothing: answers get {limit} tokens at most at a time")
