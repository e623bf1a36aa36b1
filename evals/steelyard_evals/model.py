"""A Steelyard engine as an lm-eval model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedTokenizerFast

from steelyard.errors import DataError, UsageError, nearest
from steelyard.protocols import Engine
from steelyard.records import Completion, Prompt, Sampling, Scored
from steelyard_torch.templates import render, template_hash

__all__ = ["Question", "SteelyardLM", "sampling_from"]

_DEFAULT_NEW_TOKENS = 256
_GENERATION_KEYS = ("do_sample", "max_gen_toks", "temperature", "top_k", "top_p", "until")


@dataclass(frozen=True, slots=True)
class Question:
    """A rendered prompt under the id that seeds its samples."""

    id: str
    text: str


def sampling_from(generation: Mapping[str, Any], *, n: int = 1, seed: int = 0) -> Sampling:
    """lm-eval's ``generation_kwargs`` as :class:`Sampling`.

    Errors: :class:`UsageError` for a key that would be ignored, and for several samples without a temperature.
    """
    kwargs = dict(normalize_gen_kwargs(dict(generation), _DEFAULT_NEW_TOKENS))
    for key in kwargs:
        if key not in _GENERATION_KEYS:
            raise UsageError(f"generation key {key!r} is not supported{nearest(key, _GENERATION_KEYS)}")
    temperature = float(kwargs.get("temperature") or 0.0)
    if kwargs["do_sample"] and temperature == 0:
        temperature = 1.0 if "temperature" not in generation else 0.0
    if n > 1 and temperature == 0:
        raise UsageError(f"{n} samples of greedy decoding are all the same: set a temperature under `generation`, or `samples: 1`")
    return Sampling(
        max_new_tokens=kwargs["max_gen_toks"],
        temperature=temperature,
        top_p=float(kwargs.get("top_p") or 1.0),
        top_k=int(kwargs.get("top_k") or 0),
        n=n,
        stop=tuple(text for text in kwargs["until"] if text),
        seed=seed,
        logprobs=False,
    )


class SteelyardLM(TemplateLM):  # type: ignore[misc]
    """lm-eval's model interface over an :class:`~steelyard.protocols.Engine`.

    Args:
        tokenizer: the model's own; tokenisation follows lm-eval's conventions, except that prompts made by the chat template get no
            further special tokens, exactly as in training.
        chat: whether prompts come from :meth:`apply_chat_template`.
        truncate: cut the beginning off what does not fit in the context; else that is an error.
        seed: of samples with a temperature.
        chunk: most questions put to the engine in one call.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: PreTrainedTokenizerFast,
        *,
        chat: bool = False,
        truncate: bool = False,
        seed: int = 0,
        chunk: int = 512,
    ):
        super().__init__()
        self.engine, self.tokenizer = engine, tokenizer
        self.chat, self.truncate, self.seed, self.chunk = chat, truncate, seed, chunk
        self._advanced: Callable[[int, int], None] | None = None
        self._template_hash = template_hash(tokenizer)
        self._greedy: dict[tuple[tuple[int, ...], int, tuple[str, ...]], Completion] = {}

    def on_progress(self, advanced: Callable[[int, int], None] | None) -> None:
        """From now on ``advanced(done, total)`` is called after every part of a long call; what it raises ends the call."""
        self._advanced = advanced

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands in front of a text without context: the begin token, or the end token where there is none."""
        begin = self.tokenizer.bos_token_id
        return int(begin) if begin is not None else self.eot_token_id

    @property
    def max_length(self) -> int:
        """The context in tokens, as the engine has it."""
        return int(getattr(self.engine, "max_length", None) or 2**31 - 1)

    @property
    def max_gen_toks(self) -> int:
        return _DEFAULT_NEW_TOKENS

    @property
    def tokenizer_name(self) -> str:
        return self._template_hash

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation through the model's template; without ``add_generation_prompt`` its last message is left open."""
        if add_generation_prompt:
            return render(self.tokenizer, chat_history, add_generation_prompt=True)
        closed = render(self.tokenizer, chat_history)
        ending = chat_history[-1]["content"]
        at = closed.rfind(ending)
        if at < 0:
            raise DataError(f"the chat template rewrites the answer's beginning {ending!r}, so it cannot be left open for the model")
        return closed[: at + len(ending)]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        if add_special_tokens is None:
            begin = self.tokenizer.bos_token
            add_special_tokens = not self.chat and not (begin and string.startswith(begin))
        ids: list[int] = self.tokenizer(string, add_special_tokens=add_special_tokens)["input_ids"]
        return ids

    def complete(self, questions: Sequence[Question], sampling: Sampling) -> list[list[Completion]]:
        """``sampling.n`` completions of each question, in order. Greedy answers to the same prompt are generated once."""
        encoded = [self._fitting_prompt(self.tok_encode(q.text), sampling) for q in questions]
        answers: dict[int, list[Completion]] = {}
        wanted: list[int] = []
        asked: set[tuple[tuple[int, ...], int, tuple[str, ...]]] = set()
        for index, ids in enumerate(encoded):
            key = (ids, sampling.max_new_tokens, sampling.stop)
            if sampling.temperature > 0 or (key not in self._greedy and key not in asked):
                wanted.append(index)
                asked.add(key)
        # Longest first over all parts, so that each part holds prompts of like length.
        wanted.sort(key=lambda index: len(encoded[index]), reverse=True)
        for start in range(0, len(wanted), self.chunk):
            part = wanted[start : start + self.chunk]
            prompts = [Prompt(questions[i].id, token_ids=encoded[i]) for i in part]
            for index, completions in zip(part, self.engine.generate(prompts, sampling), strict=True):
                answers[index] = completions
                if sampling.temperature == 0:
                    self._greedy[encoded[index], sampling.max_new_tokens, sampling.stop] = completions[0]
            self._advance(start + len(part), len(wanted))
        return [
            answers[index] if index in answers else [self._greedy[ids, sampling.max_new_tokens, sampling.stop]]
            for index, ids in enumerate(encoded)
        ]

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(index)
        texts = [""] * len(requests)
        for members in groups.values():
            # lm-eval asks for several samples by repeating a request, one after the other.
            counts: dict[int, int] = {}
            for index in members:
                counts[id(requests[index])] = counts.get(id(requests[index]), 0) + 1
            for n in sorted(set(counts.values())):
                chosen = {id(requests[i]): requests[i] for i in members if counts[id(requests[i])] == n}
                questions = [Question(f"{r.task_name}/{r.doc_id}/{r.idx}", r.args[0]) for r in chosen.values()]
                sampling = sampling_from(next(iter(chosen.values())).args[1], n=n, seed=self.seed)
                made = dict(zip(chosen, self.complete(questions, sampling), strict=True))
                seen: dict[int, int] = {}
                for index in (i for i in members if id(requests[i]) in chosen):
                    key = id(requests[index])
                    texts[index] = made[key][seen.get(key, 0)].text
                    seen[key] = seen.get(key, 0) + 1
        return texts

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        if not hasattr(self.engine, "score_tokens"):
            return [s.logprob for s in self.engine.score([("", request.args[0]) for request in requests])]
        windows: list[tuple[tuple[str, str], list[int], list[int]]] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, min(self.max_length, max(len(ids), 1)), 1):
                context, continuation = make_disjoint_window(window)
                windows.append((("", request.args[0]), context, continuation))
                owners.append(index)
        totals = [0.0] * len(requests)
        for index, (logprob, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[index] += logprob
        return totals

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        score_tokens = getattr(self.engine, "score_tokens", None)
        scored: list[Scored] = []
        for start in range(0, len(requests), self.chunk):
            part = requests[start : start + self.chunk]
            if score_tokens is None:
                scored += self.engine.score([pair for pair, _, _ in part])
            else:
                scored += score_tokens([self._fitting_pair(context, continuation) for _, context, continuation in part])
            self._advance(start + len(part), len(requests))
        return [(s.logprob, s.is_greedy) for s in scored]

    def _fitting_prompt(self, ids: list[int], sampling: Sampling) -> tuple[int, ...]:
        if not self.truncate:
            return tuple(ids)
        room = self.max_length - sampling.max_new_tokens
        if room < 1:
            raise UsageError(f"{sampling.max_new_tokens:,} new tokens leave no room for a prompt in a context of {self.max_length:,}")
        return tuple(ids[-room:])

    def _fitting_pair(self, context: list[int], continuation: list[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
        surplus = len(context) + len(continuation) - 1 - self.max_length
        if surplus > 0 and not self.truncate:
            raise DataError(
                f"a question and its answer have {len(context) + len(continuation):,} tokens, and the context holds {self.max_length:,}: "
                "set `truncate: true` among the task's options to cut the question's beginning off"
            )
        if surplus >= len(context) and surplus > 0:
            raise DataError(f"an answer of {len(continuation):,} tokens does not fit in a context of {self.max_length:,}")
        return tuple(context[max(surplus, 0) :]), tuple(continuation)

    def _advance(self, done: int, total: int) -> None:
        if self._advanced is not None:
            self._advanced(done, total)
