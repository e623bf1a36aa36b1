"""How a rollout step's groups become advantages, a loss and optimiser steps; see `config.py` for the stages."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steelyard_rl.presets import GIVES_WAY, PRESETS, Preset

__all__ = ["PolicyOptions"]


class PolicyOptions(BaseModel):
    """Advantages, loss, and the optimiser steps on a rollout step. A preset fills in what is not given."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    preset: Preset = "grpo"
    """The published method whose dials are the defaults; whatever else is given goes before it."""

    advantage: Literal["group_mean", "leave_one_out", "log_partition", "none", "gae"] = "group_mean"
    """What is taken off a reward: its group's mean; the mean of the group's others; τ log mean e^(R/τ) of the group; nothing, each token
    being credited with what comes after it; or, token by token, what a value model expected (PPO)."""
    scale_by_std: bool = True
    """Divide centred rewards by their standard deviation; off for Dr. GRPO."""
    std_scope: Literal["group", "step"] = "group"
    """The rewards that standard deviation is of: the group's, or all of the rollout step."""
    std_ddof: Literal[0, 1] = 1
    """Degrees of freedom taken off in that standard deviation."""
    std_eps: float = Field(default=1e-6, ge=0)
    """Added to that standard deviation. Stacks differ: 1e-4 in TRL, 1e-8 in open-instruct."""
    whiten: bool = False
    """Bring the advantages of all trained tokens of a rollout step to mean 0 and variance 1."""
    gamma: float = Field(default=1.0, ge=0, le=1)
    """Discount from token to token, where tokens have advantages of their own (`none`, `gae`)."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """λ of generalised advantage estimation."""

    objective: Literal["clip", "cispo", "mirror_descent"] = "clip"
    """−min(r A, clip(r) A); −sg[clip(r)] A log π, which keeps every token's gradient; or the squared surrogate of a whole answer."""
    importance: Literal["token", "sequence", "sequence_token", "trajectory"] = "token"
    """What the ratio r of new to old probability is of: a token; the answer's geometric mean (GSPO); the same in value, but with each
    token's own gradient (GSPO-token); or the whole answer, the product of its tokens' (RLOO)."""
    clip_low: float | None = Field(default=0.2, gt=0)
    """How far below 1 the ratio still earns; null does not clip there."""
    clip_high: float | None = Field(default=0.2, gt=0)
    """How far above 1 it does; null does not clip there. GSPO's widths are some thousand times smaller than a token's."""
    dual_clip: float | None = Field(default=None, gt=1)
    """The largest ratio that counts where the advantage is negative (c of dual-clip PPO)."""
    ratio_cap: float | None = Field(default=None, gt=0)
    """CISPO's upper bound of the ratio itself; `clip_high` would be the width above 1. Give one of them."""
    tau: float | None = Field(default=None, gt=0)
    """τ of `mirror_descent` and `log_partition`. It weighs a squared sum over all tokens of an answer, so it depends on their length; no
    value is published."""
    loss_reduction: Literal["sequence_mean", "token_mean", "constant", "prompt_mean"] = "sequence_mean"
    """Mean over sequences of token means (GRPO); mean over tokens (DAPO); mean over sequences of token sums over a constant length
    (Dr. GRPO); mean over prompts of the mean over their tokens."""
    loss_scope: Literal["step", "micro_batch"] = "step"
    """Over what `token_mean` is taken: the optimiser step, whatever its cut into micro-batches and ranks; or each micro-batch, whose means
    are then averaged. The latter makes the result depend on `micro_batch_tokens`, and weighs tokens by how few there are in their
    micro-batch; some published runs did it."""
    constant_length: int | None = Field(default=None, gt=0)
    """The length that `constant` divides by; `max_new_tokens` unless given."""

    kl_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the KL divergence from the reference; at 0 no reference is loaded."""
    kl_in: Literal["loss", "reward"] = "loss"
    """Where it counts: added to each token's loss, or taken off the reward, of the token where tokens have advantages of their own and
    summed over the answer elsewhere."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """With d = log π − log π_ref: d, d²/2, or e^−d − 1 + d."""
    kl_importance: bool = False
    """Multiply the estimator in the loss by the ratio of new to old probability, which makes its gradient unbiased (DeepSeek-V3.2)."""
    kl_clamp: float = Field(default=40.0, gt=0)
    """|d| counts for no more than this."""
    reference_refresh: int | None = Field(default=None, gt=0)
    """Renew the reference from the policy every so many optimiser steps, at the next rollout step (R1-Zero: 400)."""
    reference_mix: float = Field(default=1.0, gt=0, le=1)
    """Share of the policy in the renewed reference, the rest being the old one; 1 replaces it, less is a Polyak average."""

    entropy_coefficient: float = Field(default=0.0, ge=0)
    """Weight of the tokens' mean entropy in the loss, which keeps it up."""
    entropy_target: float | None = Field(default=None, gt=0)
    """Entropy in nats to be steered to: the coefficient grows by `entropy_change` after an optimiser step below it and falls after one
    above it, and counts only below it (Skywork-OR1)."""
    entropy_change: float = Field(default=0.005, gt=0)
    """The change of the coefficient from one optimiser step to the next, where there is a target."""

    old_logprobs: Literal["trainer", "engine"] = "trainer"
    """Whose log-probabilities the ratio is against: the trainer's own under the weights that sampled, or those the engine sampled with."""
    correction: Literal["none", "truncate", "mask"] = "none"
    """Weigh a token's loss by its probability under the trainer over that under the engine: held within bounds, or 0 outside of them."""
    correction_level: Literal["token", "sequence", "geometric"] = "token"
    """Whether that ratio is of a token, of the whole answer (a product), or the answer's geometric mean."""
    correction_bounds: tuple[float, float | None] | None = None
    """The bounds; (0, 2) for `truncate` and (0.5, 2) for `mask` unless given. A lower one of 0 and a higher one of null bound
    nothing."""
    off_policy_mask: float | None = Field(default=None, gt=0)
    """Leave out answers with a negative advantage whose mean log-ratio of sampling to current probability is above this (DeepSeek-V3.2)."""

    minibatches: int = Field(default=1, gt=0)
    """Parts of a rollout step's groups, drawn by the seed, each trained on in an optimiser step of its own; above 1 the later ones are
    off-policy and clipped."""
    epochs: int = Field(default=1, gt=0)
    """Passes over a rollout step's groups, each in other parts."""
    reset_optimiser: bool = False
    """Forget the optimiser's moments before each rollout step, whose objective is another one (Kimi k1.5)."""
    fp32_head: bool = False
    """Compute the logits in float32 under bf16 too (MiniMax-M1)."""
    max_logprob_gap: float | None = Field(default=None, gt=0)
    """Mean absolute difference between the engine's and the trainer's log-probabilities above which the stage stops."""

    value_clip: float | None = Field(default=0.2, gt=0)
    """How far a token's value may move from the one before the rollout step's training; null does not clip."""
    value_coefficient: float = Field(default=0.1, gt=0)
    """Weight of the value model's squared error. It has an optimiser of its own, so this only counts against `max_grad_norm`."""
    value_lr: float | None = Field(default=None, gt=0)
    """The value model's peak learning rate; `lr` unless given."""

    @model_validator(mode="before")
    @classmethod
    def _preset_fills(cls, given: Any) -> Any:
        if not isinstance(given, Mapping):
            return given
        preset = given.get("preset", cls.model_fields["preset"].default)
        # What is no name at all is for the field's own check to refuse.
        values = PRESETS.get(preset, {}) if isinstance(preset, str) else {}
        displaced = {name for name, other in GIVES_WAY.items() if other in given and given[other] != values.get(other)}
        return {**{name: value for name, value in values.items() if name in cls.model_fields and name not in displaced}, **given}

    @property
    def per_token(self) -> bool:
        """Whether the tokens of an answer have advantages of their own."""
        return self.advantage in {"none", "gae"}

    @property
    def bounds(self) -> tuple[float, float]:
        """Of the correction."""
        low, high = self.correction_bounds or ((0.0, 2.0) if self.correction == "truncate" else (0.5, 2.0))
        return low, math.inf if high is None else high

    @model_validator(mode="after")
    def _policy_dials_agree(self) -> PolicyOptions:
        if self.objective == "cispo" and (self.clip_high is None) == (self.ratio_cap is None):
            raise ValueError("objective 'cispo' needs an upper bound: clip_high (above 1) or ratio_cap (of the ratio itself), not both")
        if self.objective == "cispo" and self.importance in {"sequence_token", "trajectory"}:
            raise ValueError(
                f"objective 'cispo' weighs log-probabilities by a ratio without gradient, so importance is "
                f"'token' or 'sequence', not {self.importance!r}"
            )
        if self.clip_low is not None and self.clip_low > 1:
            raise ValueError(f"clip_low {self.clip_low!r} is more than 1, below which no ratio falls; say null for no clip")
        if self.dual_clip is not None and self.dual_clip <= 1 + (self.clip_high or 0):
            raise ValueError(f"dual_clip {self.dual_clip!r} must be above 1 + clip_high")
        needs_tau = self.objective == "mirror_descent" or self.advantage == "log_partition"
        if needs_tau and self.tau is None:
            raise ValueError("mirror_descent and log_partition need a tau; none is published, and longer answers need a smaller one")
        if self.objective == "mirror_descent" and (self.per_token or self.whiten):
            raise ValueError("objective 'mirror_descent' takes one advantage an answer: not `none` or `gae`, and no whitening of tokens")
        if self.objective == "mirror_descent" and self.correction != "none" and self.correction_level == "token":
            raise ValueError("objective 'mirror_descent' is of whole answers, and so needs correction_level 'sequence' or 'geometric'")
        if self.per_token and self.scale_by_std:
            raise ValueError(
                f"scale_by_std is of groups, and advantage is {self.advantage!r}; say scale_by_std: false, and perhaps whiten: true"
            )
        low, high = self.bounds
        if not 0 <= low < high:
            raise ValueError(f"correction_bounds {self.correction_bounds!r} must be a lower and a higher number, neither negative")
        return self

    @model_validator(mode="after")
    def _policy_dials_that_do_something(self) -> PolicyOptions:
        preset = PRESETS[self.preset]
        for names, matters, where in self._where_dials_matter():
            for name in names:
                value = getattr(self, name)
                default = type(self).model_fields[name].default
                if not matters and value != default and value != preset.get(name, default):
                    raise ValueError(f"{name} {value!r} does nothing here: it belongs to {where}")
        return self

    def _where_dials_matter(self) -> list[tuple[tuple[str, ...], bool, str]]:
        """Dials, whether they do something with the others as they are, and when they do."""
        mirror, kl, corrected = self.objective == "mirror_descent", self.kl_coefficient > 0, self.correction != "none"
        return [
            (("constant_length",), self.loss_reduction == "constant", "loss_reduction 'constant'"),
            (
                ("loss_scope",),
                self.loss_reduction == "token_mean" and not mirror,
                "loss_reduction 'token_mean', of objectives 'clip' and 'cispo'",
            ),
            (("std_scope", "std_ddof", "std_eps"), self.scale_by_std, "scale_by_std"),
            (("gamma",), self.per_token, "advantage 'none' or 'gae'"),
            (("gae_lambda", "value_clip", "value_coefficient", "value_lr"), self.advantage == "gae", "advantage 'gae'"),
            (("tau",), mirror or self.advantage == "log_partition", "objective 'mirror_descent' or advantage 'log_partition'"),
            (("importance", "clip_low", "clip_high", "loss_reduction"), not mirror, "objectives 'clip' and 'cispo'"),
            (
                ("kl_coefficient",),
                not (mirror and self.kl_in == "loss"),
                "the other objectives: τ holds this one to the policy that sampled",
            ),
            (("dual_clip",), self.objective == "clip", "objective 'clip'"),
            (("ratio_cap",), self.objective == "cispo", "objective 'cispo'"),
            (("kl_in", "kl_estimator", "kl_clamp", "reference_refresh"), kl, "a kl_coefficient above 0"),
            (("kl_importance",), kl and self.kl_in == "loss", "a kl_coefficient above 0 with kl_in 'loss'"),
            (("reference_mix",), self.reference_refresh is not None, "reference_refresh"),
            (("entropy_target",), self.entropy_coefficient > 0, "an entropy_coefficient above 0, with which it starts"),
            (("entropy_change",), self.entropy_target is not None, "entropy_target"),
            (("correction_level", "correction_bounds"), corrected, "correction 'truncate' or 'mask'"),
            (("correction",), self.old_logprobs == "trainer", "old_logprobs 'trainer': the engine's need no correction"),
        ]
