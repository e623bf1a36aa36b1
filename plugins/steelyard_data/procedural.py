"""Procedural tasks: small questions with one right answer each, made from a seed.

Seven tasks (`TASKS`) that a character-level model of 0.2 M parameters can learn: reverse, sort, maximum, count,
upper, sum, add. Which split an item belongs to follows from a hash of its prompt (`split_of`), so items of different
splits never meet, in whatever stage, form or seed they are drawn:

- `train`: everything a model is trained on, pre-training included;
- `dev`: what gates are decided on;
- `tune`: shaped like `dev`, for choosing hyper-parameters, so that they are not chosen on the items reported;
- `unseen`: longer inputs in another wording.

Everything here is pure Python and gives the same items on every machine and Python version: `random.Random` is seeded
with strings and only asked for methods whose output is stable.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_lowercase
from typing import Any, Literal, get_args

Split = Literal["train", "dev", "tune", "unseen"]
Form = Literal["plain", "chat", "prompt"]
Shape = Literal["short", "long"]

VERBOSE_PREFIX = "ans: "
"""What the verbose answer style puts before the answer."""

_SPLIT_SALT = "steelyard-procedural-1"
# Upper ends of the buckets out of 100 that a prompt's hash falls into.
_SPLIT_ENDS: tuple[tuple[int, Split], ...] = ((66, "train"), (87, "dev"), (94, "tune"), (100, "unseen"))
_STALE_DRAWS = 5_000


@dataclass(frozen=True)
class Task:
    """One kind of question.

    `draw(rng, shape)` makes the operands, `solve(*operands)` the answer; `wording` maps a shape to a format string
    with one field an operand.
    """

    name: str
    draw: Callable[[random.Random, Shape], tuple[str, ...]]
    solve: Callable[..., str]
    wording: Mapping[Shape, str]

    def item(self, rng: random.Random, shape: Shape) -> tuple[str, str]:
        """Draw one item: (prompt, answer)."""
        operands = self.draw(rng, shape)
        return self.wording[shape].format(*operands), self.solve(*operands)


def _word(rng: random.Random, shape: Shape, alphabet: str = ascii_lowercase) -> str:
    length = rng.randrange(3, 6) if shape == "short" else 6
    return "".join(alphabet[rng.randrange(len(alphabet))] for _ in range(length))


def _draw_word(rng: random.Random, shape: Shape) -> tuple[str, ...]:
    return (_word(rng, shape),)


def _draw_count(rng: random.Random, shape: Shape) -> tuple[str, ...]:
    alphabet = "".join(rng.sample(ascii_lowercase, 3))
    length = rng.randrange(4, 7) if shape == "short" else 7
    return alphabet[0], "".join(alphabet[rng.randrange(3)] for _ in range(length))


def _draw_maximum(rng: random.Random, shape: Shape) -> tuple[str, ...]:
    return tuple(str(rng.randrange(10, 100)) for _ in range(3 if shape == "short" else 4))


def _draw_sum(rng: random.Random, shape: Shape) -> tuple[str, ...]:
    return tuple(str(rng.randrange(10)) for _ in range(3 if shape == "short" else 4))


def _draw_add(rng: random.Random, shape: Shape) -> tuple[str, ...]:
    low, high = (10, 100) if shape == "short" else (100, 1000)
    return str(rng.randrange(low, high)), str(rng.randrange(low, high))


def _solve_total(*operands: str) -> str:
    return str(sum(int(operand) for operand in operands))


TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task(
            "reverse",
            _draw_word,
            lambda word: word[::-1],
            {"short": "reverse {}", "long": "write {} backwards"},
        ),
        Task(
            "sort",
            _draw_word,
            lambda word: "".join(sorted(word)),
            {"short": "sort {}", "long": "put {} in order"},
        ),
        Task(
            "maximum",
            _draw_maximum,
            lambda *numbers: max(numbers, key=int),
            {"short": "max {} {} {}", "long": "largest of {} {} {} {}"},
        ),
        Task(
            "count",
            _draw_count,
            lambda letter, word: str(word.count(letter)),
            {"short": "count {} in {}", "long": "how many {} in {}"},
        ),
        Task(
            "upper",
            _draw_word,
            str.upper,
            {"short": "upper {}", "long": "write {} in capitals"},
        ),
        Task(
            "sum",
            _draw_sum,
            _solve_total,
            {"short": "sum {} {} {}", "long": "total of {} {} {} {}"},
        ),
        Task(
            "add",
            _draw_add,
            _solve_total,
            {"short": "add {} + {}", "long": "what is {} plus {}"},
        ),
    )
}


def canonical(prompt: str) -> str:
    """Return the text whose hash decides a prompt's split.

    Case and spacing are dropped and numbers put in order of size: the order of its numbers changes no task's answer,
    so `add 34 + 51` must not be trained on where `add 51 + 34` is a dev item.
    """
    text = " ".join(prompt.lower().split())
    numbers = iter(sorted(re.findall(r"\d+", text), key=lambda digits: (int(digits), digits)))
    return re.sub(r"\d+", lambda _: next(numbers), text)


def split_of(prompt: str) -> Split:
    """Return the split that a prompt belongs to: a function of `canonical(prompt)` alone.

    Prompts of the short shape that fall in `unseen` are in no dataset: `unseen` is drawn from the long shape.
    """
    digest = hashlib.sha256(f"{_SPLIT_SALT}:{canonical(prompt)}".encode()).digest()
    bucket = int.from_bytes(digest[:8], "big") % 100
    return next(split for end, split in _SPLIT_ENDS if bucket < end)


def item_id(task: str, prompt: str) -> str:
    """Return an item's stable id, the same in every seed, split and form."""
    return f"{task}-{hashlib.sha256(prompt.encode()).hexdigest()[:12]}"


def generate(
    tasks: Sequence[str] | Mapping[str, float],
    split: Split,
    count: int,
    seed: int,
    *,
    form: Form = "chat",
    verbose_share: float = 0.0,
    long_share: float = 0.0,
) -> Iterator[dict[str, Any]]:
    """Yield `count` items of `split`, shuffled, each with `id`, `task`, `prompt` and `answer`.

    `tasks` names the tasks, with weights where it is a mapping; the counts by task are exact (largest remainder).
    Items of `dev`, `tune` and `unseen` are distinct; items of `train` may repeat, since the number of sums is small.

    `form` adds what a stage reads:

    - `plain`: a line of pre-training text, `text` (`add 34 + 51=85\\n`), and its parts `source` (`add 34 + 51=`, to be
      masked) and `completion` (`85\\n`);
    - `chat`: `messages` with the answer, in the verbose style (`ans: 85`) for a share `verbose_share` of the items,
      and `style`, `concise` or `verbose`;
    - `prompt`: `messages` that end in the user's turn, and `reference`.

    `long_share` is the share of `train` items in the long shape (other splits have one shape each).

    Raises ValueError for an unknown task or split, a share outside [0, 1], or more distinct items than there are.
    """
    weights = _weights(tasks)
    if split not in get_args(Split):
        raise ValueError(f"unknown split {split!r}: one of {', '.join(get_args(Split))}")
    if form not in get_args(Form):
        raise ValueError(f"unknown form {form!r}: one of {', '.join(get_args(Form))}")
    for name, share in (("verbose_share", verbose_share), ("long_share", long_share)):
        if not 0 <= share <= 1:
            raise ValueError(f"{name} is a share between 0 and 1, not {share!r}")
    if long_share and split != "train":
        raise ValueError(f"long_share is for split 'train' only, not {split!r}")
    rows = [
        (name, prompt, answer)
        for name, number in _apportion(weights, count).items()
        for prompt, answer in _draw(TASKS[name], split, number, seed, long_share)
    ]
    random.Random(f"order:{split}:{seed}").shuffle(rows)
    styles = random.Random(f"style:{split}:{seed}")
    for name, prompt, answer in rows:
        yield _row(name, prompt, answer, form, verbose=styles.random() < verbose_share)


def _weights(tasks: Sequence[str] | Mapping[str, float]) -> dict[str, float]:
    weights = dict(tasks) if isinstance(tasks, Mapping) else dict.fromkeys(tasks, 1.0)
    for name, weight in weights.items():
        if name not in TASKS:
            raise ValueError(f"unknown task {name!r}: one of {', '.join(TASKS)}")
        if not weight > 0:
            raise ValueError(f"the weight of task {name!r} is to be above 0, not {weight!r}")
    if not weights:
        raise ValueError(f"no tasks given: choose from {', '.join(TASKS)}")
    return weights


def _apportion(weights: Mapping[str, float], count: int) -> dict[str, int]:
    """Share `count` out by weight, exactly, by the method of the largest remainder."""
    total = sum(weights.values())
    exact = {name: count * weight / total for name, weight in weights.items()}
    shares = {name: int(value) for name, value in exact.items()}
    by_remainder = sorted(exact, key=lambda name: shares[name] - exact[name])
    for name in by_remainder[: count - sum(shares.values())]:
        shares[name] += 1
    return shares


def _draw(task: Task, split: Split, count: int, seed: int, long_share: float) -> Iterator[tuple[str, str]]:
    rng = random.Random(f"{task.name}:{split}:{seed}")
    distinct = split != "train"
    seen: set[str] = set()
    drawn = stale = 0
    while drawn < count:
        shape: Shape = "long" if split == "unseen" or (long_share and rng.random() < long_share) else "short"
        prompt, answer = task.item(rng, shape)
        if split_of(prompt) != split or (distinct and prompt in seen):
            stale += 1
            if stale > _STALE_DRAWS:
                raise ValueError(f"task {task.name!r} has no {count} distinct items in split {split!r} (found {drawn}): ask for fewer")
            continue
        seen.add(prompt)
        stale = 0
        drawn += 1
        yield prompt, answer


def _row(task: str, prompt: str, answer: str, form: Form, *, verbose: bool) -> dict[str, Any]:
    row: dict[str, Any] = {"id": item_id(task, prompt), "task": task, "prompt": prompt, "answer": answer}
    user = {"role": "user", "content": prompt}
    if form == "plain":
        source, completion = f"{prompt}=", f"{answer}\n"
        return row | {"source": source, "completion": completion, "text": source + completion}
    if form == "prompt":
        return row | {"messages": [user], "reference": answer}
    reply = VERBOSE_PREFIX + answer if verbose else answer
    messages = [user, {"role": "assistant", "content": reply}]
    return row | {"messages": messages, "style": "verbose" if verbose else "concise"}
