"""The conductor: goes through the plan step by step, reuses what is there, has the rest made, and lets the gates decide.

It imports no torch. Whatever a step does to its worker, the conductor lives to write it down; and whatever is done to the conductor, the
ledger and the artifacts say where to go on.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.errors import ArtifactError, ExitCode, GateRefusal, Interrupted, SteelyardError, StepFailedError, StorageError
from steelyard.events import MetricsReported, RoundDecided, RunFinished, RunStarted, StepFinished, StepStarted
from steelyard.run.artifacts import ArtifactStore, Manifest, verify_folder
from steelyard.run.durable import link_atomically, remove_tree, storage_errors, write_json
from steelyard.run.folder import RunFolder
from steelyard.run.gating import may_look_again
from steelyard.run.ledger import Ledger
from steelyard.run.lineage import read_lineage
from steelyard.run.lock import RunLock
from steelyard.run.manifest import describe_session
from steelyard.run.metrics_file import MetricsFile
from steelyard.run.outlook import count_items, look_ahead, plan_gates
from steelyard.run.plan import BASE, Plan, RoundPlan, Step, Title, make_plan
from steelyard.run.progress import Progress, SilentProgress, counted
from steelyard.run.sandboxing import require_sandbox
from steelyard.run.stopping import StopRequest
from steelyard.run.tasks import Task
from steelyard.run.warm_worker import WarmWorker

if TYPE_CHECKING:
    from steelyard.gate import PolicyConfig
    from steelyard.plugins import Registry
    from steelyard.recipe.loading import LoadedRecipe
    from steelyard.recipe.schema import Recipe
    from steelyard.recipe.suite import Suite

__all__ = ["Conductor", "RunOutcome", "conduct"]


@dataclass
class RunOutcome:
    """What came of a run that reached its end. ``exit_code`` is 1 when a gate did not promote; ``stopped`` says why rounds were left
    out; ``verdicts`` are the gates' in order."""

    champion: Path | None = None
    promotions: int = 0
    verdicts: list[Mapping[str, Any]] = field(default_factory=list)
    stopped: str = ""
    unseen: str = ""

    @property
    def exit_code(self) -> ExitCode:
        missed = any(verdict["decision"] != "promote" for verdict in self.verdicts)
        return ExitCode.NOT_PROMOTED if missed else ExitCode.DONE


def conduct(
    folder: RunFolder,
    registry: Registry,
    *,
    loaded: LoadedRecipe | None = None,
    recipe_dir: Path | None = None,
    until: str | None = None,
    allow_unsafe_local: bool = False,
    progress: Progress | None = None,
    on_verdict: Callable[[str], None] = lambda sentence: None,
) -> RunOutcome:
    """Runs a recipe in ``folder``, or goes on with what is there. Without ``loaded`` the folder's own resolved recipe counts.

    ``recipe_dir`` says where the recipe's folder is now, if it was moved away from its run; ``until`` is the id of the step to stop
    behind. ``allow_unsafe_local`` lets model-written code run without a sandbox, now and whenever this run is resumed; nothing that was
    made so is ever promoted. Errors: :class:`~steelyard.errors.RunLockedError`, :class:`Interrupted`, and whatever
    a step or a gate raises; the run can be resumed after each."""
    if loaded is not None and (until is not None or not folder.begun):
        # What cannot be planned, and a wrong name, must not leave a run folder behind.
        plan = make_plan(loaded.recipe, registry, loaded.base)
        if until is not None:
            plan.step(until)
    with storage_errors(folder.path):
        folder.path.mkdir(parents=True, exist_ok=True)
    with StopRequest() as stop, RunLock(folder.path) as lock:
        if loaded is not None and not folder.begun:
            folder.begin(loaded)
        elif loaded is not None:
            folder.change_launcher(loaded)
        if recipe_dir is not None:
            folder.move_recipe_dir(recipe_dir)
        if allow_unsafe_local:
            folder.permit_unsafe_local()
        recipe = loaded.recipe if loaded is not None else folder.recipe(registry)
        base = loaded.base if loaded is not None else folder.recipe_dir()
        conductor = Conductor(folder, recipe, registry, base, stop, progress or SilentProgress(), on_verdict)
        if until is not None:
            conductor.plan.step(until)
        if lock.previous is not None:
            conductor.progress.log(f"the last session ended without a word: {lock.previous}")
        return conductor.run(until)


class Conductor:
    """One session on a run whose lock is held."""

    def __init__(
        self,
        folder: RunFolder,
        recipe: Recipe,
        registry: Registry,
        recipe_dir: Path,
        stop: StopRequest,
        progress: Progress,
        on_verdict: Callable[[str], None],
    ):
        self.folder, self.recipe, self.registry, self.recipe_dir = folder, recipe, registry, recipe_dir
        self.progress, self._on_verdict = progress, on_verdict
        self.plan: Plan = make_plan(recipe, registry, recipe_dir)
        self._suites = self._load_suites()
        self._store = ArtifactStore(folder.artifacts)
        self._stop = stop
        self._outcome = RunOutcome()
        self._keys: dict[str, str] = {}
        self._title = Title()
        self._undecided: set[str] = set()
        """Gates that were inconclusive and have a further look."""
        self._openings: list[Mapping[str, Any]] = []
        """What each opening of the unseen suite found."""

    def run(self, until: str | None = None) -> RunOutcome:
        """Goes through the plan. Errors: see :func:`conduct`."""
        look_ahead(self.recipe, self.plan, self.folder, self.recipe_dir, self._suites.get("dev")).require_provable()
        if self.folder.allows_unsafe_local:
            self.progress.log(
                "--allow-unsafe-local: where no sandbox works, this run lets model-written code do whatever its user can; nothing made so "
                "is promoted"
            )
        else:
            require_sandbox(self.plan, self.registry)
        resumed = self.folder.ledger.exists()
        self.folder.prepare()
        self._store.sweep()
        exit_code = int(ExitCode.INTERNAL)
        with ExitStack() as closing:
            self._ledger = Ledger(self.folder.ledger)
            closing.callback(self._ledger.close)
            self.folder.add_session(describe_session(self.registry, self.recipe_dir))
            self._metrics = closing.enter_context(MetricsFile(self.folder.metrics))
            launcher = self._launcher()
            self._worker = WarmWorker(launcher, self.folder.logs / "worker.log")
            closing.callback(self._worker.close)
            self.registry.notify(RunStarted(self.folder.path, self.recipe.name, self.recipe.to_json(), resumed))
            try:
                with self.progress:
                    self._walk(until)
                exit_code = int(self._outcome.exit_code)
            except SteelyardError as error:
                exit_code = int(error.exit_code)
                raise
            finally:
                linked = self._linked_champion()
                self._outcome.champion = self._store.path(linked) if linked is not None else None
                event = RunFinished(self.folder.path, exit_code, self._outcome.champion, self._outcome.promotions)
                self.registry.notify(event)
        return self._outcome

    def _walk(self, until: str | None) -> None:
        self.progress.planned(len(self.plan.steps))
        for position, step in enumerate(self.plan.steps, start=1):
            self._heed_stop(step)
            if step.after is not None and step.after not in self._undecided:
                if step.id == until:
                    self._outcome.stopped = f"stopped before {until!r}, as asked: the gate needs no further look"
                    break
                continue
            inputs = {role: self._keys[self._title.resolve(source)] for role, source in step.inputs.items()}
            key = self._keys[step.id] = step.key(inputs)
            verdict: Mapping[str, Any] | None = None
            if step.kind == "gate":
                verdict = self._gate(step, key, inputs, position)
            elif not self._reuse(step, key, position):
                self._make(step, key, inputs, position)
            if step.id == BASE and not (self.folder.champion.exists() and self._ledger.promotions()):
                self._link_champion(key)
            if step.id == "items/dev":
                self._require_provable_guards(key)
            decided = self.plan.round_decided_by(step)
            if decided is not None and not self._looks_again(decided, step, verdict):
                ends = self._decide(decided, verdict)
                if ends or decided is self.plan.rounds[-1]:
                    self._settle(decided)
                if ends:
                    break
            if step.id.endswith("champion/unseen"):
                self._weigh_unseen(step)
            if step.id == until:
                self._outcome.stopped = f"stopped behind {until!r}, as asked"
                break
        self._write_report()

    def _heed_stop(self, before: Step) -> None:
        if self._stop.asked:
            raise Interrupted(f"stopped by {self._stop.name} before {before.id!r}; go on with `steelyard resume {self.folder.path}`")

    # Steps

    def _reuse(self, step: Step, key: str, position: int) -> bool:
        """Whether the step's artifact is there and whole. A damaged one is set aside, for the step to make it again."""
        if not self._store.path(key).exists():
            return False
        try:
            self._store.open(key)
            manifest = self._store.manifest(key)
        except ArtifactError as error:
            aside = self._store.set_aside(key)
            self._note_failure(step.id, key, type(error).__name__, str(error))
            self.progress.log(f"{step.id}: {error} (now {aside.name})")
            return False
        if not self._ledger.committed(step.id, key):
            # A session was killed between the artifact and its row; or another step had the same work to do.
            status = "done" if manifest.step == step.id else "reused"
            self._commit_row(step, key, status, manifest)
        self._finished(step, key, "reused", 0.0, manifest.summary, position)
        return True

    def _commit_row(self, step: Step, key: str, status: str, manifest: Manifest) -> None:
        seconds = manifest.seconds if status == "done" else 0.0
        self._ledger.add_step(step.id, step.kind, key, status, seconds=seconds, round_name=step.round, summary=manifest.summary)

    def _make(self, step: Step, key: str, inputs: Mapping[str, str], position: int) -> None:
        """Has the step run by the worker, and commits what it made. Errors: :class:`StepFailedError`, :class:`Interrupted`."""
        self._ledger.add_step(step.id, step.kind, key, "started", round_name=step.round)
        self.registry.notify(StepStarted(self.folder.path, step.id, step.kind, key))
        self.progress.begin(step.id, position)
        started = time.monotonic()
        try:
            answer = self._worker.run(self._task(step, key, inputs), lambda message: self._hear(step, key, message), self._stop)
        except Interrupted:
            self._end(step, key, "interrupted", time.monotonic() - started, position)
            raise
        except SteelyardError as error:
            self._fail(step, key, type(error).__name__, str(error), time.monotonic() - started, position)
            raise
        seconds = float(answer["seconds"])
        if answer["type"] == "interrupted":
            self._end(step, key, "interrupted", seconds, position)
            why = f"stopped by {self._stop.name or 'a signal to the worker'} in {step.id!r}"
            raise Interrupted(f"{why}; go on with `steelyard resume {self.folder.path}`")
        if answer["type"] == "failed":
            raise self._explain(step, key, inputs, answer["error"], seconds, position)
        self._ledger.add_step(step.id, step.kind, key, "done", seconds=seconds, round_name=step.round, summary=answer["summary"])
        remove_tree(self.folder.checkpoints / key)
        self._finished(step, key, "done", seconds, answer["summary"], position)

    def _task(self, step: Step, key: str, inputs: Mapping[str, str]) -> Task:
        return Task(
            step=step.id,
            kind=step.kind,
            key=key,
            config=step.config,
            input_keys=inputs,
            run_dir=self.folder.path.resolve(),
            recipe_dir=self.recipe_dir.resolve(),
            seed=step.seed,
            run_seed=self.recipe.seed,
            places=step.places,
            outside=step.outside,
            allow_unsafe_local=self.folder.allows_unsafe_local,
            plugins={"disabled": list(self.registry.disabled), "project": str(Path.cwd())},
        )

    def _hear(self, step: Step, key: str, message: Mapping[str, Any]) -> None:
        match message["type"]:
            case "metrics":
                optimiser_step, metrics = message["step"], message["metrics"]
                self._ledger.add_metrics(step.id, key, optimiser_step, metrics)
                self._metrics.add(step.id, optimiser_step, metrics)
                self.registry.notify(MetricsReported(self.folder.path, step.id, optimiser_step, metrics))
            case "progress":
                self.progress.update(message["done"], message["total"], message["unit"], message["note"])
            case "log":
                self.progress.log(f"{step.id}: {message['message']}")

    def _explain(
        self, step: Step, key: str, inputs: Mapping[str, str], error: Mapping[str, Any], seconds: float, position: int
    ) -> StepFailedError:
        """The error for a step that failed in its worker. An input that proved damaged is set aside."""
        if error["type"] == "ArtifactError":
            for input_key in set(inputs.values()):
                try:
                    verify_folder(self._store.path(input_key))
                except ArtifactError:
                    self._store.set_aside(input_key)
        message = str(error["message"])
        if error["exit_code"] == ExitCode.INTERNAL:
            message += f" (traceback in {error.get('log') or self.folder.logs / (step.id + '.log')})"
        self._fail(step, key, str(error["type"]), message, seconds, position)
        message = message.removeprefix(f"step {step.id!r} failed: ")
        return StepFailedError(step.id, message, exit_code=ExitCode(error["exit_code"]))

    def _fail(self, step: Step, key: str, type_name: str, message: str, seconds: float, position: int) -> None:
        self._note_failure(step.id, key, type_name, message)
        self._end(step, key, "failed", seconds, position, error=message)

    def _note_failure(self, step_id: str, key: str, type_name: str, message: str) -> None:
        # On a full disk the record cannot be written either; the error itself must still come out.
        with suppress(StorageError):
            self._ledger.add_failure(step_id, key, type_name, message, str(Path("logs") / f"{step_id}.log"))

    def _end(self, step: Step, key: str, status: str, seconds: float, position: int, error: str = "") -> None:
        with suppress(StorageError):
            self._ledger.add_step(step.id, step.kind, key, status, seconds=seconds, round_name=step.round)
        self.progress.finish(step.id, position, status, seconds, {})
        self.registry.notify(StepFinished(self.folder.path, step.id, step.kind, key, status, seconds, None, error))

    def _finished(self, step: Step, key: str, status: str, seconds: float, summary: Mapping[str, Any], position: int) -> None:
        self.progress.finish(step.id, position, status, seconds, summary)
        artifact = self._store.path(key)
        self.registry.notify(StepFinished(self.folder.path, step.id, step.kind, key, status, seconds, artifact))

    # Gates

    def _gate(self, step: Step, key: str, inputs: Mapping[str, str], position: int) -> Mapping[str, Any]:
        """The verdict of a gate: the one in the ledger, or a new one, which goes there together with its promotion."""
        decided = self._ledger.verdict_of(key)
        if decided is not None:
            self._finished(step, key, "reused", 0.0, {}, position)
            return decided.verdict
        self.progress.begin(step.id, position)
        started = time.monotonic()
        verdict = self._verdict(step, key, inputs, position)
        challenger_step = self._title.resolve(step.inputs["challenger_model"])
        self._ledger.add_decision(
            round_name=str(step.round),
            step=step.id,
            key=key,
            champion=inputs["champion_model"],
            challenger=inputs["challenger_model"],
            challenger_step=challenger_step,
            verdict=verdict,
            seconds=time.monotonic() - started,
        )
        self._finished(step, key, "done", time.monotonic() - started, {}, position)
        round_plan = self.plan.round_decided_by(step)
        if round_plan is None or round_plan.look_after(step.id) is None or not may_look_again(verdict):
            event = RoundDecided(self.folder.path, str(step.round), str(verdict["decision"]), str(verdict["sentence"]), verdict)
            self.registry.notify(event)
        return verdict

    def _looks_again(self, round_plan: RoundPlan, step: Step, verdict: Mapping[str, Any] | None) -> bool:
        """Whether the round is open still: this look is inconclusive, and another was declared."""
        if verdict is None or round_plan.look_after(step.id) is None or not may_look_again(verdict):
            return False
        self._undecided.add(step.id)
        self._on_verdict(f"{round_plan.name}: {verdict['sentence']}; it looks again, with more samples or items")
        self._write_report()
        return True

    def _verdict(self, step: Step, key: str, inputs: Mapping[str, str], position: int) -> dict[str, Any]:
        """``verdict.json``, committed as an artifact; one that a killed session committed is taken as it is."""
        from steelyard.gate import PolicyConfig
        from steelyard.run.gating import gate_facts, join_looks, weigh_round

        if self._store.path(key).exists():
            with suppress(ArtifactError):
                found: dict[str, Any] = json.loads((self._store.open(key) / "verdict.json").read_text(encoding="utf-8"))
                return found
            self._store.set_aside(key)
        temporary = self._store.temporary(key)
        try:
            evaluations = {role: self._store.open(used) for role, used in inputs.items() if not role.endswith("model")}
            champion, challenger = join_looks(evaluations, temporary)
            challenger_model = self._store.open(inputs["challenger_model"])
            facts = gate_facts(challenger_model, self._suites)
            policy = self._policy_of_look(step, PolicyConfig.model_validate(step.config["policy"]))
            verdict = weigh_round(
                self.registry,
                policy,
                facts,
                run_dir=self.folder.path,
                round_name=str(step.round),
                champion=champion,
                challenger=challenger,
                lineage=read_lineage(challenger_model),
            )
        except SteelyardError as error:
            self._fail(step, key, type(error).__name__, str(error), 0.0, position)
            remove_tree(temporary)
            raise
        write_json(temporary / "verdict.json", verdict)
        write_json(temporary / "policy.json", policy.model_dump(mode="json"))
        self._store.commit(temporary, key, step=step.id, kind="gate", inputs=inputs, summary={"decision": verdict["decision"]}, seconds=0.0)
        return verdict

    def _policy_of_look(self, step: Step, policy: PolicyConfig) -> PolicyConfig:
        """The policy at a lower level, where the round was decided before in this run, of other models or data."""
        from steelyard.run.gating import policy_of_look

        earlier = self._decided_before(step)
        if not earlier:
            return policy
        lowered = policy_of_look(policy, earlier)
        self.progress.log(
            f"{step.id}: decided {counted(earlier, 'time')} before in this run, of other models or data; this look has "
            f"alpha {lowered.average_alpha:.4g}, not {policy.average_alpha:.4g}"
        )
        return lowered

    def _decided_before(self, step: Step) -> int:
        """How often the round was opened to a gate before it was on the way to ``step``: by its first look, since the further ones have
        their part of the level."""
        round_plan = self.plan.round_decided_by(step)
        first = round_plan.gate if round_plan is not None else step.id
        earlier = [row for row in self._ledger.verdicts() if row.round == step.round and row.step == first]
        own = next((row.id for row in earlier if step.id != first and row.key == self._keys[str(first)]), None)
        return sum(own is None or row.id < own for row in earlier)

    def _decide(self, decided: RoundPlan, verdict: Mapping[str, Any] | None) -> bool:
        """Passes the title on, or does not; whether the run ends here."""
        if verdict is not None:
            self._outcome.verdicts.append(verdict)
            self._on_verdict(f"{decided.name}: {verdict['sentence']}")
        if verdict is None or verdict["decision"] == "promote":
            self._promote(decided, gated=verdict is not None)
            self._write_report()
            return False
        self._write_report()
        gate = self.recipe.gate_of(self.recipe.round(decided.name))
        rule = gate.on_reject if verdict["decision"] == "reject" else gate.on_inconclusive
        if rule == "stop":
            left = len(self.plan.rounds) - 1 - self.plan.rounds.index(decided)
            self._outcome.stopped = f"stopped at the gate of round {decided.name!r}" + (
                f", {counted(left, 'round')} left out" if left else ""
            )
            return True
        return False

    def _promote(self, decided: RoundPlan, *, gated: bool) -> None:
        previous, key = self._keys[self._title.champion], self._keys[decided.challenger]
        self._title.passes_to(decided)
        self._outcome.promotions += 1
        promotions = self._ledger.promotions()
        if not gated and not any(row.step == decided.challenger and row.key == key for row in promotions):
            self._ledger.add_promotion(round_name=decided.name, step=decided.challenger, key=key, previous=previous)
            promotions = self._ledger.promotions()
        # On a resume the earlier rounds are gone through again; the link must not walk back with them, see :meth:`_settle`.
        if promotions and promotions[-1].key == key:
            self._link_champion(key)

    def _settle(self, last: RoundPlan) -> None:
        """Has the ledger and the link say who holds the title when the ``last`` round has been decided.

        They differ from it where a resume met other inputs: what was promoted of the former ones is not the champion of these."""
        key = self._keys[self._title.champion]
        promotions = self._ledger.promotions()
        if promotions and promotions[-1].key != key:
            gate = self._keys[last.gate] if last.gate is not None else None
            previous = promotions[-1].key
            self._ledger.add_promotion(round_name=last.name, step=self._title.champion, key=key, previous=previous, gate=gate)
            self.progress.log(f"the title goes back to {self._title.champion!r}: what held it was made from other inputs")
        self._link_champion(key)

    def _link_champion(self, key: str) -> None:
        if self._linked_champion() != key:
            link_atomically(self.folder.champion, f"artifacts/{key}")

    def _linked_champion(self) -> str | None:
        """The key of the artifact that the link names."""
        link = self.folder.champion
        return link.readlink().name if link.is_symlink() else None

    def _require_provable_guards(self, items_key: str) -> None:
        """The same refusal as before the run, now that the items have been counted."""
        gates = plan_gates(self.recipe, self._suites["dev"], count_items(self._store.path(items_key)))
        refusals = [reason for gate in gates if gate.required for reason in gate.refusals]
        if refusals:
            raise GateRefusal(dict.fromkeys([*refusals, "or set gate.require_power to false"]))

    # The end

    def _weigh_unseen(self, opening: Step) -> None:
        """What was gained on dev against what was gained on the unseen suite, now that it has been opened."""
        wanted = ("eval/base/dev", self._title.evaluation, "eval/base/unseen", opening.id)
        if self._title.champion == BASE or any(step not in self._keys for step in wanted):
            return
        from steelyard.gate import GateFacts, dev_unseen_gap

        folders = [self._store.path(self._keys[step]) for step in wanted]
        tasks = [task for suite in self._suites.values() for task in suite.tasks]
        facts = GateFacts(score_ranges={task.name: task.score_range for task in tasks})
        weights = {task.name: task.weight for task in tasks}
        try:
            gap = dev_unseen_gap((folders[0], folders[1]), (folders[2], folders[3]), weights=weights, facts=facts)
        except GateRefusal as refusal:
            self.progress.log(f"dev and unseen cannot be compared: {refusal}")
            return
        rows = self._ledger.steps()
        opened = len({row.key for row in rows if row.step.endswith("champion/unseen") and row.status == "done"})
        self._openings.append({"step": opening.id, "champion": self._title.champion, **gap.to_json()})
        write_json(self.folder.path / "unseen.json", {**gap.to_json(), "opened": opened, "openings": self._openings})
        self._outcome.unseen = gap.sentence
        self._on_verdict(gap.sentence)

    def _write_report(self) -> None:
        """A report that cannot be written costs a line, not the run."""
        try:
            from steelyard.report import write_report
        except ImportError as error:
            if not (error.name or "").startswith("steelyard.report"):
                self.progress.log(f"no report: {error}")
            return
        try:
            write_report(self.folder.path)
        except Exception as error:
            self.progress.log(f"the report could not be written: {type(error).__name__}: {error}")

    def _launcher(self) -> Any:
        entry = self.recipe.launcher
        return self.registry.load(self.registry.get("launchers", entry.kind))(entry.options)

    def _load_suites(self) -> dict[str, Suite]:
        from steelyard.recipe.suite import load_suite

        return {role: load_suite(ref, self.registry, self.recipe_dir) for role, ref in self.recipe.suites.items()}
