"""What the conductor tells a worker to do: one step, with everything it needs to find."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from steelyard.run.outside_models import OutsideModel

__all__ = ["Task"]


@dataclass(frozen=True)
class Task:
    """A step to run now. ``inputs`` and ``input_keys`` say by role where each input is and which artifact it is; ``places`` holds paths
    that the work needs and its key does not depend on; ``outside`` the models from outside the run by role; ``plugins`` says which plugins
    the worker loads, ``allow_unsafe_local`` whether model-written code may run without a sandbox."""

    step: str
    kind: str
    key: str
    config: Mapping[str, Any]
    input_keys: Mapping[str, str]
    run_dir: Path
    recipe_dir: Path
    seed: int
    run_seed: int
    places: Mapping[str, str] = field(default_factory=dict)
    plugins: Mapping[str, Any] = field(default_factory=dict)
    allow_unsafe_local: bool = False
    outside: Mapping[str, OutsideModel] = field(default_factory=dict)

    @property
    def log(self) -> Path:
        """Where what the step prints goes."""
        return self.run_dir / "logs" / f"{self.step}.log"

    def log_of(self, rank: int) -> Path:
        """The log of one of several processes; the first one's is the step's."""
        return self.log.with_suffix(f".rank{rank}.log") if rank else self.log

    @property
    def samples(self) -> Path:
        """Where its samples are gathered until it is done."""
        return self.run_dir / "logs" / f"{self.step}.samples.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.run_dir / "checkpoints" / self.key

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "run_dir": str(self.run_dir), "recipe_dir": str(self.recipe_dir)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Task:
        outside = {role: OutsideModel.from_json(model) for role, model in values["outside"].items()}
        return cls(**{**values, "outside": outside, "run_dir": Path(values["run_dir"]), "recipe_dir": Path(values["recipe_dir"])})
