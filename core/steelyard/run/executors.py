"""What a worker does for each kind of step. Every executor fills the step's output folder and returns a few facts for the ledger."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from steelyard.errors import ArtifactError, DataError, ModelError, StepFailedError
from steelyard.gate.objections import UNSAFE_LOCAL, unsafe_steps
from steelyard.protocols import CheckpointStore, EngineFactory, EvaluateContext, MixContext, Rank, StageContext, StepIO, VerifierSet
from steelyard.run.contexts import configure, open_engines, open_shapers, open_sources, open_step_verifiers
from steelyard.run.lineage import LINEAGE_NAME, model_lineage, read_lineage, write_lineage
from steelyard.run.ranks import NamedVerifiers
from steelyard.run.tasks import Task
from steelyard.run.weights import inspect_weights

if TYPE_CHECKING:
    from steelyard.decontaminate import ItemIndex, ParaphraseSearch
    from steelyard.plugins import Registry
    from steelyard.recipe.suite import Suite
    from steelyard.records import Row, StageResult

__all__ = ["Job", "execute"]


@dataclass(frozen=True)
class Job:
    """A task as its executor sees it: with the verified folders of its inputs, and an empty output folder."""

    task: Task
    registry: Registry
    inputs: Mapping[str, Path]
    output: Path
    io: StepIO
    checkpoints: CheckpointStore
    closing: ExitStack
    rank: Rank = field(default_factory=Rank)
    """This process among those that run the step."""

    @property
    def config(self) -> Mapping[str, Any]:
        return self.task.config

    @property
    def cache(self) -> Path:
        folder = self.task.run_dir / "cache"
        folder.mkdir(exist_ok=True)
        return folder

    @property
    def trusts_remote_code(self) -> bool:
        """Whether the recipe names the base model as one that may run its own code."""
        return bool((self.config.get("model_options") or {}).get("trust_remote_code"))

    @property
    def evidence(self) -> Path:
        """Where failed checks of verifiers are kept."""
        return self.task.log.with_suffix(".verifier-failures.jsonl")

    @property
    def verifier_kinds(self) -> dict[str, str]:
        """The kind of each of the step's verifiers, by name."""
        return {name: entry["kind"] for name, entry in (self.config.get("verifiers") or {}).items()}

    @property
    def verifier_options(self) -> dict[str, dict[str, Any]]:
        """The options of each of them, without the recipe's own keys."""
        entries = (self.config.get("verifiers") or {}).items()
        return {name: {key: value for key, value in entry.items() if key not in ("kind", "timeout_s")} for name, entry in entries}

    def open_verifiers(self, engine: EngineFactory) -> VerifierSet:
        """The verifiers of the step; ``engine`` serves those that ask a language model."""
        if self.rank.rank:
            return NamedVerifiers(tuple(self.config.get("verifiers") or {}), self.rank.rank)
        return open_step_verifiers(
            self.registry,
            self.config.get("verifiers") or {},
            self.evidence,
            self.closing,
            engine=engine,
            base=self.task.recipe_dir,
            models={role.removeprefix("model:"): folder for role, folder in self.inputs.items() if role.startswith("model:")},
            allow_unsafe_local=self.task.allow_unsafe_local,
        )


def execute(job: Job) -> dict[str, Any]:
    """Runs the step; returns its summary."""
    return _EXECUTORS[job.task.kind](job)


def _import(job: Job) -> dict[str, Any]:
    base = dict(job.config["base"])
    ref = base.get("model")
    found = job.registry.hook.steelyard_resolve_model(ref=ref, base=job.task.recipe_dir) if ref is not None else None
    if found is not None:
        # Leave to run the model's own code was given to the reference, and goes with what it means here.
        trusted = base.get("trust_remote_code") == ref
        base |= {"model": str(found.path), **({"trust_remote_code": str(found.path)} if trusted else {})}
    return _make_model(job, "import", base, model=job.output, facts={"origin": ref or "new"}, sandbox=_mark_of_base(job, base.get("model")))


def _mark_of_base(job: Job, model: str | None) -> str | None:
    """``unsafe-local`` where the base comes from a run of ours in which model-written code ran unconfined: a new run does not wash it."""
    folder = None if model is None else job.task.recipe_dir / Path(model).expanduser()
    if folder is None or not (folder / LINEAGE_NAME).is_file():
        return None
    return UNSAFE_LOCAL if any(unsafe_steps(read_lineage(folder))) else None


def _stage(job: Job) -> dict[str, Any]:
    if "data" in job.inputs and not job.rank.rank:
        _check_certificate(job.inputs["data"])
    return _make_model(job, job.config["kind"], job.config["options"], model=job.inputs["model"], facts={})


def _check_certificate(data: Path) -> None:
    """A certificate speaks of the rows that decontamination left, and stands for no others."""
    from steelyard.decontaminate import Certificate, RowsHash
    from steelyard.rows import read_rows

    path = data / "certificate.json"
    if not path.is_file():
        return
    certificate, digest = Certificate.from_json(path.read_text(encoding="utf-8")), RowsHash()
    for row in read_rows(data):
        digest.add(row)
    if certificate.dataset_sha256 != digest.hexdigest():
        raise ArtifactError(
            f"the rows in {str(data)!r} are not those that their decontamination certificate was written for, so they were changed since: "
            "remove that folder and resume, and the data is decontaminated again"
        )


def _make_model(
    job: Job, kind: str, options: Mapping[str, Any], *, model: Path, facts: Mapping[str, Any], sandbox: str | None = None
) -> dict[str, Any]:
    spec, config = configure(job.registry, "stages", kind, options)
    why_none = "the import of a base model has no engine"
    engine = open_engines(
        job.registry, job.config.get("engine"), model, job.closing, why_none=why_none, trust_remote_code=job.trusts_remote_code
    )
    verifiers = job.open_verifiers(engine)
    context = StageContext(
        config=config,
        model=model,
        reference=job.inputs.get("reference"),
        data=job.inputs.get("data"),
        output=job.output,
        cache=job.cache,
        seed=job.task.seed,
        run_seed=job.task.run_seed,
        checkpoints=job.checkpoints,
        io=job.io,
        engine=engine,
        verifiers=verifiers,
        shapers=open_shapers(job.registry, job.config.get("shapers") or ()),
        inputs=job.inputs,
        options={
            **(job.config.get("model_options") or {}),
            "recipe_dir": job.task.recipe_dir,
            "verifier_kinds": job.verifier_kinds,
            "verifier_options": job.verifier_options,
        },
        evidence=None if job.rank.rank else job.task.log.with_suffix(".flagged.jsonl"),
        rank=job.rank,
    )
    result: StageResult = job.registry.load(spec)(config).run(context)
    if job.rank.rank:
        return {}
    return _finish_model(job, kind, result, facts, verifiers.sandbox_backend() or sandbox, makes=spec.makes)


def _finish_model(job: Job, kind: str, result: StageResult, facts: Mapping[str, Any], sandbox: str | None, *, makes: str) -> dict[str, Any]:
    if Path(result.model).resolve() != job.output.resolve():
        where = str(result.model)
        raise StepFailedError(job.task.step, f"stage {kind!r} left its model in {where!r} and not in the output folder it was given")
    if not any(job.output.iterdir()):
        raise StepFailedError(job.task.step, f"stage {kind!r} left no model in its output folder")
    weights = inspect_weights(job.output)
    if weights is not None and weights.non_finite:
        raise ModelError(
            f"the weights are not finite in {', '.join(map(repr, weights.non_finite[:3]))} ({len(weights.non_finite)} tensors): "
            "train with a lower lr or stronger clipping"
        )
    found = {**facts, **result.facts}
    write_json(job.output / "stage.json", {"kind": kind, "metrics": dict(result.metrics), "facts": found})
    lineage = model_lineage(job.task, job.inputs, kind, weights, found, sandbox, makes=makes)
    write_lineage(job.output, lineage)
    _write_card(job, lineage)
    summary: dict[str, Any] = {"metrics": dict(result.metrics), **({"sandbox": sandbox} if sandbox else {})}
    if weights is not None:
        summary |= {"parameters": weights.parameters, "weights_sha256": weights.sha256}
    return summary


def _write_card(job: Job, lineage: Mapping[str, Any]) -> None:
    """A card that cannot be written costs a line, and not the model that may have taken days."""
    try:
        from steelyard.report import model_card

        (job.output / "README.md").write_text(model_card(job.output, lineage), encoding="utf-8")
    except Exception as error:
        job.io.log(f"no model card: {type(error).__name__}: {error}")


def _items(job: Job) -> dict[str, Any]:
    suite = _suite(job)
    harness = job.registry.load(job.registry.get("harnesses", suite.harness))(job.registry)
    count = 0
    with open(job.output / "items.jsonl", "w", encoding="utf-8") as file:
        for item in harness.items(suite):
            file.write(json.dumps({"task": item.task, "id": item.id, "fields": dict(item.fields)}, ensure_ascii=False) + "\n")
            count += 1
    if count == 0:
        raise DataError(f"suite {suite.name!r} has no items")
    return {"items": count}


def _data(job: Job) -> dict[str, Any]:
    from steelyard.rows import write_rows

    config = job.config
    spec, options = configure(job.registry, "mixers", config["kind"], config["options"])
    why_none = f"a data entry of kind {config['kind']!r} samples no model, so that it has no engine"
    engine = open_engines(
        job.registry,
        config.get("engine"),
        job.inputs["model"],
        job.closing,
        why_none=why_none,
        trust_remote_code=job.trusts_remote_code,
    )
    verifiers = job.open_verifiers(engine)
    context = MixContext(
        config=options,
        sources=open_sources(job.registry, config["sources"], job.task.recipe_dir),
        seed=job.task.seed,
        run_seed=job.task.run_seed,
        model=job.inputs["model"],
        cache=job.cache,
        io=job.io,
        engine=engine,
        verifiers=verifiers,
        data=job.inputs.get("prompts"),
    )
    result = job.registry.load(spec)(options).mix(context)
    shares = [asdict(share) for share in result.shares]
    sandbox = verifiers.sandbox_backend()
    rows = write_rows(job.output, result.rows, {"shares": shares, "facts": dict(result.facts), "sandbox": sandbox})
    if rows == 0:
        raise DataError(f"data entry {job.task.step.rpartition('/')[2]!r} came out without a row")
    tokens = [share.tokens for share in result.shares if share.tokens is not None]
    return {"rows": rows, **({"tokens": sum(tokens)} if tokens else {}), "facts": dict(result.facts)}


def _decontaminate(job: Job) -> dict[str, Any]:
    from steelyard.decontaminate import ContaminatedError, ItemIndex, Rule, clean, read_items
    from steelyard.rows import read_facts, read_rows, write_rows

    config = job.config
    items = [
        {"task": f"{suite}/{item.task}", "id": item.id, "fields": dict(item.fields)}
        for role, suite in sorted(config["roles"].items())
        for item in read_items(job.inputs[f"items/{role}"] / "items.jsonl")
    ]
    index = ItemIndex.build(items, Rule(**config["rule"]))
    data = job.inputs["data"]
    paraphrases = _paraphrase_search(job, index)
    cleaning = clean(
        index,
        _counted(read_rows(data), read_facts(data)["rows"], job.io),
        action=config["action"],
        reason=config["reason"],
        suites=config["suites"],
        source=job.task.step.partition("/")[2],
        paraphrases=paraphrases,
    )
    facts: dict[str, Any] = {name: value for name, value in read_facts(data).items() if name != "rows"}
    try:
        rows = write_rows(job.output, cleaning, facts)
    except ContaminatedError as error:
        _keep_refusal(job, error)
        raise
    # Without its time: the same work leaves the same bytes.
    findings = {name: value for name, value in cleaning.report.to_dict().items() if name != "scan_seconds"}
    if paraphrases is not None:
        findings["paraphrases"] = paraphrases.to_dict()
        found, taken = len(findings["paraphrases"]["found"]), findings["paraphrases"]["removed_rows"]
        job.io.log(f"paraphrases, by embeddings: {found:,} pairs of a row and an item, {taken:,} rows removed for them")
    write_json(job.output / "decontamination.json", findings)
    (job.output / "certificate.json").write_text(cleaning.certificate.to_json(), encoding="utf-8")
    job.io.log(f"decontamination: {cleaning.certificate.sentence}")
    if rows == 0:
        what = "holds an evaluation item" if paraphrases is None else "holds an evaluation item or what counts as a paraphrase of one"
        raise DataError(f"every row of {job.task.step.partition('/')[2]!r} {what}; take other data")
    certificate = cleaning.certificate
    summary = {"rows": rows, "removed": certificate.removed_rows, "decision": certificate.decision}
    return {**summary, "paraphrases_removed": findings["paraphrases"]["removed_rows"]} if paraphrases is not None else summary


def _paraphrase_search(job: Job, index: ItemIndex) -> ParaphraseSearch | None:
    """The second look that the recipe asks for; loads its encoder."""
    from steelyard.decontaminate.paraphrases import ParaphraseSearch, open_encoder

    wanted = job.config.get("paraphrases")
    if wanted is None:
        return None
    folder = job.task.recipe_dir / Path(wanted["model"]).expanduser()
    encoder = open_encoder(str(folder) if folder.is_dir() else wanted["model"], name=wanted["model"])
    return ParaphraseSearch(index, encoder, threshold=wanted["threshold"], remove=wanted["remove"])


def _keep_refusal(job: Job, error: Any) -> None:
    """The refused dataset is thrown away; why it was refused is what the human needs."""
    path = job.task.log.with_suffix(".decontamination.json")
    write_json(path, error.report.to_dict())
    job.io.log(f"the matches are in {path}")


def _counted(rows: Iterator[Row], total: int, io: StepIO) -> Iterator[Row]:
    for number, row in enumerate(rows, start=1):
        if number % 1000 == 0 or number == total:
            io.progress(number, total, "rows")
        yield row


def _evaluate(job: Job) -> dict[str, Any]:
    suite = _suite(job)
    harness = job.registry.load(job.registry.get("harnesses", suite.harness))(job.registry)
    context = EvaluateContext(
        suite=suite,
        model=job.inputs["model"],
        output=job.output,
        seed=job.task.seed,
        io=job.io,
        engine=open_engines(job.registry, job.config["engine"], job.inputs["model"], job.closing, trust_remote_code=job.trusts_remote_code),
        cache=job.cache,
        options={
            **(job.config.get("model_options") or {}),
            **(job.config.get("options") or {}),
            "allow_unsafe_local": job.task.allow_unsafe_local,
        },
        # With the checkpoints: kept when the step is stopped or dies, gone when it is done.
        journal=job.task.checkpoints / "journal",
    )
    summary = harness.evaluate(context)
    for name in ("items.jsonl", "eval.json"):
        if not (job.output / name).is_file():
            raise StepFailedError(job.task.step, f"harness {suite.harness!r} left no {name} in its output folder")
    tasks = summary.get("tasks", {})
    return {"tasks": {name: {"n": facts.get("n"), "score": facts.get("score")} for name, facts in tasks.items()}}


def _suite(job: Job) -> Suite:
    from steelyard.recipe.suite import Suite

    return Suite.placed(job.config["suite"], job.task.places)


def write_json(path: Path, value: Any) -> None:
    """Indented JSON in a folder that is not published yet, or that only a human reads."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n"
    # Half a surrogate pair is no UTF-8; its escape is JSON.
    path.write_text(text, encoding="utf-8", errors="backslashreplace")


_EXECUTORS: Mapping[str, Callable[[Job], dict[str, Any]]] = {
    "import": _import,
    "items": _items,
    "data": _data,
    "decontaminate": _decontaminate,
    "stage": _stage,
    "evaluate": _evaluate,
}
