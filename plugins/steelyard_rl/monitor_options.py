"""What is watched for in a stage's rollouts; see :mod:`steelyard_rl.monitoring`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

__all__ = ["MonitorOptions", "PhraseOptions"]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _says_something(text: str) -> str:
    if not text.replace("*", "").strip():
        raise ValueError(f"the text {text!r} would be found in every line")
    return text


class PhraseOptions(_Section):
    """A text that this recipe's models have beaten a verifier with."""

    name: str = Field(min_length=1)
    """What flags call it."""
    text: Annotated[str, AfterValidator(_says_something)]
    """Looked for within each line, whatever its case and spacing; `*` stands for anything."""
    why: str = ""
    """What is wrong with it, for the evidence."""


class MonitorOptions(_Section):
    """What is watched for rewards that are earned by beating the verifier, and when the stage stops for it."""

    patterns: bool = True
    """Look for texts typical of an attack in answers judged correct (exits, frame walks, lists of alternatives, words to the judge …)."""
    phrases: tuple[PhraseOptions, ...] = ()
    """Further texts to look for."""
    canary: float = Field(default=0.05, ge=0, le=1)
    """Share of the answers judged correct that are checked again against a reference that nothing can satisfy, where their verifier can
    make one; passing it is proof. 0 switches it off. Rows with `canary: true` are watched in any case."""
    second: dict[str, str] = Field(default_factory=dict)
    """For a verifier of the stage, by name, another one of the stage's that checks its correct answers again. Where it says anything else,
    that is a flag; where it fails, nothing."""
    second_share: float = Field(default=1.0, gt=0, le=1)
    """Share of the answers judged correct that the second verifier checks."""
    failures: bool = True
    """Count time-outs and errors of the verifiers as flags too: a model can learn to hang what checks it."""
    max_flagged: float = Field(default=0.02, ge=0, le=1)
    """Share of what a monitor looked at above which the stage stops; 1 reports and never stops."""
    min_completions: int = Field(default=100, ge=1)
    """The number that share is taken of while a monitor has looked at fewer."""
    window: int = Field(default=1000, ge=1)
    """Answers back to which a monitor's share goes, so that what sets in late is seen."""
    heldout: bool = True
    """Stop when accuracy rises on the training prompts and not on the `heldout_prompts`, where there are some."""
    heldout_margin: float = Field(default=0.05, ge=0)
    """How much more the training prompts' accuracy may rise."""
    heldout_alpha: float = Field(default=0.01, gt=0, lt=0.5)
    """Chance of stopping for that by accident, in the whole stage."""
