"""One contender of ``bench_training.py`` in a process of its own: ``python training_sides.py JOB.json`` prints what it measured.

Both sides see the same rows in the same order, take the same optimiser steps and are clocked from the end of one step to the end of the
next, so that loading data is in it and loading the model is not.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

Job = Mapping[str, Any]


def main() -> int:
    job = json.loads(Path(sys.argv[1]).read_text())
    import torch

    torch.set_num_threads(job["threads"])
    with tempfile.TemporaryDirectory() as scratch:
        side = peak if job["side"] == "peak" else ours if job["side"] == "steelyard" else trl
        print(json.dumps(side(job, Path(scratch))), flush=True)
    # Idle threads of either library must not hold up the next contender.
    os._exit(0)


def peak(job: Job, _scratch: Path) -> dict[str, Any]:
    """FLOP/s of a square matrix product at the job's precision: what this machine gives in this minute."""
    import torch

    dtype = torch.float32 if job["precision"] == "fp32" else torch.bfloat16
    size = 2048
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    rates = []
    for _ in range(12):
        began = time.perf_counter()
        left @ right
        rates.append(2 * size**3 / (time.perf_counter() - began))
    return {"flops": statistics.median(rates[2:])}


def ordered(job: Job) -> list[dict[str, Any]]:
    """The rows in the order in which the stage's sampler takes them."""
    from steelyard_torch.batching import StepSampler

    rows = [json.loads(line) for line in Path(job["rows"]).read_text().splitlines()]
    if job["stage"] == "grpo":
        return rows
    sampler = StepSampler([1] * len(rows), batch_size=job["batch"], seed=job["seed"])
    return [rows[i] for step in range(sampler.total_steps) for i in sampler.rows(step)]


def outcome(steps: Sequence[float], losses: Sequence[float], seconds: float, *, before: int, **more: Any) -> dict[str, Any]:
    """``before``: resident bytes before the model was loaded."""
    top = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"steps": list(steps), "losses": list(losses), "seconds": seconds, "peak_bytes": top, "own_bytes": top - before, **more}


def resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


# Steelyard


def ours(job: Job, scratch: Path) -> dict[str, Any]:
    from steelyard.plugins import load_registry
    from steelyard.protocols import StageContext
    from steelyard.rows import write_rows
    from steelyard.run.checkpoints import FolderCheckpoints
    from steelyard.run.contexts import open_engines
    from steelyard.testing import RecordedIO
    from steelyard.verify import open_verifiers

    class ClockedIO(RecordedIO):
        def __init__(self) -> None:
            super().__init__()
            self.began = 0.0
            self.ends: list[float] = []

        def log(self, message: str) -> None:
            super().log(message)
            self.began = self.began or time.perf_counter()  # the first word is said once the data is encoded

        def report(self, metrics: Mapping[str, float], *, step: int | None = None) -> None:
            super().report(metrics, step=step)
            if "train/loss" in metrics:
                self.ends.append(time.perf_counter())

    registry = load_registry()
    model = Path(job["model"])
    common = {"lr": job["lr"], "schedule": "constant", "precision": job["precision"], "checkpoint_every_s": 1e9, "max_grad_norm": 1.0}
    options = {
        "sft": {"batch_size": job["batch"], "max_length": 1024},
        "dpo": {"batch_size": job["batch"], "max_length": 1024, "beta": 0.1},
        "grpo": {
            "steps": job["n_steps"],
            "prompts_per_step": job["batch"],
            "samples_per_prompt": job["samples"],
            "max_new_tokens": job["max_new_tokens"],
            "drop_without_signal": False,
            "truncated": "keep",
            "monitors": {"patterns": False, "canary": 0, "max_flagged": 1},
        },
    }[job["stage"]]
    spec = registry.get("stages", job["stage"])
    config = registry.configure(spec, {**common, **options, **job["options"]})
    write_rows(scratch / "data", (json.loads(line) for line in Path(job["rows"]).read_text().splitlines()))
    (scratch / "out").mkdir()
    io = ClockedIO()
    with ExitStack() as closing:
        engine = {"kind": "transformers", "options": {"device": "cpu", "max_batch_rows": 64}}
        verifiers = {"answer": ("exact", {}, None)} if job["stage"] == "grpo" else {}
        before = resident()
        context = StageContext(
            config=config,
            model=model,
            reference=model,
            data=scratch / "data",
            output=scratch / "out",
            cache=scratch / "cache",
            seed=job["seed"],
            run_seed=1,
            checkpoints=FolderCheckpoints(scratch / "checkpoints", step="bench", key="k" * 32),
            io=io,
            engine=open_engines(registry, engine, model, closing),
            verifiers=closing.enter_context(open_verifiers(verifiers, registry)),
        )
        registry.load(spec)(config).run(context)
    ends = io.ends
    rates = [metrics["perf/tokens_per_s"] * metrics["perf/step_s"] for _, metrics in io.metrics if "train/loss" in metrics]
    losses = [metrics["train/loss"] for _, metrics in io.metrics if "train/loss" in metrics]
    steps = [end - start for start, end in itertools.pairwise(ends)]
    return outcome(steps, losses, ends[-1] - io.began, before=before, tokens=rates[1:])


# TRL


def trl(job: Job, scratch: Path) -> dict[str, Any]:
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []
            self.losses: list[float] = []

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.ends.append(time.perf_counter())

        def on_log(self, *_: Any, logs: Mapping[str, float] | None = None, **__: Any) -> None:
            if logs and "loss" in logs:
                self.losses.append(logs["loss"])

    common = {
        "output_dir": str(scratch),
        "use_cpu": True,
        "learning_rate": job["lr"],
        "lr_scheduler_type": "constant",
        "num_train_epochs": 1,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "seed": job["seed"],
        "bf16": job["precision"] == "bf16",
        "disable_tqdm": True,
        **job["options"],
    }
    tokenizer = AutoTokenizer.from_pretrained(job["model"])
    before = resident()
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=torch.float32)
    rows, clock = ordered(job), Clock()
    keys: dict[str, Any] = {"model": model, "processing_class": tokenizer, "callbacks": [clock]}
    if job["stage"] == "sft":
        from trl import SFTConfig, SFTTrainer

        data = Dataset.from_list([{"prompt": row["messages"][:-1], "completion": row["messages"][-1:]} for row in rows])
        config = SFTConfig(per_device_train_batch_size=job["batch"], max_length=1024, train_sampling_strategy="sequential", **common)
        trainer: Any = SFTTrainer(args=config, train_dataset=data, **keys)
    elif job["stage"] == "dpo":
        from trl import DPOConfig, DPOTrainer

        data = Dataset.from_list([{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows])
        config = DPOConfig(
            per_device_train_batch_size=job["batch"], max_length=1024, beta=0.1, train_sampling_strategy="sequential", **common
        )
        trainer = DPOTrainer(args=config, train_dataset=data, **keys)
    else:
        from trl import GRPOConfig, GRPOTrainer

        def reward(completions: Sequence[Any], **_: Any) -> list[float]:
            return [float(text[-1]["content"].strip() == job["reward"]) for text in completions]

        data = Dataset.from_list([{"prompt": row["messages"]} for row in rows])
        config = GRPOConfig(
            per_device_train_batch_size=job["batch"] * job["samples"],
            num_generations=job["samples"],
            max_completion_length=job["max_new_tokens"],
            max_steps=job["n_steps"],
            loss_type="grpo",
            **common,
        )
        trainer = GRPOTrainer(args=config, train_dataset=data, reward_funcs=reward, **keys)
    began = time.perf_counter()
    trainer.train()
    ends = clock.ends
    steps = [end - start for start, end in itertools.pairwise(ends)]
    return outcome(steps, clock.losses, ends[-1] - began, before=before)


if __name__ == "__main__":
    sys.exit(main())
