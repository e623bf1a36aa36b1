"""Which prompts a stage of reinforcement learning trains on, and in what order; see :mod:`steelyard_rl.curriculum`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

__all__ = ["CurriculumOptions", "GuessOptions"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class CurriculumOptions(_Section):
    """Order and choice of prompts by how often their answers are right. A success rate is the mean score of the accuracy's verifier,
    between 0 and 1; no shaper touches it."""

    order: Literal["shuffled", "easy_first", "priority", "variance"] = "shuffled"
    """`shuffled`: every prompt once a pass, each pass in another seeded order. `easy_first`: every prompt once a pass, by falling success
    rate as it stands when the pass begins. `priority`: drawn with a chance in proportion to 1 − success rate (Kimi k1.5). `variance`:
    every prompt once a pass, by falling variance of its answers' rewards (Qwen2.5)."""
    pass_rate: str | None = Field(default=None, min_length=1)
    """Column with each prompt's success rate at the start, from 0 to 1."""
    variance: str | None = Field(default=None, min_length=1)
    """Column with the variance of each prompt's rewards, for `order: variance`."""
    measure: int | None = Field(default=None, ge=2)
    """Answers that the initial model gives to each prompt before training, for the success rates and variances that no column has (Kimi
    k1.5: 10)."""
    keep: tuple[float, float] | None = None
    """Lowest and highest success rate at the start, both included, of the prompts that are trained on; the others are left out, and
    counted (Open-R1: [0.1, 0.6])."""
    retire_at: float | None = Field(default=None, gt=0, le=1)
    """Prompts whose success rate in training has come to this are not taken again while it stays there (ScaleRL: 0.9)."""
    hard_from_step: int | None = Field(default=None, ge=0)
    """Rollout step, from 0, from which only prompts with a success rate of at most `hard_below` are taken (Kimi k1.5 compares with a
    uniform order until step 24)."""
    hard_below: float = Field(default=0.5, ge=0, lt=1)
    """That rate."""
    prior: float = Field(default=0.5, ge=0, le=1)
    """The success rate of a prompt about which nothing is known."""
    prior_weight: float = Field(default=4.0, gt=0)
    """Answers that the rate at the start (a column's, a measured one, or `prior`) counts for beside those of training."""
    memory: float = Field(default=1.0, gt=0, le=1)
    """What a prompt's earlier answers, the start's included, are multiplied by each time new ones come: below 1 old ones are forgotten."""
    floor: float = Field(default=0.05, gt=0, le=1)
    """Least weight of a prompt under `priority`, so that a mastered one comes up now and then."""

    @property
    def starts_from_rates(self) -> bool:
        """Whether success rates at the start are given or measured."""
        return self.pass_rate is not None or self.measure is not None

    @property
    def uses_running_rates(self) -> bool:
        """Whether what is taken depends on how training goes."""
        return self.order in ("easy_first", "priority") or self.retire_at is not None or self.hard_from_step is not None

    @model_validator(mode="after")
    def _dials_that_do_something(self) -> CurriculumOptions:
        if self.keep is not None:
            low, high = self.keep
            if not 0 <= low <= high <= 1:
                raise ValueError(f"keep is the lowest and highest success rate, from 0 to 1, not {list(self.keep)!r}")
            if not self.starts_from_rates:
                raise ValueError("keep needs success rates at the start: name their column as `pass_rate`, or set `measure`")
        if self.order == "variance" and self.variance is None and self.measure is None:
            raise ValueError("order 'variance' needs variances: name their column as `variance`, or set `measure`")
        if self.variance is not None and self.order != "variance":
            raise ValueError(f"variance is for order 'variance', and order is {self.order!r}")
        if self.pass_rate is not None and self.keep is None and not self.uses_running_rates:
            raise ValueError("pass_rate does nothing without `keep`, `retire_at`, `hard_from_step`, or order 'easy_first' or 'priority'")
        self._check_measure()
        self._check_running()
        return self

    def _check_measure(self) -> None:
        wanted = self.order == "variance" and self.variance is None
        wanted |= self.pass_rate is None and (self.keep is not None or self.uses_running_rates)
        if self.measure is not None and not wanted:
            raise ValueError("measure does nothing here: columns say all that is asked for, or nothing is")

    def _check_running(self) -> None:
        default = CurriculumOptions.model_fields
        changed = [name for name in ("prior", "prior_weight", "memory") if getattr(self, name) != default[name].default]
        if changed and not self.uses_running_rates:
            needs = "`retire_at`, `hard_from_step`, or order 'easy_first' or 'priority'"
            raise ValueError(f"{', '.join(changed)} does nothing without {needs}")
        if "prior" in changed and self.starts_from_rates:
            raise ValueError("prior does nothing where success rates at the start are given or measured")
        if self.floor != default["floor"].default and self.order != "priority":
            raise ValueError(f"floor is for order 'priority', and order is {self.order!r}")
        if self.hard_below != default["hard_below"].default and self.hard_from_step is None:
            raise ValueError("hard_below does nothing without `hard_from_step`")


class GuessOptions(_Section):
    """Leave out prompts that the initial model answers right without thinking (Kimi k1.5, arXiv 2501.12599, section 2.1)."""

    tries: int = Field(default=8, ge=1)
    """Answers without thinking, one of which must be right for the prompt to be left out."""
    max_new_tokens: int = Field(default=32, gt=0)
    """Tokens of such an answer."""
    temperature: float = Field(default=1.0, gt=0)
    """Of their sampling."""
    instruction: str = "Give the final answer alone, at once: no reasoning, no explanation."
    """Put behind the last user turn, on a line of its own; empty to leave it as it is."""
    template: dict[str, Any] = Field(default_factory=dict)
    """Variables of the chat template that switch thinking off, such as `{enable_thinking: false}`."""
    prefill: str = ""
    """Text that the answer is made to begin with, such as `<think>\\n\\n</think>\\n\\n` or `The answer is `; the verifier sees it too."""

    @model_validator(mode="after")
    def _some_way_not_to_think(self) -> GuessOptions:
        if not (self.instruction.strip() or self.template or self.prefill):
            raise ValueError("a guess needs something that keeps the model from thinking: `instruction`, `template` or `prefill`")
        return self
