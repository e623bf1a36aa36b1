"""A bench for stages: tiny real models, datasets on disk, checkpoints, engine and verifiers as a run would give them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from steelyard.plugins import Registry, load_registry
from steelyard.protocols import Shaper, StageContext, VerifierSet
from steelyard.records import Row, derive_seed
from steelyard.rows import write_rows
from steelyard.run.checkpoints import FolderCheckpoints
from steelyard.run.contexts import open_engines
from steelyard.testing import RecordedIO
from steelyard.verify import open_verifiers
from steelyard_torch.bases import new_model

CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789 =:+,\n"
ROLES = ("<|user|>", "<|assistant|>", "<|system|>")
ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    # Large enough for a random model to be opinionated, so that a wrong mask or position shows.
    "initializer_range": 0.15,
}


class StoppableIO(RecordedIO):
    """Asks for a stop once ``stop_after`` optimiser steps were reported."""

    def __init__(self, stop_after: int | None = None) -> None:
        super().__init__()
        self.stop_after = stop_after

    def should_stop(self) -> bool:
        return self.stop_after is not None and len(self.metrics) >= self.stop_after

    def series(self, name: str) -> list[float]:
        return [metrics[name] for _, metrics in self.metrics if name in metrics]


class Bench:
    """Makes what a stage needs under ``root``; models are made once a session."""

    characters = CHARACTERS

    def __init__(self, root: Path, models: Path, registry: Registry, closing: ExitStack):
        self.root, self.registry = root, registry
        self.models, self._closing = models, closing

    def model(self, seed: int = 0, *, template: str = "compact", characters: str = CHARACTERS, **architecture: Any) -> Path:
        """A model folder with random weights; do not change what is in it."""
        shape = {**ARCHITECTURE, **architecture}
        name = f"{seed}-{template}-{derive_seed(characters, repr(sorted(shape.items())))}"
        folder = self.models / name
        if not folder.exists():
            new_model(folder, architecture=shape, characters=characters, extra_tokens=ROLES, chat_template=template, seed=seed)
        return folder

    def data(self, rows: Iterable[Row], name: str = "data") -> Path:
        folder = self.root / name
        write_rows(folder, rows)
        return folder

    @staticmethod
    def chat(question: str, answer: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]

    @staticmethod
    def weights(folder: Path) -> dict[str, torch.Tensor]:
        return load_file(folder / "model.safetensors")

    @staticmethod
    def io(stop_after: int | None = None) -> StoppableIO:
        return StoppableIO(stop_after)

    def verifiers(self, entries: Mapping[str, tuple[str, Any, float | None]], **keys: Any) -> VerifierSet:
        return self._closing.enter_context(open_verifiers(entries, self.registry, **keys))

    def context(
        self,
        config: Any,
        *,
        model: Path,
        data: Path | None,
        name: str = "step",
        reference: Path | None = None,
        seed: int = 7,
        io: StoppableIO | None = None,
        verifiers: VerifierSet | None = None,
        shapers: Sequence[Shaper] = (),
        engine: Mapping[str, Any] | None = None,
        inputs: Mapping[str, Path] | None = None,
    ) -> StageContext:
        """A context of the step ``name``: the same name is the same step, with its checkpoints, and with a fresh output folder."""
        step = self.root / name
        attempt = sum(1 for _ in step.glob("output-*"))
        output = step / f"output-{attempt}"
        output.mkdir(parents=True)
        entry = {"kind": "transformers", "options": {"device": "cpu", **(engine or {})}}
        return StageContext(
            config=config,
            model=model,
            reference=reference,
            data=data,
            output=output,
            cache=self.root / "cache",
            seed=seed,
            run_seed=1,
            checkpoints=FolderCheckpoints(step / "checkpoints", step=name, key="k" * 32),
            io=io or StoppableIO(),
            engine=open_engines(self.registry, entry, model, self._closing),
            verifiers=verifiers if verifiers is not None else open_verifiers({}, self.registry),
            shapers=shapers,
            inputs=inputs or {},
        )


@pytest.fixture(scope="session")
def stage_registry() -> Registry:
    return load_registry()


@pytest.fixture(scope="session")
def stage_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stage-models")


@pytest.fixture
def bench(tmp_path: Path, stage_models: Path, stage_registry: Registry) -> Iterator[Bench]:
    torch.set_num_threads(1)
    with ExitStack() as closing:
        yield Bench(tmp_path, stage_models, stage_registry, closing)
