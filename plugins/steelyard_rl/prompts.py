"""The prompts of a stage: read, checked, encoded, and taken in the curriculum's order."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from steelyard.errors import DataError, VerifierError, nearest
from steelyard.records import Prompt, Row, derive_seed
from steelyard.rows import read_rows
from steelyard_rl.answers import Taken
from steelyard_rl.buffer import Buffer
from steelyard_rl.curriculum import Curriculum
from steelyard_rl.rollout_options import RolloutOptions
from steelyard_torch.encoding import encode_prompt
from steelyard_torch.trainee import Trainee

__all__ = ["PromptPool", "Taken"]

_MOST_NAMED = 1000


class PromptPool:
    """The prompts of a stage in an endless order, and what a stage knows of them: success rates, answers that are not finished.

    Rows with ``canary: true`` come up like others. Those kept out for ``heldout_prompts`` never do, nor does any row that asks the same."""

    def __init__(self, trainee: Trainee, config: RolloutOptions):
        context = trainee.context
        names = tuple(context.verifiers.names())
        if not names:
            raise VerifierError("the stage has no verifier; name one under `verifiers:`")
        _check_reward(config, names)
        self.tokenizer = trainee.tokenizer
        self._config = config
        self.too_long = 0
        rows: list[_Encoded] = []
        unused = set(names) - set(config.monitors.second.values())
        for row in read_rows(trainee.dataset()):
            _check(row, names, config)
            unused -= {row["verifier"], *(row.get("verifiers") or ())}
            tokens = tuple(encode_prompt(trainee.tokenizer, row["messages"]))
            if len(tokens) > config.max_prompt_length:
                self.too_long += 1
            else:
                rows.append((row, tokens))
        if unused:
            context.io.log(f"no row names the verifier {', '.join(map(repr, sorted(unused)))}, so it checks nothing here")
        kept_out = _kept_out(rows, config.heldout_prompts, derive_seed(context.seed, "heldout"))
        asked = {_question(row) for row, _ in kept_out}
        self.heldout = [(Prompt(f"heldout:{row.get('id', n)}", token_ids=tokens), row) for n, (row, tokens) in enumerate(kept_out)]
        """Prompts that are never trained on, with their rows."""
        self._rows = [(row, tokens) for row, tokens in rows if _question(row) not in asked] if asked else rows
        self.canaries = sum(bool(row.get("canary")) for row, _ in self._rows)
        if self.canaries == len(self._rows):
            long = f"{self.too_long:,} are longer than max_prompt_length {config.max_prompt_length:,} tokens"
            others = f", {len(kept_out):,} are kept out, {self.canaries:,} are canaries" if kept_out or self.canaries else ""
            raise DataError(f"no prompt is left: {long}{others}")
        _check_dials_have_rows(self._rows, config)
        self.curriculum = Curriculum(config.curriculum, len(self._rows), derive_seed(context.seed, "prompts"))
        self.buffer = Buffer()
        """Answers that are not finished, and groups for a later rollout step."""
        self.measured: dict[int, tuple[float, float]] = {}
        """Success rate and variance of rewards by row, from the pre-pass."""
        self.unmeasured: list[int] = []
        """Rows that it looked at, but got no verdict on."""
        self.guessed: list[int] = []
        """Rows that were answered right without thinking."""
        self.tried = 0
        """Rows that guesses were made for."""
        self.outside = 0
        """Prompts left out because of ``curriculum.keep``."""
        self._read_columns()
        self.choose()

    def __len__(self) -> int:
        return len(self.curriculum.open)

    def __str__(self) -> str:
        notes = {
            "too long and left out": self.too_long,
            "kept out of training": len(self.heldout),
            "guessed without thinking and left out": len(self.guessed),
            "outside curriculum.keep and left out": self.outside,
            "canaries among them": self.canaries,
        }
        return "; ".join([f"{len(self):,} prompts", *(f"{count:,} {what}" for what, count in notes.items() if count)])

    def take(self, cursor: int, count: int, *, step: int = 0, busy: Collection[int] = ()) -> list[Taken]:
        """``count`` prompts of rollout step ``step`` from position ``cursor`` of the endless order on; ``busy`` rows are best avoided."""
        found = self.curriculum.take(cursor, count, step=step, busy=busy)
        return [self.at(position, index) for position, index in found]

    def at(self, position: int, index: int) -> Taken:
        """The prompt of row ``index`` as taken at ``position``."""
        row, tokens = self._rows[index]
        return Taken(Prompt(f"{position}:{row.get('id', '')}", token_ids=tokens), row, position, index)

    def trainable(self) -> list[int]:
        """The rows that pre-passes are about: all but canaries."""
        return [index for index, (row, _) in enumerate(self._rows) if not row.get("canary")]

    def choose(self) -> None:
        """Settles, by what is known of the prompts now, which of them may be taken.

        Raises:
            DataError: none.
        """
        options = self._config.curriculum
        starts = self._rates or {index: rate for index, (rate, _) in self.measured.items()}
        self.curriculum.rates.starts = starts
        self.curriculum.variances = self._variances or {index: variance for index, (_, variance) in self.measured.items()}
        left_out: set[int] = set(self.guessed)
        if options.keep is not None:
            low, high = options.keep
            outside = {index for index, rate in starts.items() if not low <= rate <= high} - left_out
            self.outside = len(outside)
            left_out |= outside
        canaries = {index for index, (row, _) in enumerate(self._rows) if row.get("canary")}
        chosen = set(range(len(self._rows))) - (left_out - canaries)
        if not chosen - canaries:
            kept = f", and {self.outside:,} have a success rate outside curriculum.keep {list(options.keep)!r}" if options.keep else ""
            raise DataError(f"no prompt is left: {len(self.guessed):,} of {len(self._rows):,} were guessed without thinking{kept}")
        self.curriculum.open, self.curriculum.unjudged = chosen, canaries

    def facts(self) -> dict[str, Any]:
        """What the stage should say of its prompts at its end, as JSON."""
        facts: dict[str, Any] = {"prompts": len(self)}
        for name, count in (("prompts_too_long", self.too_long), ("prompts_outside_keep", self.outside)):
            if count:
                facts[name] = count
        if self._config.guess is not None:
            facts["prompts_guessed"] = len(self.guessed)
            facts["guessed"] = [self._rows[index][0].get("id", index) for index in self.guessed[:_MOST_NAMED]]
        if self._config.partial is not None:
            facts["unfinished_answers"] = self.buffer.unfinished
        return facts

    def state(self) -> dict[str, Any]:
        """All that later rollout steps depend on besides the cursor, as JSON, for a checkpoint."""
        return {
            "curriculum": self.curriculum.state(),
            "buffer": self.buffer.state(),
            "measured": {str(index): list(pair) for index, pair in self.measured.items()},
            "unmeasured": list(self.unmeasured),
            "guessed": list(self.guessed),
            "tried": self.tried,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Goes on from :meth:`state`; from the start where it is empty."""
        if not state:
            return
        self.measured = {int(index): (float(rate), float(variance)) for index, (rate, variance) in state["measured"].items()}
        self.unmeasured, self.guessed, self.tried = list(state["unmeasured"]), list(state["guessed"]), int(state["tried"])
        self.curriculum.restore(state["curriculum"])
        self.buffer.restore(state["buffer"], self.at)
        self.choose()

    def _read_columns(self) -> None:
        options = self._config.curriculum
        self._rates = self._column(options.pass_rate, "success rate from 0 to 1", lambda value: 0 <= value <= 1)
        self._variances = self._column(options.variance, "variance of at least 0", lambda value: value >= 0)

    def _column(self, name: str | None, what: str, is_good: Callable[[float], bool]) -> dict[int, float]:
        """A number of each row but canaries; nothing where the recipe names no column."""
        values: dict[int, float] = {}
        for index in self.trainable() if name is not None else ():
            row = self._rows[index][0]
            value = row.get(str(name))
            # A NaN fails every comparison.
            if isinstance(value, bool) or not isinstance(value, int | float) or not is_good(float(value)):
                near = "" if name in row else nearest(str(name), row)
                raise DataError(f"row {row.get('id', '?')!r}: {name} is {value!r}, not a {what}{near}")
            values[index] = float(value)
        return values


_Encoded = tuple[Row, tuple[int, ...]]
"""A row and the tokens of its prompt."""


def _check(row: Row, verifiers: Sequence[str], config: RolloutOptions) -> None:
    place = f"row {row.get('id', '?')!r}"
    if not row.get("messages") or not ("reference" in row or "references" in row):
        raise DataError(f"{place}: an RL prompt needs `messages` and a `reference`; it has {', '.join(sorted(row))}")
    if row["messages"][-1]["role"] != "user":
        raise DataError(f"{place}: an RL prompt ends in a user turn, not {row['messages'][-1]['role']!r}")
    if not isinstance(row.get("canary", False), bool):
        raise DataError(f"{place}: canary is {row['canary']!r}, not true or false")
    names = _named(row, verifiers, config, place)
    _check_combined(names, config, place)
    _give_references(row, names, place)
    reward = config.reward
    row["verifiers"] = names
    row["verifier"] = reward.accuracy if reward is not None and reward.accuracy in names else names[0]
    row["reference"] = row["references"][row["verifier"]]


def _named(row: Row, verifiers: Sequence[str], config: RolloutOptions, place: str) -> list[str]:
    """The verifiers of a row: those of its `verifiers`, its `verifier`, or the only one there is."""
    if "verifiers" in row:
        names = row["verifiers"]
        if not isinstance(names, list) or not names or len(set(map(str, names))) < len(names):
            raise DataError(f"{place}: verifiers is {names!r}, not a list of different names")
        if row.get("verifier") is not None:
            raise DataError(f"{place}: it has `verifier` and `verifiers`; one of them says by what it is checked")
    else:
        seconds = config.monitors.second.values()
        first = [known for known in verifiers if known not in seconds] or verifiers
        names = [first[0] if row.get("verifier") is None and len(first) == 1 else row.get("verifier")]
    for name in names:
        if name not in verifiers:
            known = nearest(str(name), verifiers)
            raise DataError(f"{place}: verifier {name!r} is not one of the stage's{known}; name it under `verifiers:`")
    return [str(name) for name in names]


def _check_combined(names: Sequence[str], config: RolloutOptions, place: str) -> None:
    """That the recipe says what the row's verifiers together make."""
    reward = config.reward
    if reward is None:
        if len(names) > 1:
            raise DataError(
                f"{place}: it names {len(names)} verifiers; say how they make a reward, with the stage's `reward: {{weights: …}}`"
            )
        return
    known = list(reward.weights) or list(reward.order)
    for name in names:
        if name not in known and (reward.weights or len(names) > 1):
            key = "weights" if reward.weights else "order"
            raise DataError(f"{place}: verifier {name!r} is not in the stage's reward.{key}{nearest(name, known)}")


def _give_references(row: Row, names: Sequence[str], place: str) -> None:
    """A reference for each verifier: its own under `references`, or the row's `reference`."""
    own = row.get("references", {})
    if not isinstance(own, Mapping):
        raise DataError(f"{place}: references is {own!r}, not an object with a reference for each verifier by name")
    for name in own:
        if name not in names:
            raise DataError(f"{place}: references has {name!r}, which is no verifier of the row{nearest(str(name), names)}")
    missing = [name for name in names if name not in own]
    if missing and "reference" not in row:
        raise DataError(f"{place}: there is no reference for the verifier {missing[0]!r}, in `references` or as `reference`")
    row["references"] = {name: own[name] if name in own else row["reference"] for name in names}


def _check_reward(config: RolloutOptions, verifiers: Sequence[str]) -> None:
    reward = config.reward
    if reward is None:
        return
    for name in [*reward.weights, *reward.order, *([reward.accuracy] if reward.accuracy is not None else [])]:
        if name not in verifiers:
            raise VerifierError(f"reward names {name!r}, which is no verifier of the stage{nearest(name, verifiers)}")


def _check_dials_have_rows(rows: Sequence[_Encoded], config: RolloutOptions) -> None:
    """That some row is what `reward` is about."""
    reward = config.reward
    if reward is None:
        return
    if reward.order and not any(len(row["verifiers"]) > 1 for row, _ in rows):
        raise DataError("reward.order has nothing to order: no row names more than one verifier as `verifiers`")
    used = {name for row, _ in rows for name in row["verifiers"]}
    for name in [*reward.weights, *reward.order, *([reward.accuracy] if reward.accuracy is not None else [])]:
        if name not in used:
            raise DataError(f"reward names {name!r}, and no row does; rows say by `verifiers` what checks their answers")


def _kept_out(rows: Sequence[_Encoded], count: int, seed: int) -> list[_Encoded]:
    """``count`` rows that ask different things, drawn by ``seed``; no canaries."""
    if not count:
        return []
    different = list({_question(row): (row, tokens) for row, tokens in rows if not row.get("canary")}.values())
    if count >= len(different):
        raise DataError(f"heldout_prompts {count:,} leaves nothing to train on: the dataset has {len(different):,} different prompts")
    return random.Random(seed).sample(different, count)


def _question(row: Row) -> str:
    return json.dumps(row["messages"], sort_keys=True)
