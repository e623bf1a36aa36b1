"""A round's gate as the run sees it: the policy for this round and suite, what is known of the challenger, the decision."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.events import GateEvent
from steelyard.run.lineage import read_lineage

if TYPE_CHECKING:
    from steelyard.gate import GateFacts, PolicyConfig
    from steelyard.plugins import Registry
    from steelyard.recipe.schema import Recipe, Round
    from steelyard.recipe.suite import Suite

__all__ = ["gate_facts", "join_looks", "may_look_again", "policy_of_look", "round_policy", "weigh_round"]


def round_policy(recipe: Recipe, entry: Round, suite: Suite) -> PolicyConfig:
    """The policy of a round, with what the suite declares and the recipe leaves open."""
    from steelyard.recipe.looks import declared

    return recipe.policy_of(entry).with_declared(declared(suite))


def policy_of_look(policy: PolicyConfig, earlier: int) -> PolicyConfig:
    """The policy of a round that the run has decided ``earlier`` times before, of other models or data.

    Each look has half the levels of the one before it, the average's and the guards', so that all looks at a round, however many, have less
    than twice its levels: a guard that may be tried again and again would else be passed by luck in the end."""
    return policy.model_copy(update={"alpha_improve": policy.round_alpha / 2**earlier, "alpha": policy.alpha / 2**earlier})


def may_look_again(verdict: Mapping[str, Any]) -> bool:
    """Whether more samples or items could decide what this verdict leaves open. An objection they could not lift."""
    return verdict["decision"] == "inconclusive" and not verdict.get("objections")


def join_looks(inputs: Mapping[str, Path], output: Path) -> tuple[Path, Path]:
    """The evaluation folders that a look of a gate weighs, champion and challenger. What a further look has more of (``champion_more``,
    ``challenger_more``) is joined with the first look's other tasks, in ``output``, where ``steelyard gate`` finds it again.

    Errors: :class:`~steelyard.errors.GateRefusal`."""
    from steelyard.gate.items import join_evaluations

    if "champion_more" not in inputs:
        return inputs["champion"], inputs["challenger"]
    champion, challenger = (join_evaluations(inputs[side], inputs[f"{side}_more"], output / side) for side in ("champion", "challenger"))
    return champion, challenger


def gate_facts(challenger: Path, suites: Mapping[str, Suite]) -> GateFacts:
    """What the run knows of the challenger: every dataset in its ancestry, their certificates, the suites a gate must not see.

    That its weights are finite was proven when its artifact was committed."""
    from steelyard.gate.refusals import Certificate, GateFacts

    datasets = list(_datasets(read_lineage(challenger)))
    certificates = [
        Certificate(name, suite, str(version))
        for name, data in datasets
        for suite, version in ((data["certificate"] or {}).get("suites") or {}).items()
    ]
    return GateFacts(
        # Where the recipe keeps its data apart from no suite at all, the refusal has to say so.
        training_data=tuple(dict.fromkeys(name for name, _ in datasets)),
        certificates=tuple(dict.fromkeys(certificates)),
        unseen_suites=tuple(suite.name for role, suite in suites.items() if role == "unseen"),
        score_ranges={task.name: task.score_range for task in suites["dev"].tasks},
    )


def _datasets(lineage: Mapping[str, Any], run: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every dataset with its step, and before that the run it is of where that is another: two runs may use one name."""
    run = f"{lineage['outside']}, " if lineage.get("outside") else run
    if lineage.get("data"):
        yield run + lineage["data"]["step"], lineage["data"]
    for parent in lineage["parents"].values():
        yield from _datasets(parent, run)


def weigh_round(
    registry: Registry,
    policy: PolicyConfig,
    facts: GateFacts,
    *,
    run_dir: Path,
    round_name: str,
    champion: Path,
    challenger: Path,
    lineage: Mapping[str, Any],
) -> dict[str, Any]:
    """The content of ``verdict.json``. Plugins are asked for objections where the policy would promote, and the ``lineage`` of the
    challenger is searched for work that was done without a sandbox.

    Errors: :class:`~steelyard.errors.GateRefusal` with every reason why the two cannot be weighed."""
    from steelyard.gate.objections import sandbox_objections

    weigh = registry.load(registry.get("gate_policies", policy.policy))
    verdict = weigh(champion, challenger, policy, facts=facts)
    if verdict.decision == "promote":
        event = GateEvent(run_dir=run_dir, round=round_name, champion=champion, challenger=challenger, verdict=verdict.to_json())
        own = sandbox_objections(champion, challenger, lineage)
        verdict = verdict.with_objections([*own, *registry.objections(event)])
    content: dict[str, Any] = verdict.to_json()
    return content
