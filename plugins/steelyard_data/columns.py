"""From other people's columns to Steelyard's rows.

Recognised without a word in the recipe: `messages`; ShareGPT's `conversations` (`from`/`value`); Alpaca's `instruction`, `input`,
`output`; preference rows with `chosen` and `rejected` (perhaps `edited`, perhaps a `margin`) as conversations or as texts after a
`prompt`; a `prompt` with `ranked` answers, best first, or with a `completion` and its `label`; Tülu's RL rows
(`ground_truth`, `dataset`); `prompt` with `completion`; `text`. Anything else is mapped by `columns` or refused with the columns found.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from steelyard.errors import DataError
from steelyard.records import Row
from steelyard_data.config import Layout, RowOptions

__all__ = ["RowReader", "recognise"]

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "system": "system",
    "tool": "tool",
}
_KEPT = ("id", "source", "task")
_REFERENCES = ("reference", "references", "ground_truth")


def recognise(row: Mapping[str, Any], place: str = "") -> Layout:
    """The layout of a row by its columns. Raises DataError naming `place` and the columns when there is none."""
    if "chosen" in row and "rejected" in row:
        return "preference"
    if "prompt" in row and "ranked" in row:
        return "ranked"
    if "prompt" in row and "completion" in row and "label" in row:
        return "labelled"
    if "conversations" in row:
        return "sharegpt"
    if "messages" in row:
        return "prompts" if any(name in row for name in _REFERENCES) else "messages"
    if "instruction" in row and "output" in row:
        return "alpaca"
    if "prompt" in row and "completion" in row:
        return "prompt_completion"
    if "prompt" in row and any(name in row for name in _REFERENCES):
        return "prompts"
    if "text" in row:
        return "text"
    raise DataError(
        f"{place + ': ' if place else ''}columns {', '.join(sorted(row)) or '(none)'} are of no known layout; map them with `columns:`, "
        "e.g. `columns: {prompt: question, completion: answer}`"
    )


class RowReader:
    """Turns the rows of one source into Steelyard's; the layout is settled by the first row."""

    def __init__(self, options: RowOptions):
        self._options = options
        self._layout: Layout | None = None if options.layout == "auto" else options.layout

    def read(self, raw: Mapping[str, Any], place: str) -> Row:
        """One row. Raises DataError naming `place` and the column that is wrong."""
        row = self._renamed(raw, place)
        if self._layout is None:
            self._layout = recognise(row, place)
        try:
            out = _READERS[self._layout](row)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{place}: not a {self._layout!r} row: {_plain(error)}") from error
        for name in _KEPT:
            if name in row and name not in out and isinstance(row[name], str | int):
                out[name] = str(row[name])
        for name in self._options.keep:
            if name not in row:
                raise DataError(f"{place}: no column {name!r} to keep; it has {', '.join(sorted(raw))}")
            out.setdefault(name, row[name])
        if self._options.system is not None:
            _add_system(out, self._options.system)
        if self._layout == "prompts" and not {"verifier", "verifiers"} & out.keys() and self._options.verifier is not None:
            out["verifier"] = self._options.verifier
        return out

    def _renamed(self, raw: Mapping[str, Any], place: str) -> dict[str, Any]:
        row = dict(raw)
        for ours, theirs in self._options.columns.items():
            value: Any = raw
            for part in theirs.split("."):
                if not isinstance(value, Mapping) or part not in value:
                    raise DataError(f"{place}: no column {theirs!r} (mapped to {ours!r}); it has {', '.join(sorted(raw))}")
                value = value[part]
            row.pop(theirs, None)
            row[ours] = value
        return row


def _conversation(value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, list) or not value:
        raise ValueError("a conversation is a list of messages with at least one")
    out = []
    for message in value:
        role, content = message["role"], message["content"]
        if not isinstance(role, str) or not isinstance(content, str):
            raise ValueError(f"a message needs text for role and content, not {role!r} and {content!r}")
        rest = {k: v for k, v in message.items() if k not in ("role", "content") and v is not None}
        out.append({"role": role, "content": content, **rest})
    return out


def _as_prompt(value: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": value}] if isinstance(value, str) else _conversation(value)


def _as_answer(value: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": value}] if isinstance(value, str) else _conversation(value)


def _messages(row: Row) -> Row:
    return {"messages": _conversation(row["messages"])}


def _sharegpt(row: Row) -> Row:
    messages = []
    for turn in row["conversations"]:
        role = _SHAREGPT_ROLES.get(turn["from"])
        if role is None:
            raise ValueError(f"unknown speaker {turn['from']!r}")
        messages.append({"role": role, "content": turn["value"]})
    if isinstance(row.get("system"), str) and row["system"]:
        messages.insert(0, {"role": "system", "content": row["system"]})
    return {"messages": _conversation(messages)}


def _alpaca(row: Row) -> Row:
    question = row["instruction"] + ("\n\n" + row["input"] if row.get("input") else "")
    return {"messages": [*_as_prompt(question), *_as_answer(row["output"])]}


def _prompt_completion(row: Row) -> Row:
    if isinstance(row["prompt"], str) and isinstance(row["completion"], str):
        return {"prompt": row["prompt"], "completion": row["completion"]}
    return {"messages": [*_as_prompt(row["prompt"]), *_as_answer(row["completion"])]}


def _text(row: Row) -> Row:
    if not isinstance(row["text"], str):
        raise ValueError(f"text is {type(row['text']).__name__}, not a string")
    return {"text": row["text"]}


def _prompts(row: Row) -> Row:
    prompt = _as_prompt(row["messages"] if "messages" in row else row["prompt"])
    if prompt[-1]["role"] != "user":
        raise ValueError(f"an RL prompt ends in a user turn, not {prompt[-1]['role']!r}")
    out: Row = {"messages": prompt}
    if "reference" in row or row.get("references") is None:
        out["reference"] = row["reference"] if "reference" in row else row["ground_truth"]
    if row.get("verifiers") is not None:
        out["verifiers"] = row["verifiers"]
    if row.get("references") is not None:
        # In a Parquet struct a row has every row's names, without values where they are not its own.
        out["references"] = {name: value for name, value in row["references"].items() if value is not None}
    name = row.get("verifier") or (row.get("dataset") if "ground_truth" in row else None)
    if name:
        out["verifier"] = name
    if (canary := row.get("canary")) is not None:
        # A task that cannot be solved, there to catch who passes it: lost on the way, it would be trained on.
        if not isinstance(canary, bool):
            raise ValueError(f"canary is {canary!r}, not true or false")
        out["canary"] = canary
    return out


def _preference(row: Row) -> Row:
    chosen, rejected = _as_answer(row["chosen"]), _as_answer(row["rejected"])
    if row.get("prompt"):
        prompt = _as_prompt(row["prompt"])
        if chosen[: len(prompt)] == prompt and len(chosen) > len(prompt):
            chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    else:
        shared = 0
        while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
            shared += 1
        prompt, chosen, rejected = chosen[:shared], chosen[shared:], rejected[shared:]
    if not prompt:
        raise ValueError("chosen and rejected share no prompt")
    if not chosen or not rejected or chosen[-1]["role"] != "assistant" or rejected[-1]["role"] != "assistant":
        raise ValueError("chosen and rejected must end in an assistant turn")
    out: Row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    if row.get("edited"):
        edited = _as_answer(row["edited"])
        out["edited"] = edited[len(prompt) :] if edited[: len(prompt)] == prompt else edited
    if row.get("margin") is not None:
        if isinstance(row["margin"], bool) or not isinstance(row["margin"], int | float):
            raise ValueError(f"margin is {row['margin']!r}, not a number")
        out["margin"] = row["margin"]
    return out


def _ranked(row: Row) -> Row:
    if not isinstance(row["ranked"], list) or len(row["ranked"]) < 2:
        raise ValueError("ranked is a list of at least two answers, best first")
    return {"prompt": _as_prompt(row["prompt"]), "ranked": [_as_answer(answer) for answer in row["ranked"]]}


def _labelled(row: Row) -> Row:
    if not isinstance(row["label"], bool):
        raise ValueError(f"label is {row['label']!r}, not true or false")
    return {"prompt": _as_prompt(row["prompt"]), "completion": _as_answer(row["completion"]), "label": row["label"]}


_READERS = {
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt_completion": _prompt_completion,
    "text": _text,
    "prompts": _prompts,
    "preference": _preference,
    "ranked": _ranked,
    "labelled": _labelled,
}


def _add_system(row: Row, system: str) -> None:
    for name in ("messages", "prompt"):
        value = row.get(name)
        if isinstance(value, list) and value[0]["role"] != "system":
            row[name] = [{"role": "system", "content": system}, *value]


def _plain(error: Exception) -> str:
    return f"no column {error.args[0]!r}" if isinstance(error, KeyError) else str(error)
