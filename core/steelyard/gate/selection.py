"""Best of several checkpoints: chosen on one half of the items, tested on the other, so that luck in choosing is not
counted as gain."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from steelyard.errors import GateRefusal, UsageError
from steelyard.gate.items import Evaluation
from steelyard.gate.pairing import pair
from steelyard.gate.policy import PolicyConfig
from steelyard.gate.refusals import GateFacts, find_refusals
from steelyard.gate.statistics import average_difference, paired_difference
from steelyard.gate.verdict import Verdict
from steelyard.gate.weighing import NO_FACTS, Side, load_both, weigh

__all__ = ["Selection", "half", "weigh_best_of"]


@dataclass(frozen=True)
class Selection:
    """``chosen`` is the index of the best challenger on the first half, ``averages`` what each gained there (score
    units), ``verdict`` the chosen one's on the second half."""

    chosen: int
    averages: tuple[float, ...]
    verdict: Verdict


def weigh_best_of(champion: Side, challengers: Sequence[Side], policy: PolicyConfig, *, facts: GateFacts = NO_FACTS) -> Selection:
    """Chooses the challenger with the highest average on one half of the items and weighs it on the other half.

    The halves are drawn by a hash of task and item (or cluster), the same for every model. Raises :class:`GateRefusal`
    where a challenger cannot be weighed or a task has items in one half only. The first of equals is chosen.
    """
    if not challengers:
        raise UsageError("no challengers to choose from: give at least one evaluation")
    loaded = [load_both(champion, challenger, facts) for challenger in challengers]
    reasons = [f"{them.folder}: {reason}" for us, them in loaded for reason in find_refusals(us, them, policy, facts)]
    reasons += [] if reasons else _lopsided(loaded[0][0])
    if reasons:
        raise GateRefusal(reasons)
    averages = []
    for us, them in loaded:
        paired = pair(half(us, "choose"), half(them, "choose"))
        differences = {name: paired_difference(task, policy.alpha) for name, task in paired.items() if task.n}
        averages.append(average_difference(differences, policy.weights).diff)
    chosen = max(range(len(averages)), key=lambda index: (averages[index], -index))
    us, them = loaded[chosen]
    return Selection(chosen, tuple(averages), weigh(half(us, "test"), half(them, "test"), policy, facts=facts))


def half(evaluation: Evaluation, part: Literal["choose", "test"]) -> Evaluation:
    """One half of the items, the same in every evaluation of the suite; all samples of an item and all items of a
    cluster stay together."""
    clusters = {(item.task, item.id): item.cluster for item in evaluation.items if item.cluster is not None}
    wanted = 0 if part == "choose" else 1

    def side(task: str, id_: str) -> int:
        cluster = clusters.get((task, id_))
        name = f"{task}\x1fitem\x1f{id_}" if cluster is None else f"{task}\x1fcluster\x1f{cluster}"
        return hashlib.sha256(name.encode()).digest()[0] & 1

    return evaluation.with_items(tuple(item for item in evaluation.items if side(item.task, item.id) == wanted))


def _lopsided(evaluation: Evaluation) -> list[str]:
    halves = {part: set(half(evaluation, part).tasks) for part in ("choose", "test")}
    return [
        f"task {task!r} has too few items or clusters to be halved: add items, or weigh each checkpoint with "
        "`alpha_improve` divided by their number"
        for task in evaluation.tasks
        if any(task not in tasks for tasks in halves.values())
    ]
