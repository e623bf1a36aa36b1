"""What flows between the rooms: messages, prompts, completions, verdicts, rollouts, item scores.

Plain frozen dataclasses without behaviour beyond JSON; nothing here knows torch. Token ids are ints of the model's own tokenizer,
log-probabilities are natural logarithms.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict

__all__ = [
    "Completion",
    "FinishReason",
    "ItemScore",
    "Message",
    "Outcome",
    "Prompt",
    "Rollout",
    "Row",
    "Sampling",
    "SandboxJob",
    "SandboxOutcome",
    "Scored",
    "SourceShare",
    "StageResult",
    "Verdict",
    "derive_seed",
]

Row = dict[str, Any]
"""One example of a dataset. SFT rows have ``messages``; preference rows ``prompt``, ``chosen``, ``rejected`` (lists of messages); RL rows
``messages`` (ending in a user turn), ``verifier``, ``reference``, or several ``verifiers`` with ``references`` by verifier; plain-text rows
``text``, or ``prompt`` and ``completion`` as strings.
Any row may carry ``id`` and ``source``; an RL row with ``canary: true`` has a task that cannot be solved: it is watched and not trained
on."""

FinishReason = Literal["stop", "length", "abort"]
"""Why generation ended: an end token or a stop text; the token limit; the engine gave up."""


class Message(TypedDict):
    """One turn of a conversation, in the shape chat templates take."""

    role: str
    content: str
    name: NotRequired[str]
    tool_calls: NotRequired[list[dict[str, Any]]]


class Outcome(StrEnum):
    """What a verifier found. ``timeout`` and ``error`` are failures of the machinery, never a score of 0."""

    CORRECT = "correct"
    INCORRECT = "incorrect"
    UNPARSEABLE = "unparseable"
    TIMEOUT = "timeout"
    ERROR = "error"

    @property
    def is_failure(self) -> bool:
        """Whether the verifier failed, so that the completion has no score at all."""
        return self in (Outcome.TIMEOUT, Outcome.ERROR)


@dataclass(frozen=True, slots=True)
class Prompt:
    """An input to an engine: exactly one of ``messages`` (the engine applies the model's chat template with its generation prompt),
    ``text`` (tokenised as it stands, with no template) or ``token_ids``."""

    id: str
    messages: tuple[Message, ...] | None = None
    text: str | None = None
    token_ids: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if sum(x is not None for x in (self.messages, self.text, self.token_ids)) != 1:
            raise ValueError(f"prompt {self.id!r} needs exactly one of messages, text, token_ids")


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an engine samples. ``temperature`` 0 is greedy; ``top_k`` 0 and ``top_p`` 1 switch those filters off.

    Sample ``j`` of a prompt draws from a stream seeded by ``derive_seed(seed, prompt.id, j)``, so that batching does not change it."""

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    n: int = 1
    stop: tuple[str, ...] = ()
    seed: int = 0
    logprobs: bool = True


@dataclass(frozen=True, slots=True)
class Completion:
    """One generated answer. ``logprobs[t]`` is the log-probability of ``token_ids[t]`` under the distribution that was sampled from
    (after temperature and truncation); the end token, when one was produced, is the last of ``token_ids``. ``text`` leaves out
    special tokens and the stop text. ``weight_version`` counts weight loads of the engine that made it, from 0."""

    prompt_id: str
    sample: int
    token_ids: tuple[int, ...]
    text: str
    finish_reason: FinishReason
    logprobs: tuple[float, ...] | None = None
    weight_version: int = 0
    prompt_token_ids: tuple[int, ...] = ()
    messages: tuple[Message, ...] | None = None
    """The conversation it answers, where the caller knows it; judges and reward models need it."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A continuation that was scored, not sampled: the sum of its tokens' log-probabilities, and whether greedy decoding would give it."""

    logprob: float
    is_greedy: bool
    token_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verifier says of a completion. ``score`` is None exactly when ``outcome`` is a failure; otherwise a finite number,
    1.0 for full marks."""

    outcome: Outcome
    score: float | None
    detail: str = ""

    def __post_init__(self) -> None:
        if self.outcome.is_failure != (self.score is None):
            raise ValueError(f"a verdict of {self.outcome.value!r} cannot have score {self.score!r}")

    @classmethod
    def correct(cls, detail: str = "") -> Verdict:
        return cls(Outcome.CORRECT, 1.0, detail)

    @classmethod
    def incorrect(cls, detail: str = "") -> Verdict:
        return cls(Outcome.INCORRECT, 0.0, detail)

    @classmethod
    def unparseable(cls, detail: str = "") -> Verdict:
        return cls(Outcome.UNPARSEABLE, 0.0, detail)

    @classmethod
    def error(cls, detail: str) -> Verdict:
        return cls(Outcome.ERROR, None, detail)

    @classmethod
    def timeout(cls, detail: str) -> Verdict:
        return cls(Outcome.TIMEOUT, None, detail)


@dataclass(frozen=True, slots=True)
class SandboxJob:
    """A Python program that nobody trusts, and what it may use. Limits are of this job alone."""

    program: str
    """Source text, run as ``__main__`` by a fresh interpreter with the standard library, in an empty working folder."""
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Files in the working folder, by plain name."""
    stdin: bytes = b""
    timeout_s: float = 4.0
    """Wall-clock seconds, from the program's start."""
    memory_bytes: int = 1 << 30
    """Address space of each of its processes."""
    processes: int = 64
    """Processes and threads at one time."""
    disk_bytes: int = 64 << 20
    """Files it may write, all together; they are held in memory."""
    output_bytes: int = 4 << 20
    """Bytes of stdout, and of the result channel, after which it is ended. Of stderr the last 64 KiB are kept, however much there is."""
    environment: Path | None = None
    """A virtual environment of the interpreter's own version, or the ``site-packages`` of one: its packages, and nothing else of it, are
    there read-only for the program to import. None: the standard library alone."""


@dataclass(frozen=True, slots=True)
class SandboxOutcome:
    """What came out of a sandbox: bytes, and how the program ended. None of it is to be believed: the program wrote it."""

    ending: Literal["exited", "signal", "timeout", "output"]
    """It ended by itself; by a signal; it was ended at ``timeout_s``; it was ended at ``output_bytes``."""
    status: int | None
    """Exit status, or number of the signal; None when it was ended."""
    stdout: bytes
    stderr: bytes
    result: bytes
    """What it wrote to descriptor 3, which is there for results beside the program's own prints."""
    seconds: float
    backend: str


@dataclass(frozen=True, slots=True)
class Rollout:
    """A completion with its verdict and, once shaped, its reward. ``verdict`` is never changed by a shaper."""

    prompt: Prompt
    completion: Completion
    verdict: Verdict
    reward: float | None = None


@dataclass(frozen=True, slots=True)
class ItemScore:
    """One line of ``items.jsonl``: the score of one item (one sample of it) on one task."""

    task: str
    task_hash: str
    id: str
    score: float | None
    outcome: str
    cluster: str | None = None
    sample: int | None = None
    stratum: str | None = None
    """The item's group, of a task whose groups count alike."""

    def to_json(self) -> dict[str, Any]:
        row = asdict(self)
        return {k: v for k, v in row.items() if not (k in ("cluster", "sample", "stratum") and v is None)}


@dataclass(frozen=True, slots=True)
class SourceShare:
    """What a mixer took from one source."""

    source: str
    rows_available: int
    rows_taken: int
    tokens: int | None = None
    requested: str = ""
    """The share as the recipe asked for it, e.g. ``count 4800`` or ``weight 0.3``."""
    dropped: Mapping[str, int] = field(default_factory=dict)
    """Rows left out, by reason."""
    trained_tokens: int | None = None
    """Those of ``tokens`` that a model learns to write."""
    lengths: Mapping[str, float] = field(default_factory=dict)
    """Tokens of a row: ``mean``, ``p50``, ``p95``, ``max``."""
    languages: Mapping[str, float] = field(default_factory=dict)
    """Share of the rows taken by language code."""
    repeated: int = 0
    """Rows taken whose texts are those of another row taken from this source."""
    license: str | None = None


@dataclass(frozen=True, slots=True)
class StageResult:
    """What a stage hands back: final metrics, facts worth keeping (JSON), and the folder of the model it wrote."""

    model: Path
    metrics: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed from a path of names and numbers, e.g. ``derive_seed(run_seed, "grpo", step, prompt_id, sample)``."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
