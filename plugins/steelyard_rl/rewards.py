"""From answers to rewards: verdicts of one or several verifiers, what they make together, and the shapers in the recipe's order."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from steelyard.errors import PluginError, VerifierError
from steelyard.protocols import Shaper, VerifierSet
from steelyard.records import Completion, Prompt, Rollout, Row, Verdict
from steelyard_rl.rollout_options import RewardOptions, RolloutOptions

__all__ = ["Judged", "combined_score", "is_scored", "is_truncated", "judge", "shaped"]


@dataclass(frozen=True)
class Judged:
    """An answer with what its verifiers say."""

    rollout: Rollout
    """Its verdict is that of the verifier that accuracy goes by, or the failure of any."""
    score: float | None
    """What the scores of all its verifiers make together; None where one failed."""
    scores: Mapping[str, float] = field(default_factory=dict)
    """The score by each verifier, where there are several."""
    looped: bool = False
    """It was cut where it went round in circles."""
    segments: tuple[tuple[int, int], ...] = ()
    """(version of the weights, how many tokens they sampled), in the order of the tokens."""


def judge(
    verifiers: VerifierSet, options: RewardOptions | None, asked: Sequence[tuple[Prompt, Row, Sequence[Completion]]]
) -> list[list[Judged]]:
    """The answers to each prompt with their verdicts; every verifier of every row is asked in one batch."""
    checks = [
        (name, completion, row["references"][name])
        for _, row, completions in asked
        for completion in completions
        for name in row["verifiers"]
    ]
    verdicts = iter(verifiers.verify(checks))
    groups = []
    for prompt, row, completions in asked:
        group = []
        for completion in completions:
            by_name = {name: next(verdicts) for name in row["verifiers"]}
            group.append(_judged(prompt, row, completion, by_name, options))
        groups.append(group)
    return groups


def combined_score(options: RewardOptions | None, scores: Mapping[str, float]) -> float:
    """What the scores of one answer make together.

    ``weights``: Σ weight · score. ``order``: the scores as the digits of a number, the first verifier's the highest, over the largest such
    number, so that answers compare as their scores do one after the other.

    Raises:
        VerifierError: a score to be ordered is not between 0 and 1.
    """
    if options is None or (options.order and len(scores) == 1):
        (score,) = scores.values()
        return score
    if options.weights:
        return math.fsum(options.weights[name] * score for name, score in scores.items())
    number, names = 0, [name for name in options.order if name in scores]
    for name in names:
        if not 0 <= scores[name] <= 1:
            raise VerifierError(f"reward.order takes scores from 0 to 1, and {name!r} gave {scores[name]!r}; use reward.weights")
        number = number * options.levels + math.floor(scores[name] * (options.levels - 1) + 0.5)
    return number / float(options.levels ** len(names) - 1)


def shaped(shapers: Sequence[Shaper], config: RolloutOptions, group: Sequence[Judged]) -> list[Rollout]:
    """One prompt's rollouts, all with a score, with their rewards, shaped in the recipe's order."""
    rollouts = [judged.rollout for judged in group]
    rewards = [_reward(config, judged) for judged in group]
    for shaper in shapers if rollouts else ():
        given = shaper.shape(rollouts, rewards)
        try:
            made = [float(reward) for reward in given]
        except (TypeError, ValueError):
            made = []
        if len(made) != len(rewards) or not all(map(math.isfinite, made)):
            raise PluginError(
                f"shaper {type(shaper).__name__!r} made {given!r} of {len(rewards)} rewards; it must give as many finite ones"
            )
        rewards = made
    return [replace(rollout, reward=reward) for rollout, reward in zip(rollouts, rewards, strict=True)]


def is_scored(rollout: Rollout) -> bool:
    """A verifier's failure is no score of 0, and what an engine gave up on is no answer."""
    return rollout.verdict.score is not None and rollout.completion.finish_reason != "abort"


def is_truncated(rollout: Rollout) -> bool:
    """Whether the answer was cut off before it ended."""
    return rollout.completion.finish_reason == "length"


def _judged(prompt: Prompt, row: Row, completion: Completion, verdicts: Mapping[str, Verdict], options: RewardOptions | None) -> Judged:
    failed = next((name for name, verdict in verdicts.items() if verdict.outcome.is_failure), None)
    if failed is not None:
        verdict = verdicts[failed]
        detail = verdict.detail if len(verdicts) == 1 else f"{failed}: {verdict.detail}"
        return Judged(Rollout(prompt, completion, replace(verdict, detail=detail)), None)
    scores = {name: verdict.score or 0.0 for name, verdict in verdicts.items()}
    rollout = Rollout(prompt, completion, verdicts[row["verifier"]])
    return Judged(rollout, combined_score(options, scores), scores if len(scores) > 1 else {})


def _reward(config: RolloutOptions, judged: Judged) -> float:
    if judged.looped and config.repetition is not None:
        return config.repetition.reward
    if is_truncated(judged.rollout) and config.truncated == "penalise":
        return config.truncation_reward
    assert judged.score is not None
    return config.reward_scale * judged.score
