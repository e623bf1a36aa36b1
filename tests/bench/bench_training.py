"""Training side by side with TRL, one command a table:

    python tests/bench/bench_training.py sft  --model FOLDER --data GSM8K_FOLDER --precision fp32
    python tests/bench/bench_training.py dpo  --model FOLDER --data GSM8K_FOLDER
    python tests/bench/bench_training.py grpo --model FOLDER --data GSM8K_FOLDER
    python tests/bench/bench_training.py tiny                                        # GRPO on a model of 0.56M parameters, one thread
    python tests/bench/bench_training.py growth                                      # SFT over model size, length and batch; ours alone

FOLDER is a local Hugging Face model, the data ``train.jsonl`` with ``question`` and ``answer``. Same rows in the same order, precision,
threads and optimiser steps; TRL with transformers generation, at its defaults and at its best public settings. Contenders take turns, each
in a process of its own; medians over all steps but each process's first. The limit is what the step's necessary FLOPs (each real token
once through the body, the head where a token is trained) take at the rate of this machine's matrix products, measured between the turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from training_sides import ordered

SIDES = Path(__file__).with_name("training_sides.py")
NO_CHECKPOINTING = {"gradient_checkpointing": False}
CONTENDERS: dict[str, dict[str, tuple[str, dict[str, Any]]]] = {
    "sft": {"steelyard": ("steelyard", {}), "TRL, defaults": ("trl", {}), "TRL, best": ("trl", NO_CHECKPOINTING)},
    "dpo": {
        "steelyard": ("steelyard", {}),
        "TRL, defaults": ("trl", {}),
        "TRL, best": ("trl", {**NO_CHECKPOINTING, "precompute_ref_log_probs": True}),
    },
    "grpo": {"steelyard": ("steelyard", {}), "TRL, defaults": ("trl", {}), "TRL, best": ("trl", NO_CHECKPOINTING)},
}
TINY = {
    "model_type": "llama",
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
}
REWARDED = "42"
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,:;!?'\"$%&()*+-/<=>#\n"


def run(job: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """One contender's answer."""
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    threads = str(job["threads"])
    environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run([sys.executable, SIDES, path], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"{job['side']} failed:\n{done.stderr[-4000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def questions(data: Path, count: int) -> list[tuple[str, str]]:
    lines = (data / "train.jsonl").read_text(encoding="utf-8").splitlines()[:count]
    return [(row["question"], row["answer"]) for row in map(json.loads, lines)]


def rows_of(stage: str, pairs: Sequence[tuple[str, str]]) -> list[dict[str, Any]]:
    def turn(role: str, content: str) -> dict[str, str]:
        return {"role": role, "content": content}

    if stage == "sft":
        return [{"messages": [turn("user", question), turn("assistant", answer)]} for question, answer in pairs]
    if stage == "dpo":
        # The rejected answer is the next question's: of like length, and wrong.
        others = [answer for _, answer in pairs[1:]] + [pairs[0][1]]
        return [
            {"prompt": [turn("user", question)], "chosen": [turn("assistant", answer)], "rejected": [turn("assistant", other)]}
            for (question, answer), other in zip(pairs, others, strict=True)
        ]
    return [{"messages": [turn("user", question)], "verifier": "answer", "reference": REWARDED} for question, _ in pairs]


def real_tokens(job: Mapping[str, Any]) -> list[tuple[int, int, float]]:
    """For each optimiser step: tokens without padding, trained tokens, FLOPs that it cannot do without."""
    from steelyard_torch.encoding import encode_chat
    from steelyard_torch.flops import training_flops
    from steelyard_torch.models import load_model, load_tokenizer

    model, tokenizer = load_model(Path(job["model"])), load_tokenizer(Path(job["model"]))
    steps, rows = [], ordered(job)
    for start in range(0, len(rows), job["batch"]):
        part = rows[start : start + job["batch"]]
        chats = [row["messages"] for row in part] if job["stage"] == "sft" else [row["prompt"] + row[s] for row in part for s in SIDES_OF]
        encoded = [encode_chat(tokenizer, chat) for chat in chats]
        tokens, trained = sum(map(len, encoded)), sum(row.targets for row in encoded)
        length = sum(len(row) ** 2 for row in encoded) / tokens
        steps.append((tokens, trained, training_flops(model, tokens=tokens, trained_tokens=trained, mean_length=length) or 0.0))
    return steps


SIDES_OF = ("chosen", "rejected")


def compare(options: argparse.Namespace, job: dict[str, Any], folder: Path) -> None:
    stage = job["stage"]
    contenders = {n: c for n, c in CONTENDERS[stage].items() if not options.only or n in options.only}
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    rates = []
    for turn in range(options.turns):
        for name, (side, keys) in contenders.items():
            rates.append(run({**job, "side": "peak"}, folder)["flops"])
            found[name].append(run({**job, "side": side, "options": keys}, folder))
            last = found[name][-1]
            print(f"  turn {turn + 1}, {name}: steps {', '.join(f'{s:.2f}' for s in last['steps'])} s", file=sys.stderr, flush=True)
    peak = statistics.median(rates)
    steps = real_tokens(job) if stage != "grpo" else []
    print(
        f"{stage}, {job['precision']}, {job['threads']} thread(s), {options.turns} turn(s) of {len(found['steelyard'][0]['steps'])} steps"
    )
    print(f"matrix products: {peak / 1e9:.0f} GFLOP/s ({min(rates) / 1e9:.0f} to {max(rates) / 1e9:.0f})")
    print(f"| contender | step s | {'real tokens/s' if steps else 'steps/s'} | of the limit | whole s | memory peak | of it the model's |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, turns in found.items():
        medians = [statistics.median(one["steps"]) for one in turns]
        seconds = statistics.median(medians)
        if steps:
            rate = statistics.median(tokens / s for one in turns for (tokens, _, _), s in zip(steps[1:], one["steps"], strict=True))
            share = statistics.median(flops / s / peak for one in turns for (_, _, flops), s in zip(steps[1:], one["steps"], strict=True))
            speed, limit = f"{rate:.1f}", f"{share:.1%}"
        else:
            speed, limit = f"{1 / seconds:.3f}", ""
        whole = statistics.median(one["seconds"] for one in turns)
        memory = max(one["peak_bytes"] for one in turns) / 2**30, max(one["own_bytes"] for one in turns) / 2**30
        print(f"| {name} | {seconds:.2f} | {speed} | {limit} | {whole:.1f} | {memory[0]:.2f} GiB | {memory[1]:.2f} GiB |")
    mine = found["steelyard"]
    for name, turns in found.items():
        if name == "steelyard":
            continue
        by_step = statistics.median(
            b / a for ours, theirs in zip(mine, turns, strict=True) for a, b in zip(ours["steps"], theirs["steps"], strict=True)
        )
        whole = statistics.median(b["seconds"] / a["seconds"] for a, b in zip(mine, turns, strict=True))
        print(f"steelyard against {name}: {by_step:.2f} times by the step, {whole:.2f} by the whole")
        if stage != "grpo":
            apart = max(abs(a - b) for a, b in zip(mine[0]["losses"], turns[0]["losses"], strict=True))
            print(f"  losses of the steps differ by at most {apart:.2g}")


def growth(options: argparse.Namespace, folder: Path) -> None:
    """SFT of random models: one of layers, length and batch doubled at a time."""
    from steelyard_torch.bases import new_model

    print("| layers | width | length | rows | step s | real tokens/s | memory peak |\n|---:|---:|---:|---:|---:|---:|---:|")
    points = [
        (4, 256, 128, 8),
        (8, 256, 128, 8),
        (16, 256, 128, 8),
        (4, 512, 128, 8),
        (4, 256, 512, 8),
        (4, 256, 2048, 8),
        (4, 256, 128, 32),
    ]
    for layers, width, length, batch in points:
        size = {"hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers}
        shape = {**TINY, **size, "max_position_embeddings": 4096}
        model = folder / f"model-{layers}-{width}"
        if not model.exists():
            new_model(model, architecture=shape, characters=CHARACTERS, chat_template="tulu", seed=1)
        text = ("The quick brown fox jumps over the lazy dog. " * 100)[: length - 40]
        rows = rows_of("sft", [("say it", text)] * (batch * (options.steps + 1)))
        job = base_job(options, "sft", model, folder, rows) | {"batch": batch, "side": "steelyard", "options": {"max_length": 4096}}
        found = run(job, folder)
        seconds = statistics.median(found["steps"])
        tokens = statistics.median(found["tokens"])
        memory = found["peak_bytes"] / 2**30
        speed = f"{seconds:.3f} | {tokens / seconds:,.0f}"
        print(f"| {layers} | {width} | {length} | {batch} | {speed} | {memory:.2f} GiB |", flush=True)


def base_job(options: argparse.Namespace, stage: str, model: Path, folder: Path, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "stage": stage,
        "model": str(model),
        "rows": str(path),
        "precision": options.precision,
        "threads": options.threads,
        "batch": {"sft": 8, "dpo": 4, "grpo": 8}[stage],
        "samples": 8,
        "max_new_tokens": 32,
        "n_steps": options.steps + 1,
        "reward": REWARDED,
        "lr": 1e-5,
        "seed": 1,
        "options": {},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("sft", "dpo", "grpo", "tiny", "growth"))
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, help="2, or 1 for `tiny`")
    parser.add_argument("--steps", type=int, default=5, help="measured steps of a turn")
    parser.add_argument("--turns", type=int, default=1)
    parser.add_argument("--only", nargs="*", help="contenders by name; `steelyard` must be one")
    options = parser.parse_args()
    options.threads = options.threads or (1 if options.what == "tiny" else 2)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options.what == "growth":
            growth(options, folder)
            return 0
        if options.what == "tiny":
            from steelyard_torch.bases import new_model

            options.model = folder / "tiny"
            new_model(options.model, architecture=TINY, characters=CHARACTERS, chat_template="tulu", seed=1)
            asked = [(f"What is {n} + {n % 17}?", "") for n in range(64 * (options.steps + 1))]
        else:
            if options.model is None or options.data is None:
                parser.error(f"{options.what} needs --model and --data")
            asked = questions(options.data, {"sft": 8, "dpo": 4, "grpo": 8}[options.what] * (options.steps + 1))
        stage = "grpo" if options.what == "tiny" else options.what
        compare(options, base_job(options, stage, options.model.resolve(), folder, rows_of(stage, asked)), folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
