"""Watches a stage's rollouts for rewards that are earned by beating the verifier; see :mod:`steelyard.verify.monitors`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from steelyard.errors import VerifierError, nearest
from steelyard.protocols import StageContext
from steelyard.records import Completion, Outcome, Prompt, Rollout, Row, Verdict, derive_seed
from steelyard.verify.monitors import AttackPhrase, Flag, HeldoutWatch, PatternScan, Watch, reads_thinking
from steelyard_rl.rewards import is_scored
from steelyard_rl.rollout_options import RolloutOptions

__all__ = ["Monitors", "is_scored"]

_MOST_HELDOUT_EVIDENCE = 50


@dataclass
class _Tally:
    """What a monitor saw in a rollout step."""

    checked: int = 0
    flags: list[Flag] = field(default_factory=list)


@dataclass(frozen=True)
class _Recheck:
    """A second look at an answer that was judged correct."""

    monitor: str
    row: Row
    rollout: Rollout
    verifier: str
    reference: Any


class Monitors:
    """The monitors of one stage: they look at every batch of rollouts, and conclude once a rollout step."""

    def __init__(self, context: StageContext, config: RolloutOptions):
        options = config.monitors
        _require_known(options.second, context.verifiers.names())
        self._context, self._options = context, options
        self._kinds: Mapping[str, str] = context.options.get("verifier_kinds") or {}
        given: Mapping[str, Mapping[str, Any]] = context.options.get("verifier_options") or {}
        self._thinking = frozenset(name for name, one in given.items() if reads_thinking(one))
        phrases = [AttackPhrase(phrase.name, phrase.text, phrase.why) for phrase in options.phrases]
        self._scan = PatternScan(phrases, built_in=options.patterns) if options.patterns or phrases else None
        self._watch = Watch(
            max_flagged=options.max_flagged,
            min_checked=options.min_completions,
            window=options.window,
            evidence=context.evidence,
        )
        self._heldout = _heldout_watch(config) if config.heldout_prompts else None
        self._tallies: defaultdict[str, _Tally] = defaultdict(_Tally)
        self._means: list[float] = []
        self._measured: dict[str, float] = {}

    def look(self, rows: Sequence[Row], groups: Sequence[Sequence[Rollout]]) -> None:
        """Takes a batch of rollouts into account: one row and group for each prompt."""
        again: list[_Recheck] = []
        for row, rollouts in zip(rows, groups, strict=True):
            correct = [rollout for rollout in rollouts if is_scored(rollout) and rollout.verdict.outcome is Outcome.CORRECT]
            self._count_failures(row, rollouts)
            if row.get("canary"):
                self._count_canary_row(row, rollouts, correct)
                continue
            scores = [rollout.verdict.score or 0.0 for rollout in rollouts if is_scored(rollout)]
            if scores:
                self._means.append(sum(scores) / len(scores))
            for rollout in correct:
                self._find_patterns(row, rollout)
                again.extend(self._rechecks(row, rollout))
        verdicts = self._context.verifiers.verify([(check.verifier, check.rollout.completion, check.reference) for check in again])
        for check, verdict in zip(again, verdicts, strict=True):
            self._count_recheck(check, verdict)

    def conclude(self) -> dict[str, float]:
        """Ends a rollout step: what was measured. Raises :class:`VerifierError` when a monitor flags too much."""
        for name, tally in self._tallies.items():
            self._watch.count(name, tally.checked, tally.flags)
        if self._heldout is not None:
            self._heldout.train(self._means)
        measured = {f"monitor/{name}": rate for name, rate in self._watch.rates().items()} | self._measured
        self._tallies.clear()
        self._means, self._measured = [], {}
        self._watch.check()
        return measured

    def look_at_heldout(self, heldout: Sequence[tuple[Prompt, Row]], groups: Sequence[Sequence[Rollout]]) -> None:
        """Takes the groups of the held-out prompts into account. Raises :class:`VerifierError` when accuracy rises in training alone."""
        means: list[float | None] = []
        for rollouts in groups:
            scores = [rollout.verdict.score or 0.0 for rollout in rollouts if is_scored(rollout)]
            means.append(sum(scores) / len(scores) if scores else None)
        known = [mean for mean in means if mean is not None]
        if known:
            self._measured["rl/heldout_accuracy"] = sum(known) / len(known)
        rises = self._heldout.look(means) if self._heldout is not None else None
        if rises is None:
            return
        self._measured["monitor/heldout"] = rises.training - rises.heldout
        if self._options.heldout and rises.is_significant:
            what = (
                f"sees accuracy risen by {rises.training:.3f} on the training prompts and by {rises.heldout:.3f} on {len(known):,} "
                f"prompts kept out of training (z {rises.z:.1f} beyond heldout_margin, the limit is {rises.critical:.1f})"
            )
            self._watch.keep({"monitor": "heldout", "why": what, "heldout": means})
            for (_, row), rollouts in list(zip(heldout, groups, strict=True))[:_MOST_HELDOUT_EVIDENCE]:
                self._watch.keep(self._flag("heldout", "held out", row, rollouts[0]).to_json())
            self._watch.stop("heldout", what)

    def state(self) -> dict[str, Any]:
        """All that later rollout steps depend on, as JSON, for a checkpoint."""
        return {"watch": self._watch.state(), "heldout": self._heldout.state() if self._heldout is not None else None}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state`; from the start where it is empty."""
        if state:
            self._watch.restore(state["watch"])
            if self._heldout is not None:
                self._heldout.restore(state["heldout"])

    def _count_failures(self, row: Row, rollouts: Sequence[Rollout]) -> None:
        if not self._options.failures:
            return
        tally = self._tallies["failures"]
        tally.checked += len(rollouts)
        for rollout in rollouts:
            if rollout.verdict.outcome.is_failure:
                why = f"its verifier failed ({rollout.verdict.outcome.value})"
                tally.flags.append(self._flag("failures", why, row, rollout))

    def _count_canary_row(self, row: Row, rollouts: Sequence[Rollout], correct: Sequence[Rollout]) -> None:
        tally = self._tallies["canary_rows"]
        tally.checked += sum(is_scored(rollout) for rollout in rollouts)
        why = "it passed a task that the data says cannot be solved"
        tally.flags.extend(self._flag("canary_rows", why, row, rollout) for rollout in correct)

    def _find_patterns(self, row: Row, rollout: Rollout) -> None:
        if self._scan is None:
            return
        tally = self._tallies["patterns"]
        tally.checked += 1
        name = row["verifier"]
        found = self._scan.find(self._kinds.get(name), rollout.completion.text, row["reference"], thinking=name in self._thinking)
        if found:
            excerpts = {finding.name: finding.excerpt for finding in found}
            tally.flags.append(self._flag("patterns", f"{found[0].why} ({found[0].name!r})", row, rollout, excerpts=excerpts))

    def _rechecks(self, row: Row, rollout: Rollout) -> list[_Recheck]:
        """The second looks that chance, by the stage's seed, has chosen for an answer."""
        options, name = self._options, row["verifier"]
        found = []
        if self._chosen("canary", rollout.completion, options.canary):
            seed = derive_seed(self._context.seed, "unsolvable", rollout.completion.prompt_id, rollout.completion.sample)
            unsolvable = self._context.verifiers.canary(name, row["reference"], seed)
            if unsolvable is not None:
                found.append(_Recheck("canary", row, rollout, name, unsolvable))
        if name in options.second and self._chosen("second", rollout.completion, options.second_share):
            found.append(_Recheck("second", row, rollout, options.second[name], row["reference"]))
        return found

    def _chosen(self, monitor: str, completion: Completion, share: float) -> bool:
        return derive_seed(self._context.seed, monitor, completion.prompt_id, completion.sample) < share * 2**63

    def _count_recheck(self, check: _Recheck, verdict: Verdict) -> None:
        if verdict.outcome.is_failure:
            return
        tally = self._tallies[check.monitor]
        tally.checked += 1
        passed = verdict.outcome is Outcome.CORRECT
        facts = {"again": {"verifier": check.verifier, "reference": check.reference, "outcome": verdict.outcome, "detail": verdict.detail}}
        if check.monitor == "canary" and passed:
            why = "it passed again when nothing could be right"
            tally.flags.append(self._flag("canary", why, check.row, check.rollout, **facts))
        elif check.monitor == "second" and not passed:
            why = f"verifier {check.verifier!r} says that it is {verdict.outcome.value}"
            tally.flags.append(self._flag("second", why, check.row, check.rollout, **facts))

    def _flag(self, monitor: str, why: str, row: Row, rollout: Rollout, **facts: Any) -> Flag:
        return Flag(monitor, why, row["verifier"], rollout.completion, rollout.verdict, row["reference"], facts)


def _heldout_watch(config: RolloutOptions) -> HeldoutWatch:
    options = config.monitors
    return HeldoutWatch(
        prompts=config.heldout_prompts,
        # The first look, before anything is trained, compares nothing.
        looks=(config.steps - 1) // config.heldout_every,
        margin=options.heldout_margin,
        alpha=options.heldout_alpha,
    )


def _require_known(second: Mapping[str, str], names: Sequence[str]) -> None:
    for first, other in second.items():
        for name in (first, other):
            if name not in names:
                raise VerifierError(f"monitors.second names {name!r}, which is no verifier of the stage{nearest(name, names)}")
        if first == other:
            raise VerifierError(f"monitors.second sets {first!r} to watch itself")
