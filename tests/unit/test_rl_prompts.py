"""The prompts of the stage `rl`: bands, pre-passes, guesses and generation batches, with the real engine and real verifiers."""

from __future__ import annotations

import json
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from steelyard.errors import DataError, Interrupted, ModelError
from steelyard.records import Completion, Prompt, Rollout, Sampling, Verdict, derive_seed
from steelyard.rows import read_rows, write_rows
from steelyard_data.columns import RowReader
from steelyard_data.config import JsonlConfig
from steelyard_rl.buffer import Group
from steelyard_rl.config import GrpoConfig
from steelyard_rl.experience import Experience
from steelyard_rl.prepasses import guess_prompt, prepare
from steelyard_rl.prompt_options import GuessOptions
from steelyard_rl.prompts import PromptPool
from steelyard_rl.rollouts import Harvest, roll_out
from steelyard_torch.encoding import encode_rollout
from steelyard_torch.trainee import Trainee

LETTERS = "abcdef"
THINKING = (
    "{% for m in messages %}<|{{ m.role }}|>{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% if enable_thinking is defined and not enable_thinking %}=={% endif %}{% endif %}"
)


def rows(number: int = 12, **keys: Any) -> list[dict[str, Any]]:
    """An answer is right that has the question's letter."""
    letters = [LETTERS[i % 6] for i in range(number)]
    return [
        {"id": f"q{i}", "messages": [{"role": "user", "content": letter}], "reference": letter, **keys} for i, letter in enumerate(letters)
    ]


def config(**keys: Any) -> GrpoConfig:
    sizes = {"steps": 3, "prompts_per_step": 4, "samples_per_prompt": 8, "max_new_tokens": 12, "lr": 1e-3, "truncated": "keep"}
    return GrpoConfig(**{**sizes, **keys})


class Setting:
    """Prompts, engine and trainee of a stage that is about to roll out."""

    def __init__(self, bench: Any, options: GrpoConfig, data: Any = None, name: str = "step"):
        folder = bench.root / f"data-{name}"
        if not folder.exists():
            bench.data(rows() if data is None else data, f"data-{name}")
        if not hasattr(bench, "has"):
            bench.has = bench.verifiers({"has": ("regex", {"pattern_from": "reference"}, None)})
        self.options = options
        self.context = bench.context(options, model=bench.model(), data=folder, name=name, verifiers=bench.has)
        self.trainee = Trainee(self.context, options)
        self.trainee.schedule(options.steps)
        self.engine = self.context.engine(self.context.model, module=self.trainee.model)
        self.pool = PromptPool(self.trainee, options)

    def prepare(self, rest: Any = lambda: None) -> PromptPool:
        prepare(self.trainee, self.options, self.engine, self.pool, rest)
        return self.pool

    def roll_out(self, step: int = 0, cursor: int = 0) -> Harvest:
        self.engine.load_weights({}, version=step)
        return roll_out(self.context, self.options, self.engine, self.pool, step=step, cursor=cursor)

    def answers(self, pool: PromptPool, kind: str, number: int, **keys: Any) -> list[list[str]]:
        prompts = [Prompt(f"{kind}:{index}", token_ids=pool.at(0, index).prompt.token_ids) for index in range(number)]
        sampling = Sampling(seed=derive_seed(7, kind), **keys)
        return [[one.text for one in group] for group in self.engine.generate(prompts, sampling)]


# Columns


def test_prompts_outside_the_band_are_left_out_and_counted(bench: Any) -> None:
    """Open-R1 keeps prompts with a pass rate from 0.1 to 0.6, the ends included."""
    rates = [0.0, 0.05, 0.1, 0.3, 0.6, 0.61, 0.9, 1.0, 0.5, 0.2, 0.95, 0.4]
    data = [{**row, "pass_rate": rate} for row, rate in zip(rows(), rates, strict=True)]
    setting = Setting(bench, config(curriculum={"pass_rate": "pass_rate", "keep": [0.1, 0.6]}), data)
    pool = setting.pool
    kept = {f"q{i}" for i, rate in enumerate(rates) if 0.1 <= rate <= 0.6}
    assert {taken.row["id"] for taken in pool.take(0, 18)} == kept and len(pool) == 6
    assert str(pool) == "6 prompts; 6 outside curriculum.keep and left out"
    assert pool.facts() == {"prompts": 6, "prompts_outside_keep": 6}
    with pytest.raises(
        DataError, match=r"no prompt is left: 0 of 12 .* 12 have a success rate outside curriculum\.keep \(0\.97, 0\.98\)|\[0\.97, 0\.98\]"
    ):
        Setting(bench, config(curriculum={"pass_rate": "pass_rate", "keep": [0.97, 0.98]}), data, name="none")


@pytest.mark.parametrize("value", [None, "half", 1.5, -0.1, True, float("nan")])
def test_a_column_that_is_no_success_rate_is_refused_with_the_row(bench: Any, value: Any) -> None:
    data = [*({**row, "passrate": 0.5} for row in rows(3)), {**rows(1)[0], "id": "odd", "passrate": value}]
    with pytest.raises(DataError, match=r"row 'odd': passrate is .*, not a success rate from 0 to 1"):
        Setting(bench, config(curriculum={"pass_rate": "passrate", "order": "easy_first"}), data)
    with pytest.raises(DataError, match=r"row 'q0': pass_rate is None.*did you mean 'passrate'"):
        Setting(bench, config(curriculum={"pass_rate": "pass_rate", "order": "easy_first"}), data, name="step")


def test_easy_prompts_are_rolled_out_first(bench: Any) -> None:
    data = [{**row, "pass_rate": i / 12} for i, row in enumerate(rows())]
    options = config(curriculum={"pass_rate": "pass_rate", "order": "easy_first"}, drop_without_signal=False, prompts_per_step=3)
    setting = Setting(bench, options, data)
    first = setting.roll_out()
    assert [setting.pool.at(*group.origin).row["id"] for group in first.groups] == ["q11", "q10", "q9"]
    second = setting.roll_out(1, first.cursor)
    assert [setting.pool.at(*group.origin).row["id"] for group in second.groups] == ["q8", "q7", "q6"]


def test_files_bring_the_columns_that_the_stage_asks_for(tmp_path: Path) -> None:
    reader = RowReader(JsonlConfig(path="x", columns={"pass_rate": "stats.solved"}, keep=("pass_rate", "spread")))
    raw = {"prompt": "a", "stats": {"solved": 0.3}, "spread": 0.2, "verifiers": ["has", "short"], "references": {"has": "a", "other": None}}
    row = reader.read({**raw, "reference": "x"}, "line 1")
    assert row == {
        "messages": [{"role": "user", "content": "a"}],
        "reference": "x",
        "verifiers": ["has", "short"],
        "references": {"has": "a"},
        "pass_rate": 0.3,
        "spread": 0.2,
    }
    write_rows(tmp_path, [row])
    assert next(read_rows(tmp_path)) == row
    assert "reference" not in reader.read(raw, "line 2")
    with pytest.raises(DataError, match=r"line 3: no column 'spread' to keep; it has prompt, references, stats, verifiers"):
        reader.read({name: value for name, value in raw.items() if name != "spread"}, "line 3")


# Running success rates


def test_what_training_shows_moves_the_success_rates(bench: Any) -> None:
    options = config(curriculum={"order": "priority", "prior": 0.5, "prior_weight": 4}, drop_without_signal=False)
    setting = Setting(bench, options)
    harvest = setting.roll_out()
    for group in harvest.groups:
        right = sum(rollout.verdict.score or 0.0 for rollout in group.rollouts)
        assert setting.pool.curriculum.rates[group.origin[1]] == pytest.approx((0.5 * 4 + right) / 12)
    assert len({group.origin[1] for group in harvest.groups}) == 4
    json.dumps(harvest.state)


# Looks at the prompts before training


def test_success_rates_and_variances_are_measured_by_the_initial_model(bench: Any) -> None:
    """Kimi k1.5: the pass rate of ten answers; Qwen2.5: the order is by the variance of the rewards, high first."""
    setting = Setting(bench, config(curriculum={"measure": 10, "order": "variance", "keep": [0.0, 0.8]}))
    pool = setting.prepare()
    answers = setting.answers(pool, "measure", 12, max_new_tokens=12, n=10)
    for index, texts in enumerate(answers):
        right = [float(LETTERS[index % 6] in text) for text in texts]
        assert pool.measured[index] == pytest.approx((np.mean(right), np.var(right)))
    variances = [pool.measured[taken.index][1] for taken in pool.take(0, len(pool))]
    assert variances == sorted(variances, reverse=True) and len(set(variances)) > 1
    assert all(pool.measured[index][0] <= 0.8 for index in pool.curriculum.open)
    assert len(pool) + pool.outside == 12


def test_prompts_guessed_without_thinking_are_left_out_counted_and_listed(bench: Any) -> None:
    """Kimi k1.5, section 2.1: out with what is guessed right within eight tries without a chain of thought."""
    setting = Setting(bench, config(guess={"max_new_tokens": 3, "instruction": "at once"}))
    pool = setting.prepare()
    prompts = [guess_prompt(pool, setting.options.guess, index) for index in range(12)]
    text = pool.tokenizer.decode(prompts[1].token_ids)
    assert text.startswith("<|user|>b\nat once") and text.endswith("<|assistant|>")
    sampling = Sampling(max_new_tokens=3, n=8, seed=derive_seed(7, "guess"))
    tries = [[one.text for one in group] for group in setting.engine.generate(prompts, sampling)]
    guessed = [index for index, texts in enumerate(tries) if any(LETTERS[index % 6] in text for text in texts)]
    assert 0 < len(guessed) < 12 and pool.guessed == guessed
    assert pool.facts() == {"prompts": 12 - len(guessed), "prompts_guessed": len(guessed), "guessed": [f"q{index}" for index in guessed]}
    assert not {taken.index for taken in pool.take(0, 30)} & set(guessed)
    assert any(f"{len(guessed)} guessed without thinking and left out" in line for line in setting.context.io.lines)


def test_a_guess_may_take_the_template_s_way_not_to_think(bench: Any) -> None:
    keys = {"tries": 2, "instruction": "", "template": {"enable_thinking": False}}
    setting = Setting(bench, config(guess={**keys, "prefill": "so: "}))
    setting.pool.tokenizer.chat_template = THINKING
    prompt = guess_prompt(setting.pool, setting.options.guess, 0)
    assert setting.pool.tokenizer.decode(prompt.token_ids).endswith("<|assistant|>==so: ")
    odd = GuessOptions(instruction="", template={"enable_thinkin": False})
    with pytest.raises(ModelError, match=r"guess\.template .* changes nothing: the chat template knows no such variable"):
        guess_prompt(setting.pool, odd, 0)


def test_the_verifier_sees_what_a_guess_was_made_to_begin_with(bench: Any) -> None:
    data = [*rows(6), {**rows(1)[0], "id": "z", "reference": "!"}]
    setting = Setting(bench, config(guess={"tries": 1, "prefill": "abcdef", "max_new_tokens": 1}), data)
    assert setting.prepare().guessed == list(range(6))


def test_where_everything_is_guessed_the_stage_says_so(bench: Any) -> None:
    setting = Setting(bench, config(guess={"tries": 1, "prefill": "abcdef"}))
    with pytest.raises(DataError, match="no prompt is left: 12 of 12 were guessed without thinking"):
        setting.prepare()


def test_canaries_are_no_part_of_a_look_at_the_prompts(bench: Any) -> None:
    data = [*rows(6), *({**row, "id": f"c{i}", "canary": True} for i, row in enumerate(rows(2)))]
    setting = Setting(bench, config(guess={"max_new_tokens": 3}, curriculum={"measure": 4, "keep": [0.0, 0.9], "retire_at": 0.95}), data)
    pool = setting.prepare()
    assert pool.measured.keys() | set(pool.guessed) == set(range(6))
    assert {6, 7} <= set(pool.curriculum.open)


def test_a_stop_in_a_look_at_the_prompts_loses_no_part_of_it(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("steelyard_rl.prepasses._PROMPTS_AT_ONCE", 5)
    options = config(guess={"max_new_tokens": 2}, curriculum={"measure": 4, "order": "variance"})
    whole = Setting(bench, options, name="whole").prepare()
    saved, asked = {}, []
    for stop in count():
        setting = Setting(bench, options, name=f"stop-{stop}")
        setting.pool.restore(saved)
        generate = setting.engine.generate
        setting.engine.generate = lambda prompts, sampling, generate=generate: (
            asked.extend(p.id for p in prompts),
            generate(prompts, sampling),
        )[1]

        def rest(pool: PromptPool = setting.pool) -> None:
            saved.update(json.loads(json.dumps(pool.state())))
            raise Interrupted("stopped")

        try:
            pool = setting.prepare(rest)
            break
        except Interrupted:
            continue
    assert stop >= 4 and len(asked) == len(set(asked)), "nothing is sampled twice"
    assert (pool.measured, pool.guessed) == (whole.measured, whole.guessed)
    assert [taken.index for taken in pool.take(0, 20)] == [taken.index for taken in whole.take(0, 20)]


def test_what_got_no_verdict_is_not_measured_again_by_a_later_model(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every stop comes by here again, also one in the middle of training."""
    setting = Setting(bench, config(curriculum={"measure": 2, "order": "easy_first"}))
    verify = setting.context.verifiers.verify

    def failing(checks: Any) -> list[Verdict]:
        return [
            Verdict.timeout("slow") if check[1].prompt_id == "measure:3" else one for check, one in zip(checks, verify(checks), strict=True)
        ]

    monkeypatch.setattr(setting.context.verifiers, "verify", failing)
    pool = setting.prepare()
    assert set(pool.measured) == set(range(12)) - {3}
    again = Setting(bench, setting.options)
    again.pool.restore(json.loads(json.dumps(pool.state())))
    monkeypatch.setattr(again.engine, "generate", lambda *_: pytest.fail("sampled again"))
    assert set(again.prepare().measured) == set(range(12)) - {3}


# Generation batches


def test_a_step_samples_whole_generation_batches_until_it_has_its_groups(bench: Any) -> None:
    """DAPO's code generates 1536 prompts for 512, filters by accuracy, and gives up after ten batches; here 6 for 2."""
    data = [*rows(6), *rows(18, reference="!")]
    options = config(prompts_per_step=2, generation_batch=6, max_generation_batches=3)
    setting = Setting(bench, options, [{**row, "id": f"r{i}"} for i, row in enumerate(data)])
    cursor = 0
    for step in range(3):
        harvest = setting.roll_out(step, cursor)
        cursor = harvest.cursor
        metrics = harvest.metrics()
        batches = metrics["rl/generation_batches"]
        assert metrics["rl/prompts_sampled"] == 6 * batches and batches <= 3
        assert metrics["rl/groups"] == 2 or (batches == 3 and metrics["rl/groups"] < 2)
        dropped = metrics["rl/groups_all_right"] + metrics["rl/groups_all_wrong"]
        assert metrics["rl/groups"] + metrics["rl/groups_surplus"] + dropped == metrics["rl/prompts_sampled"]
        assert not setting.pool.buffer.surplus


def test_surplus_groups_are_kept_for_the_next_step_and_through_a_stop(bench: Any) -> None:
    options = config(prompts_per_step=2, generation_batch=6, surplus="keep", steps=5)
    setting, cursor, seen, left = Setting(bench, options), 0, [], []
    for step in range(5):
        harvest = setting.roll_out(step, cursor)
        for before, group in zip(left, harvest.groups, strict=False):
            assert group == before, "kept groups come first, and as they were"
        if len(left) >= 2:
            assert harvest.counts["prompts"] == 0 and harvest.off_policy
            assert harvest.metrics()["rl/stale_tokens"] == 1.0
            assert all(all(stale) for group in harvest.groups for stale in group.stale(step))
        cursor, left = harvest.cursor, list(setting.pool.buffer.surplus)
        seen += [group.origin for group in harvest.groups]
        # A stop: all that is known goes through a checkpoint's JSON.
        saved = json.loads(json.dumps(harvest.state))
        setting = Setting(bench, options)
        setting.pool.restore(saved)
        assert setting.pool.buffer.surplus == left
    assert len(seen) == len(set(seen)) == 10, "no group is trained on twice"


# Rows


def test_what_is_known_of_an_answer_to_an_empty_prompt_is_of_its_trained_tokens() -> None:
    """Its first token is predicted by nothing; its log-probability would shift those of all later ones."""
    completion = Completion("p", 0, (3, 4, 5), "abc", "stop", logprobs=(-1.0, -2.0, -3.0), weight_version=1)
    rollout = Rollout(Prompt("p", token_ids=()), completion, Verdict.correct(), 1.0)
    masks = [None, [True, False, True]]
    experience = Experience.of([Group([rollout, rollout], masks, ([(0, 2), (1, 1)], ()))], version=1)
    assert experience.targets == [2, 1]
    assert experience.sampled is not None
    assert [known.tolist() for known in experience.sampled] == [[-2.0, -3.0], [-3.0]]
    assert experience.stale[0].tolist() == [True, False] and 1 not in experience.stale


def test_a_rollout_without_a_prompt_trains_all_but_its_first_token() -> None:
    row = encode_rollout((), (5, 6, 7), trained=[True, False, True])
    assert row.trained.tolist() == [False, False, True]
    assert encode_rollout((), (5, 6, 7)).trained.tolist() == [False, True, True]
    assert encode_rollout((1, 2), (5, 6), trained=[False, True]).trained.tolist() == [False, False, False, True]
    assert encode_rollout((1,), ()).trained.tolist() == [False]
