"""What a stage carries from one rollout step to the next: answers that are not finished, and groups for which there was no room."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from steelyard.records import Completion, Outcome, Rollout, Verdict
from steelyard_rl.answers import Answer, Draft, Taken

__all__ = ["Buffer", "Group"]


@dataclass(frozen=True)
class Group:
    """One prompt's rollouts, with their shaped rewards, to be trained on."""

    rollouts: Sequence[Rollout]
    masks: Sequence[Sequence[bool] | None]
    """For each rollout, which tokens of its completion are trained; None for all of them."""
    segments: Sequence[Sequence[tuple[int, int]]] = ()
    """For each rollout, (version of the weights, how many tokens they sampled) in the order of the tokens; nothing where one version, that
    of the completion, sampled all of them."""
    origin: tuple[int, int] = (-1, -1)
    """The prompt's position in the pool's order, and its row."""

    def stale(self, version: int) -> list[Sequence[bool] | None]:
        """For each rollout, which tokens other weights than ``version`` sampled; None where there is none."""
        found: list[Sequence[bool] | None] = []
        for place, rollout in enumerate(self.rollouts):
            completion = rollout.completion
            several = self.segments[place] if self.segments else ()
            segments = several or ((completion.weight_version, len(completion.token_ids)),)
            flags = [made != version for made, count in segments for _ in range(count)]
            found.append(flags if any(flags) else None)
        return found


@dataclass
class Buffer:
    """Kept between rollout steps, and in checkpoints."""

    drafts: list[Draft] = field(default_factory=list)
    """Prompts whose answers have not all ended."""
    surplus: list[Group] = field(default_factory=list)
    """Groups for the next rollout step."""

    @property
    def unfinished(self) -> int:
        """Answers that go on."""
        return sum(answer.ending is None for draft in self.drafts for answer in draft.answers)

    @property
    def rows(self) -> set[int]:
        """The rows that are in here."""
        return {draft.taken.index for draft in self.drafts} | {group.origin[1] for group in self.surplus}

    def state(self) -> dict[str, Any]:
        """As JSON; numbers of many tokens as base64 of little-endian arrays."""
        return {
            "drafts": [
                {"origin": [draft.taken.position, draft.taken.index], "answers": [_saved_answer(answer) for answer in draft.answers]}
                for draft in self.drafts
            ],
            "surplus": [_saved_group(group) for group in self.surplus],
        }

    def restore(self, state: Mapping[str, Any], taken: Callable[[int, int], Taken]) -> None:
        """``taken`` gives back a prompt from its position and row."""
        self.drafts = [Draft(taken(*saved["origin"]), [_read_answer(one) for one in saved["answers"]]) for saved in state["drafts"]]
        self.surplus = [_read_group(saved, taken(*saved["origin"])) for saved in state["surplus"]]


def _saved_answer(answer: Answer) -> dict[str, Any]:
    return {
        "tokens": _packed(answer.token_ids, "<i4"),
        "logprobs": None if answer.logprobs is None else _packed(answer.logprobs, "<f8"),
        "segments": [list(segment) for segment in answer.segments],
        "ending": answer.ending,
        "looped": answer.looped,
    }


def _read_answer(saved: Mapping[str, Any]) -> Answer:
    return Answer(
        token_ids=_unpacked(saved["tokens"], "<i4"),
        logprobs=None if saved["logprobs"] is None else _unpacked(saved["logprobs"], "<f8"),
        segments=tuple((version, count) for version, count in saved["segments"]),
        ending=saved["ending"],
        looped=saved["looped"],
    )


def _saved_group(group: Group) -> dict[str, Any]:
    rollouts = []
    for rollout in group.rollouts:
        completion, verdict = rollout.completion, rollout.verdict
        rollouts.append(
            {
                "sample": completion.sample,
                "tokens": _packed(completion.token_ids, "<i4"),
                "logprobs": None if completion.logprobs is None else _packed(completion.logprobs, "<f8"),
                "text": completion.text,
                "ending": completion.finish_reason,
                "version": completion.weight_version,
                "verdict": [verdict.outcome.value, verdict.score, verdict.detail],
                "reward": rollout.reward,
            }
        )
    masks = [None if mask is None else _packed(mask, "|b1") for mask in group.masks]
    segments = [[list(segment) for segment in of_answer] for of_answer in group.segments]
    return {"origin": list(group.origin), "rollouts": rollouts, "masks": masks, "segments": segments}


def _read_group(saved: Mapping[str, Any], taken: Taken) -> Group:
    rollouts = []
    for one in saved["rollouts"]:
        completion = Completion(
            prompt_id=taken.prompt.id,
            sample=one["sample"],
            token_ids=_unpacked(one["tokens"], "<i4"),
            text=one["text"],
            finish_reason=one["ending"],
            logprobs=None if one["logprobs"] is None else _unpacked(one["logprobs"], "<f8"),
            weight_version=one["version"],
            prompt_token_ids=taken.prompt.token_ids or (),
            messages=tuple(taken.row["messages"]),
        )
        outcome, score, detail = one["verdict"]
        rollouts.append(Rollout(taken.prompt, completion, Verdict(Outcome(outcome), score, detail), one["reward"]))
    masks = [None if mask is None else _unpacked(mask, "|b1") for mask in saved["masks"]]
    segments = tuple(tuple((version, count) for version, count in of_answer) for of_answer in saved["segments"])
    return Group(rollouts, masks, segments, (taken.position, taken.index))


def _packed(values: Sequence[Any], dtype: str) -> str:
    return base64.b64encode(np.asarray(values, dtype=dtype).tobytes()).decode("ascii")


def _unpacked(text: str, dtype: str) -> tuple[Any, ...]:
    return tuple(np.frombuffer(base64.b64decode(text), dtype=dtype).tolist())
