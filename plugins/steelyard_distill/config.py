"""Configuration of the stage `distill`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Literal

from pydantic import ConfigDict, Field, model_validator

from steelyard.endpoint.config import EndpointConfig
from steelyard_torch.config import TrainingOptions

__all__ = ["DistillConfig", "TeacherServer"]

SAMPLED = "sampled_reverse_kl"


class TeacherServer(EndpointConfig):
    """A vLLM server that runs the teacher."""

    model: str = Field(min_length=1)
    """The teacher's name there."""
    timeout_s: float = Field(default=600.0, gt=0, allow_inf_nan=False)
    """Wall-clock seconds for one request, from connecting to the last byte."""
    deadline_s: float = Field(default=3600.0, gt=0, allow_inf_nan=False)
    """Wall-clock seconds for one answer with all its retries and pauses; past it the stage fails."""


class DistillConfig(TrainingOptions):
    model_config = ConfigDict(allow_inf_nan=False)

    divergence: Literal["forward_kl", "reverse_kl", "jsd", "sampled_reverse_kl"] = "forward_kl"
    """`forward_kl`: KL(teacher ‖ student), the student covers all that the teacher does; `reverse_kl`: KL(student ‖ teacher), the student
    keeps to what the teacher does most; `jsd`: the generalised Jensen–Shannon divergence between them; `sampled_reverse_kl`: the reverse
    one estimated at the tokens that the student sampled, for teachers that say no more than those tokens' log-probabilities."""
    beta: float = Field(default=0.5, ge=0, le=1)
    """Of `jsd`: the teacher's share in the mixture. By convention 0 is `forward_kl` and 1 is `reverse_kl`."""
    temperature: float = Field(default=1.0, gt=0)
    """Both models' logits are divided by it in the divergence. The loss is not multiplied by its square; put that into
    `divergence_coefficient`."""
    divergence_coefficient: float = Field(default=1.0, ge=0)
    """Weight of the divergence."""
    ce_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the cross-entropy on the conversations' own tokens, at temperature 1; never on what the student sampled."""
    teacher: Literal["model", "engine", "server"] = "model"
    """Where the teacher runs. `model`: the reference model beside the student, asked for whole distributions. `engine`: the reference model
    in an engine of the recipe's kind, such as vLLM, asked for the sampled tokens' log-probabilities. `server`: a vLLM server of its own."""
    server: TeacherServer | None = None
    """Of `teacher: server`: where it is."""
    top_k: int | None = Field(default=None, ge=1)
    """The teacher's most probable tokens that its distribution is known by, where it is not known whole: of `stored: true` and of
    `teacher: server`, whose server must allow as many (vLLM's `--max-logprobs`, 20 by default)."""
    tail: Literal["bucket", "renormalise", "ignore"] | None = None
    """With `top_k`, what becomes of the probability that is not in it. `bucket`, the default: of both models it is one class more.
    `renormalise`: both are scaled to 1 without it. `ignore`: it is left out of the sum, which then is no divergence."""
    stored: bool = False
    """Ask the teacher once for every conversation, keep its `top_k` in the run's cache, and train without it in memory."""
    on_policy_share: float = Field(default=0.0, ge=0, le=1)
    """The share of the optimiser steps, drawn by the seed, whose answers the student samples itself (λ of GKD). The others train on
    the conversations as they are."""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """Tokens of a sampled answer, its end token included."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Answers sampled for each prompt of a step."""
    sampling_temperature: float | None = Field(default=None, gt=0)
    """Of the student's sampling; 1 unless given."""
    batch_size: int = Field(default=128, gt=0)
    """Conversations, or prompts to answer, in an optimiser step."""
    epochs: float = Field(default=1, gt=0)
    """Passes over the dataset."""
    max_steps: int | None = Field(default=None, gt=0)
    """Stop after this many optimiser steps, whatever `epochs` says."""
    loss_reduction: Literal["token_mean", "sum", "sequence_mean"] = "token_mean"
    """How token losses become one: the mean over the trained tokens of the whole optimiser step; their sum; or the mean over
    sequences of each sequence's mean."""
    trained_turns: Literal["all", "last"] = "all"
    """Which of the assistant's turns are trained, of given conversations."""

    @property
    def reference_must_differ(self) -> bool:
        """Whether the reference model is the teacher, and no mere tokenizer."""
        return self.teacher != "server"

    def check_models(self, roles: Collection[str]) -> None:
        """Raises ValueError for a teacher that is named twice."""
        if "teacher" in roles and self.teacher == "server":
            raise ValueError("the teacher is on a server: take 'teacher' out of models")

    @model_validator(mode="after")
    def _something_to_learn(self) -> DistillConfig:
        if self.divergence_coefficient == 0 and self.ce_coefficient == 0:
            raise ValueError("divergence_coefficient and ce_coefficient are both 0, so there is nothing to learn")
        if self.beta != 0.5 and self.divergence != "jsd":
            raise ValueError(f"beta belongs to divergence 'jsd', and divergence is {self.divergence!r}")
        return self

    @model_validator(mode="after")
    def _sampling_that_happens(self) -> DistillConfig:
        if self.on_policy_share == 0:
            given = {"max_new_tokens": None, "samples_per_prompt": 1, "sampling_temperature": None}
            for name, unset in given.items():
                if getattr(self, name) != unset:
                    raise ValueError(f"{name} belongs to sampling, and on_policy_share is 0: the student samples nothing")
            return self
        if self.max_new_tokens is None:
            raise ValueError(f"on_policy_share {self.on_policy_share:g} needs max_new_tokens, the longest answer the student may sample")
        if self.max_new_tokens >= self.max_length:
            raise ValueError(f"max_new_tokens {self.max_new_tokens} leaves no room for a prompt in max_length {self.max_length}")
        if self.on_policy_share == 1 and self.ce_coefficient > 0:
            raise ValueError("ce_coefficient is for given conversations, and at on_policy_share 1 none is trained on")
        if self.on_policy_share == 1 and self.trained_turns != "all":
            raise ValueError("trained_turns is for given conversations, and at on_policy_share 1 none is trained on")
        return self

    @model_validator(mode="after")
    def _teacher_that_can_answer(self) -> DistillConfig:
        if (self.server is None) == (self.teacher == "server"):
            raise ValueError("teacher 'server' and the key `server`, with its url and model, belong together")
        sampled = self.divergence == SAMPLED
        if self.teacher == "engine" and not sampled:
            raise ValueError(
                f"an engine gives the log-probabilities of given tokens and no distributions, which divergence {self.divergence!r} needs: "
                f"take {SAMPLED!r}, or another teacher"
            )
        if self.stored and (self.teacher == "engine" or self.on_policy_share > 0 or self.top_k is None):
            raise ValueError(
                "stored: true needs top_k, a teacher that gives distributions, and on_policy_share 0, since what the student will sample "
                "is not known beforehand"
            )
        if self.teacher == "server" and self.top_k is None and not sampled:
            raise ValueError(f"teacher 'server' needs top_k, or divergence {SAMPLED!r}")
        if self.top_k is not None and (sampled or not (self.stored or self.teacher == "server")):
            raise ValueError("top_k belongs to `stored: true` or teacher 'server', with a divergence between distributions")
        if self.tail is not None and self.top_k is None:
            raise ValueError("tail belongs to top_k: without it the teacher's distributions are whole")
        if self.teacher != "model" and self.temperature != 1:
            raise ValueError(f"a teacher in an engine or on a server answers at temperature 1, and temperature is {self.temperature:g}")
        return self

    @model_validator(mode="after")
    def _estimate_on_policy(self) -> DistillConfig:
        if self.divergence != SAMPLED:
            return self
        if self.on_policy_share != 1:
            raise ValueError(f"divergence {SAMPLED!r} is an estimate at the student's own tokens: set on_policy_share to 1")
        if (self.sampling_temperature or 1.0) != self.temperature:
            raise ValueError(f"divergence {SAMPLED!r} needs sampling_temperature and temperature to be the same")
        return self
