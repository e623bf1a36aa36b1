"""What an implementation must satisfy. Composition, no base classes: any object with these methods will do.

A plugin's descriptor (see :mod:`steelyard.specs`) names a class or factory that is called with its validated configuration; what comes
back is used through the protocols here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from steelyard.records import (
    Completion,
    Prompt,
    Rollout,
    Row,
    Sampling,
    SandboxJob,
    SandboxOutcome,
    Scored,
    SourceShare,
    StageResult,
    Verdict,
)

if TYPE_CHECKING:
    from steelyard.recipe.suite import Suite

__all__ = [
    "BatchVerifier",
    "CanaryVerifier",
    "CheckpointStore",
    "Engine",
    "EngineFactory",
    "EvaluateContext",
    "EvaluationItem",
    "Fingerprinted",
    "Harness",
    "Launcher",
    "MixContext",
    "MixResult",
    "Mixer",
    "ModelsChecked",
    "OpenedSource",
    "Part",
    "Rank",
    "Resolved",
    "Sandbox",
    "ScheduledShaper",
    "Shaper",
    "Source",
    "Stage",
    "StageContext",
    "StepIO",
    "Tracker",
    "Verifier",
    "VerifierSet",
    "WorkerHandle",
]


@runtime_checkable
class Fingerprinted(Protocol):
    """A configuration whose meaning depends on something outside the recipe (a file, a folder) says so by this method; the answer is
    part of the step's key, so that a changed file makes the step run again. ``base`` is the folder relative paths start from."""

    def fingerprint(self, base: Path) -> str: ...


@runtime_checkable
class ModelsChecked(Protocol):
    """A stage's configuration that goes with some of the roles under ``models`` in the recipe and not with others says so by this
    method, before anything runs: a ``ValueError`` becomes a complaint about the stage."""

    def check_models(self, roles: Collection[str]) -> None: ...


class StepIO(Protocol):
    """What a running step may say and ask; part of every context."""

    def report(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
        """Metrics by name (``train/loss`` …) at an optimiser step."""

    def progress(self, done: float, total: float | None, unit: str, note: str = "") -> None:
        """How far the step is, e.g. ``progress(12, 300, "steps", "loss 1.93")``; cheap enough to call every step."""

    def sample(self, row: Mapping[str, Any]) -> None:
        """Keep an example for the report (prompt, completion, verdict, reward …; plain JSON)."""

    def log(self, message: str) -> None:
        """One line for the human."""

    def should_stop(self) -> bool:
        """True once the run was asked to stop: finish the optimiser step, write a checkpoint, and raise
        :class:`~steelyard.errors.Interrupted`."""


class CheckpointStore(Protocol):
    """A step's checkpoints. A checkpoint is a folder, complete or absent; what is read back was verified against its manifest."""

    def latest(self) -> Path | None:
        """The newest checkpoint that is whole, or None."""

    def write(self, step: int, fill: Callable[[Path], None]) -> Path:
        """Calls ``fill(folder)`` on a fresh temporary folder, then makes it the newest checkpoint, durably; older ones are pruned."""


@runtime_checkable
class Verifier(Protocol):
    """Checks a completion against a reference."""

    def verify(self, completion: Completion, reference: Any) -> Verdict: ...


@runtime_checkable
class BatchVerifier(Verifier, Protocol):
    """A verifier that is better asked many things at once, such as a judge. Of ``inline`` ones only; the others are asked one by one."""

    def verify_many(self, checks: Sequence[tuple[Completion, Any]]) -> Sequence[Verdict]:
        """One verdict for each (completion, reference), in order."""


@runtime_checkable
class CanaryVerifier(Verifier, Protocol):
    """A verifier that can make a task that cannot be solved: whoever passes it has beaten the verifier and not the task."""

    def unsolvable(self, reference: Any, seed: int) -> Any:
        """A reference of the same form as ``reference`` that no answer to that task satisfies, however good; None where none can be
        made. Another ``seed`` may give another."""


class Part(Protocol):
    """A verifier as a combining one sees it: never raises, keeps its own time limit."""

    def __call__(self, completion: Completion, reference: Any) -> Verdict: ...

    def unsolvable(self, reference: Any, seed: int) -> Any:
        """See :class:`CanaryVerifier`; None where it makes none."""


class Sandbox(Protocol):
    """Runs programs that nobody trusts, cut off from the host. Safe to use from several threads; a call waits for a free place."""

    @property
    def backend(self) -> str:
        """``bubblewrap``, ``bubblewrap-warm`` or ``unsafe-local``."""

    def run(self, job: SandboxJob) -> SandboxOutcome:
        """Runs one program to its end or to a limit; nothing of it is left behind. Raises :class:`~steelyard.errors.VerifierError` when
        the sandbox itself fails."""

    def close(self) -> None: ...


class VerifierSet(Protocol):
    """The verifiers of a step by the name that rows use, running under their isolation and limits. Failures above the limit (1 % by
    default, once 100 verdicts are in) raise :class:`~steelyard.errors.VerifierError`."""

    def names(self) -> Sequence[str]: ...

    def verify(self, checks: Sequence[tuple[str, Completion, Any]]) -> list[Verdict]:
        """One verdict for each (verifier name, completion, reference), in order; never raises for a single bad check."""

    def metrics(self) -> dict[str, float]:
        """Of each verifier since the last call: ``verify/<name>/`` ``checks``, ``failures`` and ``timeouts`` (shares of the checks),
        ``unparseable``, ``p50_s``, ``p99_s``; empty where nothing was checked."""

    def canary(self, name: str, reference: Any, seed: int) -> Any:
        """A reference that no answer to the task of ``reference`` satisfies, from the verifier ``name``; None where it makes none."""

    def sandbox_backend(self) -> str | None:
        """What model-written code runs in; None when no verifier here runs any."""

    def close(self) -> None: ...


@runtime_checkable
class Shaper(Protocol):
    """Changes the rewards of one prompt's rollouts. Pure: what it returns depends on its arguments alone."""

    def shape(self, group: Sequence[Rollout], rewards: Sequence[float]) -> Sequence[float]: ...


@runtime_checkable
class ScheduledShaper(Shaper, Protocol):
    """A shaper that is different early in training: a stage asks it at each rollout step for the shaper of that step."""

    def at(self, step: int) -> Shaper:
        """The shaper of rollout step ``step``, counted from 0."""


@runtime_checkable
class Engine(Protocol):
    """Generates and scores text with one model."""

    def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[list[Completion]]:
        """``sampling.n`` completions for each prompt, in order."""

    def score(self, pairs: Sequence[tuple[str, str]]) -> list[Scored]:
        """The log-probability of each continuation (second) after its context (first); both are text, as it stands."""

    def load_weights(self, weights: Path | Mapping[str, Any], version: int) -> None:
        """Take new weights: a model folder, or tensors by name. Later completions carry ``version``."""

    def sleep(self) -> None:
        """Give back accelerator memory until :meth:`wake`."""

    def wake(self) -> None: ...

    def close(self) -> None: ...


class EngineFactory(Protocol):
    def __call__(self, model: Path | None = None, **overrides: Any) -> Engine:
        """An engine of the recipe's kind on ``model`` (default: the context's own model). ``overrides`` are configuration keys; the
        key ``module`` hands an in-process engine a live model to share weights with, which other engines ignore."""


@dataclass(frozen=True)
class Rank:
    """This process among those that run a step together; alone, unless the launcher started several."""

    rank: int = 0
    size: int = 1
    local: int = 0
    """Its number on its machine, and that of its accelerator."""
    meeting: str = ""
    """``host:port`` of the store by which the processes find each other; empty for one alone."""


@dataclass(frozen=True)
class StageContext:
    """All that a stage is given."""

    config: Any
    """The stage's own configuration, an instance of its pydantic model."""
    model: Path
    """Folder of the model to start from."""
    reference: Path | None
    """Folder of the reference model, where the stage has one."""
    data: Path | None
    """Folder of the training dataset; read it with :func:`steelyard.rows.read_rows`."""
    output: Path
    """Empty folder; the stage leaves a plain Hugging Face model folder in it."""
    cache: Path
    """Folder for content-keyed caches, shared by the steps of the run; safe to delete."""
    seed: int
    run_seed: int
    checkpoints: CheckpointStore
    io: StepIO
    engine: EngineFactory
    verifiers: VerifierSet
    shapers: Sequence[Shaper] = ()
    inputs: Mapping[str, Path] = field(default_factory=dict)
    """Every folder that the step was given, by role: ``model``, ``reference``, ``data``, and ``model:ROLE`` for each of the recipe's
    ``models``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Facts of the recipe as a whole that a stage may need: ``chat_template``, ``trust_remote_code``, ``recipe_dir``, and by verifier
    name its kind as ``verifier_kinds`` and its options as ``verifier_options``."""
    evidence: Path | None = None
    """File to which a stage appends, as JSON lines, what made it suspicious of a reward; beside the step's log, kept when it fails."""
    rank: Rank = field(default_factory=Rank)
    """Which of the step's processes this is. All have the same model, data, configuration and seeds. Those other than rank 0 have an ``io``
    that reports nothing and never stops, verifiers known by name alone, a checkpoint store that does not write, and an output folder
    that is thrown away."""


@runtime_checkable
class Stage(Protocol):
    """Makes a model from a model and data."""

    def run(self, context: StageContext) -> StageResult: ...


@runtime_checkable
class Source(Protocol):
    """One place data comes from."""

    def rows(self) -> Iterator[Row]:
        """Every row, in a stable order."""


@dataclass(frozen=True)
class OpenedSource:
    """A source as a mixer gets it: the recipe's common keys for a source, and the source itself."""

    name: str
    source: Source
    count: int | None = None
    fraction: float | None = None
    weight: float | None = None
    epochs: float | None = None


@dataclass(frozen=True)
class MixContext:
    """All that a mixer is given."""

    config: Any
    sources: Sequence[OpenedSource]
    seed: int
    run_seed: int
    model: Path
    """The model it samples, when it samples one; else the base model, for its tokenizer and template."""
    cache: Path
    io: StepIO
    engine: EngineFactory
    verifiers: VerifierSet
    data: Path | None = None
    """Folder of the dataset that the recipe's ``prompts:`` names, for mixers that start from another dataset."""


@dataclass(frozen=True)
class MixResult:
    """Rows (an iterable, read once) and what was taken from where; ``facts`` goes into the dataset's record as it is."""

    rows: Iterable[Row]
    shares: Sequence[SourceShare]
    facts: Mapping[str, Any] = field(default_factory=dict)


@runtime_checkable
class Mixer(Protocol):
    """Makes a training dataset; the same context gives the same rows in the same order."""

    def mix(self, context: MixContext) -> MixResult: ...


@dataclass(frozen=True)
class EvaluationItem:
    """An item as decontamination sees it: the texts a model is asked, by field."""

    task: str
    id: str
    fields: Mapping[str, str]


@dataclass(frozen=True)
class EvaluateContext:
    """All that a harness is given to evaluate one model on one suite."""

    suite: Suite
    model: Path
    output: Path
    """Folder for ``items.jsonl``, ``eval.json``, ``samples.jsonl`` (GATE.md's formats)."""
    seed: int
    io: StepIO
    engine: EngineFactory
    cache: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    journal: Path | None = None
    """Folder that outlives a killed process: answers are kept there as they come, and an evaluation that finds its own goes on at the
    missing ones. None: an interrupted evaluation starts again."""
    skip_unavailable: bool = False
    """Leave out tasks whose data cannot be loaded. The evaluation then has no average, and says which are missing."""


@runtime_checkable
class Harness(Protocol):
    """Evaluates suites."""

    def items(self, suite: Suite) -> Iterable[EvaluationItem]:
        """Every item of every task, for decontamination."""

    def evaluate(self, context: EvaluateContext) -> Mapping[str, Any]:
        """Writes the evaluation folder and returns its summary, ``{"tasks": {name: {"n", "score"}}, …}``. Nothing is published before
        it is whole."""


@dataclass(frozen=True)
class Resolved:
    """What a model or dataset reference means here: a local path, and a fingerprint that changes when its content does."""

    path: Path
    fingerprint: str
    origin: str = ""


class WorkerHandle(Protocol):
    """A worker process as the conductor sees it: one JSON object a line, both ways."""

    pid: int

    def send(self, message: Mapping[str, Any]) -> None: ...

    def messages(self, timeout_s: float) -> Iterator[Mapping[str, Any]]:
        """Messages as they come; ends when none came within ``timeout_s`` or the worker is gone."""

    def poll(self) -> int | None:
        """None while it runs, else its exit status (negative: the signal that ended it)."""

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


@runtime_checkable
class Launcher(Protocol):
    """Starts worker processes."""

    def start(self, environment: Mapping[str, str], log: Path) -> WorkerHandle: ...


class Tracker(Protocol):
    """Mirrors metrics somewhere; made by a plugin's ``steelyard_run_started`` hook."""

    def log(self, metrics: Mapping[str, float], step: int | None) -> None: ...

    def close(self) -> None: ...
