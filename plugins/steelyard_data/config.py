"""Configuration of the sources and mixers."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from steelyard.dataset_mirrors import find_mirror
from steelyard_data.procedural import TASKS, Split

Layout = Literal["auto", "messages", "sharegpt", "alpaca", "preference", "ranked", "labelled", "prompts", "prompt_completion", "text"]

_HASHED_WHOLE = 64 * 2**20


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class RowOptions(_Config):
    """How foreign rows become Steelyard's; common to the sources that read files."""

    layout: Layout = "auto"
    """What the rows look like; `auto` recognises it from the columns of the first row and refuses what it does not know."""
    columns: dict[str, str] = Field(default_factory=dict)
    """Renames before recognition: Steelyard's column → the file's, e.g. `{prompt: question, completion: answer}`. Dots reach into
    structs."""
    keep: tuple[str, ...] = ()
    """Further columns that rows keep as they are, by their names after `columns`, such as a `pass_rate` for a curriculum."""
    system: str | None = None
    """A system message put in front of every conversation that has none."""
    verifier: str | None = None
    """The verifier every row is given, where the rows name none (RL prompts)."""
    license: str | None = None
    """The licence of the data, for the dataset's record; default: what the dataset's card says, where it has one."""


class JsonlConfig(RowOptions):
    path: str | list[str]
    """One or several files, relative to the recipe; `*` matches as in the shell, `.gz` is read through."""
    max_bad_lines: int = Field(default=0, ge=0)
    """How many lines may be broken before the source is refused; those that are get counted and left out."""

    def fingerprint(self, base: Path) -> str:
        return fingerprint_files(self.path, base)


class ParquetConfig(RowOptions):
    path: str | list[str]
    """One or several files, relative to the recipe; `*` matches as in the shell."""

    def fingerprint(self, base: Path) -> str:
        return fingerprint_files(self.path, base)


class HubConfig(RowOptions):
    dataset: str
    """A hub id such as `allenai/tulu-3-sft-mixture`, or a local folder of the same layout (relative to the recipe)."""
    subset: str | None = None
    """The configuration of the dataset, where it has several."""
    split: str = "train"
    revision: str | None = None
    """A commit or tag; without one, whatever the hub serves when the data is first made."""

    def fingerprint(self, base: Path) -> str:
        folder = base / self.dataset
        if folder.is_dir():
            return fingerprint_files(str(folder / "**" / "*"), base)
        mirror = find_mirror(self.dataset)
        return f"hub:{self.revision}" if mirror is None else f"mirror:{mirror.fingerprint}"


class TasksConfig(_Config):
    tasks: list[str] | dict[str, float] = Field(default_factory=lambda: list(TASKS))
    """Which tasks, evenly or by weight."""
    split: Split = "train"
    """`train`, `dev`, `tune` or `unseen`; which item belongs where follows from a hash of its prompt, in every form and seed."""
    rows: int = Field(gt=0)
    """How many rows are made."""
    form: Literal["plain", "chat", "prompt"] = "chat"
    """`plain`: a line `key=answer` as prompt and completion; `chat`: messages with the answer; `prompt`: messages that end in the question,
    with a reference."""
    verbose_share: float = Field(default=0.0, ge=0, le=1)
    """Share of chat answers written `ans: 85` and not `85`."""
    long_share: float = Field(default=0.0, ge=0, le=1)
    """Share of `train` items in the longer shape and other wording of `unseen`."""
    template: str = "{question}"
    """What is asked, in forms `chat` and `prompt`: text in which `{question}` stands for the task's own words."""
    verifier: str | None = None
    """The verifier named by every row of form `prompt`."""
    seed: int = 0
    """Which items are drawn; the split they come from does not depend on it."""

    @model_validator(mode="after")
    def _known(self) -> TasksConfig:
        for name in self.tasks:
            if name not in TASKS:
                raise ValueError(f"unknown task {name!r}: one of {', '.join(TASKS)}")
        if "{question}" not in self.template:
            raise ValueError(f"template {self.template!r} has no {{question}} in it")
        return self


class DeduplicateConfig(_Config):
    """Which rows of a mix repeat others. The first of them stays, in the recipe's order of sources."""

    of: Literal["row", "prompt"] = "row"
    """What is compared: all texts of a row, or its prompt (everything but what the assistant and the system say)."""
    near: float | None = Field(default=None, ge=0.5, le=1)
    """Leave out near duplicates as well: rows whose shingles have this Jaccard index, or a higher one, with those of a row that stays."""
    words: int = Field(default=5, ge=1)
    """Length of a shingle, in words; case and punctuation do not count."""


class MixConfig(_Config):
    total: int | None = Field(default=None, gt=0)
    """Rows of the mix, when sources have a `weight`; without it, the most that the weighted sources can give."""
    shuffle: bool = True
    """Whether rows of different sources are shuffled together; else they follow one another in the recipe's order."""
    deduplicate: DeduplicateConfig | None = None
    """Leave out rows that repeat others, before counts and weights are applied; `{}` for exact duplicates alone."""


class PreferencePairsConfig(_Config):
    pairs: int | None = Field(default=None, gt=0)
    """Stop once this many pairs are made; without it every prompt is sampled."""
    samples: int = Field(default=8, ge=2)
    """Answers sampled for each prompt."""
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_new_tokens: int = Field(default=512, gt=0)
    verifier: str | None = None
    """The verifier whose score orders the answers; without it, the one each row names."""
    given: str | None = None
    """A second verifier that both answers of a pair must satisfy, so that pairs differ in what `verifier` measures and in nothing else."""
    pairs_per_prompt: int = Field(default=1, ge=1)
    """At most this many pairs of one prompt, each of two other answers."""
    rejected: Literal["random", "lowest"] = "random"
    """Which of the answers with a strictly lower score is rejected."""
    truncated: Literal["drop", "keep"] = "drop"
    """Whether an answer cut off at `max_new_tokens` may be in a pair."""
    min_pairs: int = Field(default=1, ge=1)
    """Fewer pairs than this are an error and not a dataset."""
    batch_prompts: int = Field(default=128, ge=1)
    """Prompts sampled at a time."""


def fingerprint_files(path: str | list[str], base: Path) -> str:
    """A hash that changes when a file does: of the whole content up to 64 MiB, of size and modification time beyond."""
    digest = hashlib.sha256()
    for file in matching_files(path, base):
        stat = file.stat()
        digest.update(f"{file.name}:{stat.st_size}:".encode())
        digest.update(file.read_bytes() if stat.st_size <= _HASHED_WHOLE else str(stat.st_mtime_ns).encode())
    return digest.hexdigest()


def matching_files(path: str | list[str], base: Path) -> list[Path]:
    """The files that `path` names, in a stable order; relative paths start at `base`. A pattern that matches nothing names none."""
    files: list[Path] = []
    for pattern in [path] if isinstance(path, str) else path:
        whole = base / Path(pattern).expanduser()
        if any(c in pattern for c in "*?["):
            anchor = Path(whole.anchor)
            files.extend(sorted(p for p in anchor.glob(str(whole.relative_to(anchor))) if p.is_file()))
        else:
            files.append(whole)
    return files
