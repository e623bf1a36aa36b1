"""The card of a model: the README.md of its folder, from its lineage alone, so that it says nothing that cannot be checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from steelyard.report.formatting import number, value_text, visible

__all__ = ["model_card"]


def model_card(folder: Path | None, lineage: Mapping[str, Any], *, verdict: Mapping[str, Any] | None = None) -> str:
    """The card in Markdown, with the front matter that model hubs read.

    ``lineage`` is the content of ``lineage.json``; ``folder``, where given, is the model's, whose ``config.json`` names its
    architecture; ``verdict`` is the content of ``verdict.json``, once there is one. Names that come from models and datasets are set as
    code, so that none is read as markup."""
    made = list(_ancestry(lineage))
    parts = [_front_matter(lineage, made), f"# {code(lineage['step'])}", _opening(lineage, folder), _verdict(lineage, verdict)]
    parts += [_stages(made), _data(made), _use(lineage), _licence(made), _lineage(lineage)]
    return "\n\n".join(part for part in parts if part) + "\n"


def code(value: Any) -> str:
    """A name as inline code, on one line, whatever is in it."""
    text = " ".join(visible(str(value)).split()) or " "
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * (longest + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    # A table cell ends at a bar even inside code.
    return f"{fence}{pad}{text}{pad}{fence}".replace("|", "\\|")


def _ancestry(lineage: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The models on the way from the base to this one, the base first; references are not on it."""
    parent = (lineage.get("parents") or {}).get("model")
    if parent is not None:
        yield from _ancestry(parent)
    yield lineage


def _origin(base: Mapping[str, Any]) -> str:
    """Where the weights of a base come from; empty for a model that began with random ones."""
    return "" if (base.get("config") or {}).get("new") else str(base.get("origin") or "")


def _scores(lineage: Mapping[str, Any]) -> bool:
    return lineage.get("makes") == "reward_model"


def _front_matter(lineage: Mapping[str, Any], made: Sequence[Mapping[str, Any]]) -> str:
    origin = _origin(made[0])
    task = "text-classification" if _scores(lineage) else "text-generation"
    lines = ["library_name: transformers", f"pipeline_tag: {task}", f"tags: {json.dumps(['steelyard', str(lineage['kind'])])}"]
    # Hubs link `base_model` to a repository: only what looks like the id of one is said there.
    if origin and re.fullmatch(r"[\w.-]+/[\w.-]+", origin):
        lines.append(f"base_model: {json.dumps(origin)}")
    return "---\n" + "\n".join(lines) + "\n---"


def _opening(lineage: Mapping[str, Any], folder: Path | None) -> str:
    parameters = lineage.get("parameters")
    what = "A reward model" if _scores(lineage) else "A model"
    what += f" of {number(parameters)} parameters" if parameters else ""
    architecture = _architecture(folder)
    what += f" ({code(architecture)})" if architecture else ""
    if not (lineage.get("parents") or {}):
        origin = _origin(lineage)
        told = f"imported from {code(origin)}" if origin else "new, with random weights"
        return f"{what}, {told}. Nothing has been trained in this run yet."
    return f"{what}, made by the stage {code(lineage['step'])} ({code(lineage['kind'])}) of a Steelyard run."


def _architecture(folder: Path | None) -> str:
    if folder is None:
        return ""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return str(config["architectures"][0])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return ""


def _verdict(lineage: Mapping[str, Any], verdict: Mapping[str, Any] | None) -> str:
    if _scores(lineage):
        text = "It scores answers and writes none, so that no gate weighs it: what it is worth shows in the models trained with it."
    elif verdict is None:
        text = (
            "This card was written when the model was, before any gate weighed it. Whether it was promoted stands in the ledger of its run "
            "(`steelyard report RUN_DIR`)."
        )
    else:
        text = f"The gate decided **{verdict['decision']}**:\n\n> {_escaped(verdict['sentence'])}"
    return f"## Verdict\n\n{text}"


def _stages(made: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        f"| {number} | {code(model['step'])} | {code(model['kind'])}{_merged(model)} | {_options(model.get('config') or {})} |"
        for number, model in enumerate(made)
    ]
    return "\n".join(["## How it was made", "", "| | step | kind | configuration |", "|---|---|---|---|", *rows])


def _merged(model: Mapping[str, Any]) -> str:
    """The further models that it was made with, each told of in full under lineage."""
    named = {role.partition(":")[2]: parent for role, parent in (model.get("parents") or {}).items() if role.startswith("model:")}
    told = [f"{code(role)} {code(parent.get('outside') or parent['step'])}" for role, parent in named.items()]
    return f" with {', '.join(told)}" if told else ""


def _options(config: Mapping[str, Any]) -> str:
    told = [f"{key} = {value_text(value)}" for key, value in config.items() if value not in (None, {}, [], "") and key != "path"]
    return ", ".join(code(text if len(text) <= 120 else text[:119] + "…") for text in told) or "–"


def _data(made: Sequence[Mapping[str, Any]]) -> str:
    trained = [(model, model["data"]) for model in made if model.get("data")]
    if not trained:
        return "## Training data\n\nNone in this run."
    lines = ["## Training data", ""]
    for model, data in trained:
        lines.append(f"- {code(model['step'])}: {number(data.get('rows'))} rows, dataset {code(data['key'])}. {_certificate(data)}")
        for share in data.get("shares") or ():
            lines.append(f"  - {code(share.get('source'))}: {_share(share)}")
    return "\n".join(lines)


def _share(share: Mapping[str, Any]) -> str:
    told = [f"{number(share.get('rows_taken'))} of {number(share.get('rows_available'))} rows"]
    if share.get("tokens") is not None:
        trained = f", {number(share['trained_tokens'])} of them trained" if share.get("trained_tokens") is not None else ""
        told.append(f"{number(share['tokens'])} tokens{trained}")
    told.append(f"licence {code(share['license'])}" if share.get("license") else "licence not given")
    return "; ".join(told)


def _certificate(data: Mapping[str, Any]) -> str:
    from steelyard.decontaminate import Certificate
    from steelyard.errors import DataError

    if data.get("certificate") is None:
        return "It was not compared with any evaluation suite."
    try:
        certificate = Certificate.from_dict(data["certificate"])
    except DataError as error:
        return f"Its decontamination certificate cannot be read: {_escaped(error)}."
    suites = ", ".join(f"{code(name)} {code(version)}" for name, version in certificate.suites.items()) or "no suite"
    return f"Decontaminated against {suites}: {_escaped(certificate.sentence)}."


def _use(lineage: Mapping[str, Any]) -> str:
    template = lineage.get("template_hash")
    if not template:
        return ""
    if _scores(lineage):
        return f"## Use\n\nIt scores a conversation under the chat template in this folder (hash {code(template)})."
    return (
        "## Use\n\nPrompt it through the chat template in this folder (hash of template, tokenizer and special tokens: "
        f"{code(template)}); under another template the evaluations of its run say nothing."
    )


def _licence(made: Sequence[Mapping[str, Any]]) -> str:
    origin = _origin(made[0])
    base = f"The weights derive from {code(origin)}" if origin else "The weights were trained from scratch in this run"
    return (
        f"## Licence\n\n{base}; {'its licence and those' if origin else 'the licences'} of the training data above apply. "
        "Steelyard adds no terms of its own and has not checked theirs: do so before you share this model."
    )


def _lineage(lineage: Mapping[str, Any]) -> str:
    lines = ["## Lineage", "", "Each key is the hash of what the artifact was made from and by; `lineage.json` has all of it.", ""]
    lines += _branch(lineage, "model", 0)
    return "\n".join(lines)


def _branch(lineage: Mapping[str, Any], role: str, depth: int) -> Iterator[str]:
    weights = lineage.get("weights_sha256")
    told = f", weights sha256 {code(weights)}" if weights else ""
    told += f", from outside the run: {code(lineage['outside'])}" if lineage.get("outside") else ""
    yield f"{'  ' * depth}- {role} {code(lineage['step'])}: key {code(lineage['key'])}{told}"
    if lineage.get("data"):
        yield f"{'  ' * (depth + 1)}- data: key {code(lineage['data']['key'])}"
    for name, parent in (lineage.get("parents") or {}).items():
        yield from _branch(parent, name, depth + 1)


def _escaped(text: Any) -> str:
    """A sentence as Markdown text: on one line, with nothing in it read as markup."""
    return re.sub(r"([\\`*_\[\]<>|#~$&])", r"\\\1", " ".join(visible(str(text)).split()))
