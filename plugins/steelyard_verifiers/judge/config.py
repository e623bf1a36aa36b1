"""What a recipe may say about ``judge``, ``pairwise``, ``wildguard`` and ``reward_model``."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from steelyard.endpoint.config import EndpointConfig as ServerConfig
from steelyard.errors import UsageError
from steelyard.run.keys import fingerprint_path
from steelyard_verifiers.judge.model_folder import on_this_disk
from steelyard_verifiers.thinking import THINK_TAGS

__all__ = ["AskedConfig", "EndpointConfig", "JudgeConfig", "PairwiseConfig", "RewardModelConfig", "WildGuardConfig"]

_OURS = ("messages", "model", "n", "prompt", "stream")
_NOT_FOR_A_JUDGE = ("module", "tokenizer", "trust_remote_code")
_NOT_EMPTY = Field(min_length=1)


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class EndpointConfig(ServerConfig):
    """A server that speaks OpenAI's API: vLLM, llama.cpp, a hosted service."""

    url: str = ""
    """Base address, such as `http://127.0.0.1:8000/v1`; requests go to `/chat/completions` below it, those of `wildguard` to
    `/completions`. Proxies come from the environment (`HTTPS_PROXY`, `NO_PROXY`), certificates from the system."""
    url_env: str | None = Field(default=None, min_length=1)
    """Name of an environment variable that holds the address, instead of `url`: for a suite that several machines share."""
    model: str = Field(min_length=1)
    """The model's name there."""
    give_up_after: int = Field(default=8, ge=1)
    """Votes in a row that were lost to a dead or overloaded server, after which the others of the same batch are not asked any more."""

    @field_validator("body")
    @classmethod
    def _not_ours(cls, body: dict[str, Any]) -> dict[str, Any]:
        for key in _OURS:
            if key in body:
                raise ValueError(f"key {key!r} is the judge's own and cannot be given in `body`")
        return body

    @model_validator(mode="after")
    def _has_one_address(self) -> Self:
        if bool(self.url) == (self.url_env is not None):
            raise ValueError("give either `url` or `url_env`, the variable that holds it")
        return self

    def at(self, environment: Mapping[str, str]) -> EndpointConfig:
        """With its address as `url`. Raises :class:`UsageError` for a variable that is not set or holds no address."""
        if self.url_env is None:
            return self
        value = environment.get(self.url_env, "").strip()
        if not value:
            raise UsageError(f"the environment variable {self.url_env!r} (url_env) is not set; it holds the judge's address")
        try:
            return EndpointConfig.model_validate({**self.model_dump(), "url": value, "url_env": None})
        except ValidationError as error:
            what = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise UsageError(f"the environment variable {self.url_env!r} (url_env): {what}") from error


class AskedConfig(_Config):
    """Who is asked. One of ``model`` and ``endpoint``."""

    model: str | None = Field(default=None, min_length=1)
    """The judging model, run by the recipe's engine: a model folder, a `.gguf` file (with `cache`), or a hub id."""
    revision: str | None = None
    """Of a hub model."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Keys of the engine's configuration that are different for the judge, such as `max_model_len` or `dtype`."""
    trust_remote_code: str | None = None
    """The name of the model, once more, where it may run its own Python."""
    endpoint: EndpointConfig | None = None
    """The server that judges, instead of `model`."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(default=1024, ge=1)
    """Room for the judge's thinking, reasons and verdict; a reply that is cut off here has no verdict."""
    seed: int = 0
    """Of the judge's samples; each vote's own seed also depends on all that is asked."""
    strip_thinking: bool = True
    """Whether the judge is shown the answer without its thinking; unclosed thinking is then `unparseable`."""
    think_tags: tuple[Annotated[str, _NOT_EMPTY], Annotated[str, _NOT_EMPTY]] = THINK_TAGS
    """What opens and closes the answer's thinking."""
    max_answer_characters: int = Field(default=40_000, ge=1)
    """A longer answer is `unparseable`, unasked."""
    control_tokens: tuple[Annotated[str, Field(min_length=2)], ...] = ()
    """Further texts that are control tokens of the judging model; in what it is shown they are broken up by a space. Common ones, and all
    that a local model's tokenizer has, need no mention."""
    cache: str | None = Field(default=None, min_length=1)
    """Folder for verdicts, from the recipe's folder; several processes may share it. Without it they are kept in memory."""

    @model_validator(mode="after")
    def _says_who(self) -> Self:
        if (self.model is None) == (self.endpoint is None):
            raise ValueError("give either `model`, for the recipe's engine, or `endpoint`, and not both")
        if self.model is None:
            for name in ("engine", "revision", "trust_remote_code"):
                if getattr(self, name):
                    raise ValueError(f"`{name}` is about `model`, and the judge is an endpoint")
        for name in _NOT_FOR_A_JUDGE:
            if name in self.engine:
                raise ValueError(f"engine key {name!r} cannot be given to a judge, which has weights of its own")
        if self.trust_remote_code not in (None, self.model):
            raise ValueError(f"trust_remote_code must be the model's name, {self.model!r}, not {self.trust_remote_code!r}")
        return self

    def fingerprint(self, base: Path) -> str:
        """Changes with a local model; what a server serves under a name cannot be seen from here."""
        model = on_this_disk(self.model, base) if self.model else None
        return _fingerprint(*([model] if model else []))


class JudgeConfig(AskedConfig):
    """Options of ``judge``."""

    mode: Literal["reference", "rubric", "pointwise"] = "reference"
    """What is asked: whether the answer agrees with a reference answer; how well it meets a rubric; how good it is, by itself."""
    output: Literal["verdict", "score"] | None = None
    """How the judge answers: `VERDICT: CORRECT` or `VERDICT: INCORRECT`; or `{"score": n}`. Default: verdict in mode `reference`, else
    score."""
    scale: tuple[float, float] = (1.0, 10.0)
    """Worst and best score that the judge may give; a verifier's score is where it lies between them, from 0 to 1."""
    threshold: float = Field(default=0.5, gt=0, le=1)
    """The least score, above 0 and up to 1, that is `correct`; a majority has no use for it."""
    rubric: Annotated[str, _NOT_EMPTY] | tuple[Annotated[str, _NOT_EMPTY], ...] | None = None
    """For `rubric`: the text or list of criteria for rows whose reference has none."""
    question_required: bool = True
    """Whether a check without the question (neither in the conversation nor in the reference) is an error."""
    template: str | None = None
    """Path of a Jinja file for the prompt, from the recipe's folder; see README.md for what it is given."""
    samples: int = Field(default=1, ge=1, le=64)
    """Votes for each answer."""
    combine: Literal["majority", "mean"] | None = None
    """What becomes of several votes. Majority: what more than half of `samples` say, else `error`. Mean: of them all. Default: majority of
    verdicts, mean of scores."""
    temperature: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """At which the judge is sampled."""
    attempts: int = Field(default=2, ge=1, le=10)
    """How often a vote is asked for until it can be read; after that the outcome is `error`."""
    retry_temperature: float = Field(default=0.7, gt=0, allow_inf_nan=False)
    """Temperature of attempts after the first, if higher than `temperature`: a greedy judge would say the same again."""
    judge_think_tags: tuple[Annotated[str, _NOT_EMPTY], Annotated[str, _NOT_EMPTY]] = THINK_TAGS
    """What opens and closes the judge's own thinking, in which no verdict is looked for."""

    @model_validator(mode="after")
    def _fits_together(self) -> JudgeConfig:
        if not self.scale[0] < self.scale[1]:
            raise ValueError(f"scale is {list(self.scale)!r}; it goes from the worst score to a higher, best one")
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(f"samples is {self.samples!r} at temperature 0, which gives the same vote each time; set a temperature")
        if self.combine == "majority" and self.asks_for == "score":
            raise ValueError("a majority is of verdicts; scores are combined by `mean`")
        if self.rubric is not None and self.mode != "rubric":
            raise ValueError(f"a rubric was given, and mode is {self.mode!r}; say `mode: rubric`")
        if self.rubric == ():
            raise ValueError("the rubric is an empty list")
        return self

    @property
    def asks_for(self) -> Literal["verdict", "score"]:
        """``output``, with its default filled in."""
        return self.output or ("verdict" if self.mode == "reference" else "score")

    @property
    def combines_by(self) -> Literal["majority", "mean"]:
        """``combine``, with its default filled in."""
        return self.combine or ("majority" if self.asks_for == "verdict" else "mean")

    def fingerprint(self, base: Path) -> str:
        """Changes with the template file and a local model; what a server serves under a name cannot be seen from here."""
        paths = [base / Path(self.template).expanduser()] if self.template else []
        model = on_this_disk(self.model, base) if self.model else None
        return _fingerprint(*paths, *([model] if model else []))


class PairwiseConfig(AskedConfig):
    """Options of ``pairwise``."""

    template: str = "alpaca_eval"
    """The prompt: `alpaca_eval`, `best_of_two`, or the path of a Jinja file from the recipe's folder; see README.md."""
    labels: tuple[Annotated[str, _NOT_EMPTY], Annotated[str, _NOT_EMPTY]] = ("m", "M")
    """What the judge calls the first and the second answer."""
    tie: str | None = None
    """What it says where both are as good, with `reading: text`; such a check scores a half. Default: it must choose."""
    reading: Literal["weighted", "text"] = "weighted"
    """`weighted`: the score is the probability of the answer's label against the other's, at the first token of the reply. `text`: the
    reply is a label and nothing else, and the score is 1 or 0."""
    top_logprobs: int = Field(default=5, ge=2, le=20)
    """With `weighted`, how many of the most probable tokens an endpoint is asked for."""
    max_new_tokens: int = Field(default=1024, ge=1)
    """Room for a reply read as text; a weighted one is a single token."""
    temperature: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """Sent to an endpoint with `weighted`, where it only says what the probabilities are of. A reply read as text is greedy."""

    @model_validator(mode="after")
    def _labels_differ(self) -> PairwiseConfig:
        said = [*self.labels, *([self.tie] if self.tie is not None else [])]
        if len({text.strip() for text in said}) != len(said):
            raise ValueError(f"labels are {said!r}, which are not all different")
        if self.tie is not None and self.reading == "weighted":
            raise ValueError("`tie` belongs to `reading: text`; weighted labels always add up to 1")
        return self

    def fingerprint(self, base: Path) -> str:
        """Changes with the template file and a local model; what a server serves under a name cannot be seen from here."""
        file = base / Path(self.template).expanduser()
        model = on_this_disk(self.model, base) if self.model else None
        return _fingerprint(*([file] if self.template.endswith(".jinja") else []), *([model] if model else []))


class WildGuardConfig(AskedConfig):
    """Options of ``wildguard``: which copy of the classifier is asked."""

    max_new_tokens: int = Field(default=128, ge=16)
    """Room for its three lines."""


class RewardModelConfig(_Config):
    """Options of ``reward_model``."""

    model: str = Field(min_length=1)
    """A sequence classifier: a Hugging Face folder with safetensors, from the recipe's folder, a hub id, or one that a run made:
    `stage:NAME` of this run, for stages; `run:PATH#STEP` of another."""
    revision: str | None = None
    """Of a hub model."""
    trust_remote_code: str | None = None
    """The name of the model, once more, where it may run its own Python."""
    label: int | str | None = None
    """Which label's logit is the score, by number or name; needed where the model has several."""
    input: Literal["chat", "pair"] = "chat"
    """What the model reads: the conversation under its chat template, or question and answer as a pair of texts (cross-encoders)."""
    transform: Literal["raw", "sigmoid", "softmax", "linear"] = "raw"
    """From the logit to the score: as it is; its sigmoid; its share in the softmax over all labels; or 0 at `low` and 1 at `high` and
    straight in between."""
    low: float = Field(default=0.0, allow_inf_nan=False)
    """For `linear`: the logit that scores 0, as do all below it."""
    high: float = Field(default=1.0, allow_inf_nan=False)
    """For `linear`: the logit that scores 1, as do all above it."""
    threshold: float | None = Field(default=None, allow_inf_nan=False)
    """The least score that is `correct`; default: 0 for `raw`, else 0.5."""
    max_length: int | None = Field(default=None, ge=8)
    """Longest input in tokens; default: the model's own context."""
    too_long: Literal["error", "truncate_left"] = "error"
    """What is done about a longer input: the outcome is `error`, or the oldest tokens are left out."""
    batch_size: int = Field(default=16, ge=1)
    """Most inputs scored at one time."""
    device: str = "auto"
    """Where the model runs: `auto` (an accelerator if there is one), `cpu`, `cuda`, `cuda:1` …"""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the weights; `auto` is bfloat16 on an accelerator and float32 on a CPU."""
    strip_thinking: bool = True
    """Whether the answer is scored without its thinking; unclosed thinking is then `unparseable`."""
    think_tags: tuple[Annotated[str, _NOT_EMPTY], Annotated[str, _NOT_EMPTY]] = THINK_TAGS
    """What opens and closes the answer's thinking."""
    max_answer_characters: int = Field(default=200_000, ge=1)
    """A longer answer is `unparseable`, unscored."""

    @model_validator(mode="after")
    def _fits_together(self) -> RewardModelConfig:
        if self.trust_remote_code not in (None, self.model):
            raise ValueError(f"trust_remote_code must be the model's name, {self.model!r}, not {self.trust_remote_code!r}")
        if not self.low < self.high:
            raise ValueError(f"low is {self.low!r} and high is {self.high!r}; low must be the smaller one")
        # By value: a resolved recipe gives every option, those that were left out as well.
        if self.transform != "linear" and (self.low, self.high) != (0.0, 1.0):
            raise ValueError(f"`low` and `high` belong to the transform 'linear', not {self.transform!r}")
        return self

    @property
    def correct_from(self) -> float:
        """``threshold``, with its default filled in."""
        return self.threshold if self.threshold is not None else 0.0 if self.transform == "raw" else 0.5

    def fingerprint(self, base: Path) -> str:
        """Changes with a local model."""
        model = on_this_disk(self.model, base)
        return _fingerprint(*([model] if model else []))


def _fingerprint(*paths: Path) -> str:
    for path in paths:
        if not path.exists():
            raise UsageError(f"no file or folder {str(path)!r}")
    return hashlib.sha256("".join(fingerprint_path(path) for path in paths).encode()).hexdigest()
