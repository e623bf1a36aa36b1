"""The order of prompts, and how often each one's answers have been right."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from steelyard.errors import TrainingError
from steelyard.records import derive_seed
from steelyard_rl.prompt_options import CurriculumOptions

__all__ = ["Curriculum", "SuccessRates", "weighted_order"]


class SuccessRates:
    """A running success rate of each prompt: (weight · rate at the start + successes) / (weight + answers), earlier ones multiplied by
    ``memory`` each time new ones come."""

    def __init__(self, options: CurriculumOptions):
        self._options = options
        self._seen: dict[int, tuple[float, float]] = {}
        self.starts: dict[int, float] = {}
        """Rates at the start, of the prompts that have one."""

    def __getitem__(self, row: int) -> float:
        return self._of(row)[0]

    def add(self, row: int, rate: float, answers: int) -> None:
        """Takes ``answers`` answers of mean score ``rate`` into account; beyond 0 and 1 scores count as those."""
        if answers:
            known, weight = self._of(row)
            weight *= self._options.memory
            successes = known * weight + min(max(rate, 0.0), 1.0) * answers
            self._seen[row] = (successes / (weight + answers), weight + answers)

    def state(self) -> dict[str, Any]:
        return {str(row): list(seen) for row, seen in self._seen.items()}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._seen = {int(row): (float(rate), float(weight)) for row, (rate, weight) in state.items()}

    def _of(self, row: int) -> tuple[float, float]:
        """Rate, and the number of answers it counts for."""
        return self._seen.get(row) or (self.starts.get(row, self._options.prior), self._options.prior_weight)


class Curriculum:
    """Chooses rows, by number. Positions count what was taken, or passed by; a position is never used twice.

    Args:
        rows: how many rows there are.
        open: which of them may be taken at all; what else keeps them out is decided here.
    """

    def __init__(self, options: CurriculumOptions, rows: int, seed: int):
        self._options, self._rows, self._seed = options, rows, seed
        self.rates = SuccessRates(options)
        self.variances: dict[int, float] = {}
        self.open: Collection[int] = range(rows)
        self.unjudged: Collection[int] = ()
        """Rows that come up whatever their success rate, and beside which there must be others: canaries."""
        self._lap, self._order = -1, list[int]()

    def take(self, cursor: int, count: int, *, step: int, busy: Collection[int] = ()) -> list[tuple[int, int]]:
        """``count`` times (position, row) from position ``cursor`` on.

        Args:
            step: the rollout step, from 0.
            busy: rows whose answers are being sampled; drawing by priority avoids them while there are others.

        Raises:
            TrainingError: no row may be taken.
        """
        if self._options.order == "priority":
            return self._draw(cursor, count, step, busy)
        taken: list[tuple[int, int]] = []
        position = last = cursor
        while len(taken) < count:
            row = self._row_at(position)
            if self._is_wanted(row, step):
                taken.append((position, row))
                last = last if row in self.unjudged else position
            # From one coming of a row to its next there are two laps at most.
            if position - last > 2 * self._rows:
                raise self._nothing_left(step)
            position += 1
        return taken

    def active(self, step: int) -> int:
        """How many rows may be taken in a rollout step."""
        return sum(self._is_wanted(row, step) for row in self.open if row not in self.unjudged)

    def state(self) -> dict[str, Any]:
        """All that later choices depend on besides the cursor, as JSON."""
        order = self._order if self._options.order == "easy_first" else []
        return {"rates": self.rates.state() if self._options.uses_running_rates else {}, "lap": self._lap, "order": list(order)}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.rates.restore(state["rates"])
        # Every other order is made again from the lap's number.
        self._lap, self._order = (int(state["lap"]), list(state["order"])) if state["order"] else (-1, [])

    def _row_at(self, position: int) -> int:
        lap, place = divmod(position, self._rows)
        if lap != self._lap:
            self._lap, self._order = lap, self._lap_order(lap)
        return self._order[place]

    def _lap_order(self, lap: int) -> list[int]:
        order = list(range(self._rows))
        random.Random(derive_seed(self._seed, lap)).shuffle(order)
        # Sorting is stable: what is equal stays in its seeded order.
        if self._options.order == "easy_first":
            order.sort(key=lambda row: -self.rates[row])
        elif self._options.order == "variance":
            order.sort(key=lambda row: -self.variances.get(row, 0.0))
        return order

    def _draw(self, cursor: int, count: int, step: int, busy: Collection[int]) -> list[tuple[int, int]]:
        """Without replacement, with chances in proportion to 1 − success rate (Kimi k1.5, arXiv 2501.12599, section 2.3.4)."""
        wanted = [row for row in sorted(self.open) if self._is_wanted(row, step)]
        if all(row in self.unjudged for row in wanted):
            raise self._nothing_left(step)
        drawn: list[int] = []
        taken = set(busy)
        while len(drawn) < count:
            free = [row for row in wanted if row not in taken]
            if not free:
                taken.clear()
                continue
            weights = [max(1.0 - self.rates[row], self._options.floor) for row in free]
            order = weighted_order(weights, derive_seed(self._seed, "priority", cursor + len(drawn)))
            chosen = [free[place] for place in order[: count - len(drawn)]]
            drawn += chosen
            taken.update(chosen)
        return [(cursor + place, row) for place, row in enumerate(drawn)]

    def _is_wanted(self, row: int, step: int) -> bool:
        options = self._options
        if row not in self.open or row in self.unjudged:
            return row in self.open
        if options.retire_at is not None and self.rates[row] >= options.retire_at:
            return False
        return options.hard_from_step is None or step < options.hard_from_step or self.rates[row] <= options.hard_below

    def _nothing_left(self, step: int) -> TrainingError:
        options, count = self._options, len(self.open)
        reasons = []
        if options.retire_at is not None:
            retired = sum(self.rates[row] >= options.retire_at for row in self.open)
            reasons.append(f"{retired:,} are right as often as retire_at {options.retire_at:g}")
        if options.hard_from_step is not None and step >= options.hard_from_step:
            easy = sum(self.rates[row] > options.hard_below for row in self.open)
            reasons.append(f"{easy:,} more often than hard_below {options.hard_below:g}")
        why = ", ".join(reasons)
        return TrainingError(
            f"no prompt is left to take in rollout step {step + 1:,}: of {count:,}, {why}; train for fewer steps, or raise it"
        )


def weighted_order(weights: Sequence[float], seed: int) -> list[int]:
    """A random order in which each next place is drawn with a chance in proportion to its weight among those not drawn yet (Efraimidis and
    Spirakis, 2006): by rising E / weight, with standard exponentials E."""
    draws = random.Random(seed)
    keys = [draws.expovariate(1.0) / weight for weight in weights]
    return sorted(range(len(keys)), key=keys.__getitem__)
