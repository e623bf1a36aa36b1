"""The report of a run: what it says, that nothing in it is believed, and how a real browser shows it.

The run folder is made by the run's own ledger and artifact store, real gate verdicts and real decontamination; only the training is
left out, and the models' answers are drawn from a seeded generator.
"""

from __future__ import annotations

import json
import random
import shutil
import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import save_file

from steelyard.cli.report import command
from steelyard.decontaminate import ItemIndex, Rule, clean
from steelyard.errors import UsageError
from steelyard.gate import PolicyConfig, weigh
from steelyard.report import render_report, write_report
from steelyard.report.headline import headline
from steelyard.report.record import read_run
from steelyard.rows import write_rows
from steelyard.run.artifacts import ArtifactStore
from steelyard.run.keys import step_key
from steelyard.run.ledger import Ledger
from steelyard.run.lineage import model_lineage, write_lineage
from steelyard.run.tasks import Task
from steelyard.run.weights import inspect_weights

SCRIPT = "<script>alert('s')</script>"
STYLE = "</style><script>alert(2)</script><style>"
IMAGE = "\"><img src=x onerror=alert(3)>'"
TITLE = "</title><svg onload=alert(4)>"
TEMPLATE = "{{ 7 * 191 }}{% raw %}"
LINK = "https://tracker.example/pixel.gif"
LEAK = "Natalia sold clips to 48 of her friends in April and then sold half as many clips in May"


class RunFolderMaker:
    """Writes a run of three rounds: one that promotes, one that is rejected, one that promotes."""

    def __init__(self, folder: Path, *, items: int = 40, tasks: tuple[str, ...] = ("add", "sort", "concise"), name: str = "trial"):
        self.folder, self.items, self.tasks = folder, items, tasks
        folder.mkdir(parents=True, exist_ok=True)
        self.store = ArtifactStore(folder / "artifacts")
        self.ledger = Ledger(folder / "ledger.db")
        self.keys: dict[str, str] = {}
        self.facts: dict[str, str] = {"metric": "rl/accuracy", "source": "chats", "text": "plain", "item": "item"}
        self.resolved = {
            "steelyard": 1,
            "name": name,
            "seed": 7,
            "summary": "a small trial",
            "base": {"model": "org/tiny", "new": None, "dtype": "float32"},
            "engine": {"kind": "transformers"},
            "suites": {"dev": "dev-suite"},
            "rounds": [{"name": r, "stages": [{"name": s, "kind": s, "lr": 0.001}]} for r, s in ROUNDS],
            "gate": {"policy": "non_inferiority", "alpha": 0.05, "margins": {"default": 0.1}},
        }
        session = {"started": "2026-05-04T12:30:00+00:00", "command": "steelyard run trial", "steelyard": "0.1.0", "python": "3.11.7"}
        session |= {"libraries": {"torch": "2.13.0"}, "hardware": {"processor": "abacus", "memory_bytes": 8 * 2**30, "accelerators": []}}
        (folder / "resolved.json").write_text(json.dumps(self.resolved))
        (folder / "manifest.json").write_text(json.dumps({"format": 1, "sessions": [session]}))

    def make(self, step, kind, fill, *, inputs=None, round_name=None, seconds=2.5):
        key = self.keys[step] = step_key(kind, {"step": step}, inputs or {}, seed=None, serving=(), fingerprints={})
        self.ledger.add_step(step, kind, key, "started", round_name=round_name)
        folder = self.store.temporary(key)
        fill(folder, key)
        self.store.commit(folder, key, step=step, kind=kind, inputs=inputs or {}, summary={}, seconds=seconds)
        self.ledger.add_step(step, kind, key, "done", seconds=seconds, round_name=round_name)
        return key

    def model(self, step, kind, inputs, round_name=None):
        def fill(folder, key):
            weights = np.random.default_rng(len(self.keys)).normal(size=(8, 8)).astype(np.float32)
            save_file({"w": weights}, folder / "model.safetensors")
            task = Task(step, "stage", key, {"options": {"lr": 0.001}}, inputs, self.folder, self.folder, 1, 1)
            folders = {role: self.store.path(k) for role, k in inputs.items()}
            facts = {"origin": "org/tiny"} if step == "base" else {"template_hash": "ab" * 16}
            write_lineage(folder, model_lineage(task, folders, kind, inspect_weights(folder), facts))
            if kind == "grpo":
                sample = {"kind": "rollout", "prompt": self.facts["text"], "completion": self.facts["text"], "reward": 0.5}
                (folder / "samples.jsonl").write_text(json.dumps(sample) + "\n")

        return self.make(step, "import" if step == "base" else "stage", fill, inputs=inputs, round_name=round_name)

    def data(self, name):
        rows = [{"messages": [{"role": "user", "content": f"row {i}"}], "source": self.facts["source"]} for i in range(20)]
        rows.append({"messages": [{"role": "user", "content": f"So: {LEAK}. {self.facts['text']}"}], "source": self.facts["source"]})
        share = {"source": self.facts["source"], "rows_available": 480, "rows_taken": 21, "tokens": 9876, "requested": "count 21"}
        share["dropped"] = {"too long": 3}
        facts = {"pairs": 17, "sampling": {"correct": 1169, "prompts without a pair": 820}}
        made = self.make(f"data/{name}", "data", lambda folder, _: write_rows(folder, rows, {"shares": [share], "facts": facts}))

        def scan(folder, _):
            index = ItemIndex.build([{"task": self.tasks[0], "id": "leaked", "text": LEAK}], Rule())
            cleaning = clean(index, rows, suites={"dev-suite": "1"})
            write_rows(folder, cleaning, {"shares": [share]})
            (folder / "decontamination.json").write_text(json.dumps(cleaning.report.to_dict()))
            (folder / "certificate.json").write_text(cleaning.certificate.to_json())

        return self.make(f"clean/{name}", "decontaminate", scan, inputs={"data": made})

    def evaluate(self, step, model_step, skill, round_name=None):
        def fill(folder, key):
            items, samples, tasks = [], [], {}
            for task in self.tasks:
                scores = []
                for i in range(self.items):
                    # An item has the same difficulty for every model, so that a better one keeps what a worse one could do.
                    right = float(random.Random(f"{task}{i}").random() < skill)
                    scores.append(right)
                    row = {"task": task, "task_hash": "h", "id": f"{self.facts['item']}{i:03d}", "score": right, "outcome": "correct"}
                    items.append(row)
                    text = f"{self.facts['text']} {step} {'right' if right else 'wrong'}"
                    samples.append({**row, "prompt": f"question {i} {self.facts['text']}", "completion": text, "target": f"target {i}"})
                tasks[task] = {"n": self.items, "score": sum(scores) / len(scores), "weight": 1.0, "metric": self.facts["metric"]}
            header = {
                "model": model_step,
                "weights_sha256": key,
                "suite": "dev-suite",
                "suite_version": "1",
                "harness": "h",
                "versions": {},
            }
            write_lines(folder / "items.jsonl", items)
            write_lines(folder / "samples.jsonl", samples)
            (folder / "eval.json").write_text(json.dumps({**header, "tasks": tasks}))

        return self.make(step, "evaluate", fill, inputs={"model": self.keys[model_step]}, round_name=round_name)

    def gate(self, number, round_name, champion, challenger_step, evaluations):
        policy = PolicyConfig(margins={"default": 0.1}, rounds=3, round=number)
        sides = [self.store.open(self.keys[step]) for step in evaluations]
        verdict = weigh(*sides, policy).to_json()
        self.ledger.add_decision(
            round_name=round_name,
            step=f"gate/{round_name}",
            key=f"{number:032x}",
            champion=self.keys[champion],
            challenger=self.keys[challenger_step],
            challenger_step=challenger_step,
            verdict=verdict,
            seconds=0.1,
        )
        return verdict

    def metrics(self, step, count=300):
        rng = random.Random(1)
        for i in range(count):
            values = {"train/loss": 2 / (1 + i / 30) + rng.random() / 10, self.facts["metric"]: i / count, "train/lr": 1e-5 * (count - i)}
            self.ledger.add_metrics(step, self.keys[step], i + 1, values)

    def whole_run(self):
        self.model("base", "import", {})
        clean_key = self.data("chats")
        self.evaluate("eval/base/dev", "base", 0.2)
        champion, evaluation, verdicts = "base", "eval/base/dev", []
        for number, ((round_name, stage), skill) in enumerate(zip(ROUNDS, SKILLS, strict=True), start=1):
            step = f"{round_name}/{stage}"
            self.model(step, stage, {"model": self.keys[champion], "data": clean_key}, round_name)
            self.metrics(step)
            self.evaluate(f"eval/{round_name}/dev", step, skill, round_name)
            verdict = self.gate(number, round_name, champion, step, (evaluation, f"eval/{round_name}/dev"))
            verdicts.append(verdict)
            if verdict["decision"] == "promote":
                champion, evaluation = step, f"eval/{round_name}/dev"
        self.ledger.close()
        return verdicts


ROUNDS = (("one", "sft"), ("two", "dpo"), ("three", "grpo"))
SKILLS = (0.6, 0.3, 0.9)


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


class Page(HTMLParser):
    """The tags, attributes and texts of a page, as a browser's parser would find them."""

    def __init__(self, html: str):
        super().__init__(convert_charrefs=True)
        self.tags: set[str] = set()
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    maker = RunFolderMaker(tmp_path_factory.mktemp("runs") / "trial")
    maker.verdicts = maker.whole_run()
    return maker


@pytest.fixture(scope="module")
def page(run):
    return Page(render_report(run.folder).html)


def test_the_made_run_has_two_promotions_and_a_rejection(run):
    assert [verdict["decision"] for verdict in run.verdicts] == ["promote", "reject", "promote"]


def test_the_last_verdict_comes_before_everything_else(run, page):
    sentence = " ".join(run.verdicts[-1]["sentence"].split())
    assert page.text.index("Promoted in 2 of 3 rounds") < page.text.index(sentence) < page.text.index("Who held the title")


def test_every_rounds_sentence_is_there_once(run, page):
    for verdict in run.verdicts:
        assert page.text.count(" ".join(verdict["sentence"].split())) == 1


def test_the_ladder_names_the_champion_after_each_round_and_the_refused_challenger(page):
    ladder = page.text[page.text.index("Who held the title") : page.text.index("Scores by task")]
    assert "start base" in ladder
    assert "two reject one/sft" in ladder and "two/dpo −" in ladder
    assert "three promote three/grpo" in ladder


def test_differences_show_bounds_margins_and_how_many_items_moved(run, page):
    task = run.verdicts[0]["tasks"]["add"]
    gained = sum(0.2 <= random.Random(f"add{i}").random() < 0.6 for i in range(run.items))
    assert f"{100 * task['diff']:+.1f} [{100 * task['lower']:+.1f}, {100 * task['upper']:+.1f}]" in page.text
    assert "non-inferior, margin −10.0" in page.text
    assert f"n 40 · {gained} up, 0 down" in page.text


def test_items_that_changed_come_first_and_losses_before_gains(run):
    html = render_report(run.folder).html
    round_two = html[html.index('<article class="pair lost">') :]
    assert "eval/one/dev right" in round_two and "eval/two/dev wrong" in round_two
    kinds = [part.split('"')[0] for part in html.split('<article class="pair ')[1:]]
    kinds = [kind for kind in kinds if kind in ("lost", "gained", "same")]
    assert kinds == ["gained"] * 8 + ["same"] * 4 + ["lost"] * 6 + ["same"] * 4 + ["gained"] * 8 + ["same"] * 4


def test_data_lists_each_source_and_what_decontamination_removed(page):
    data = page.text[page.text.index("data/chats") :]
    assert "chats count 21 480 21 100.0 % 9,876 too long 3" in data
    assert "21 rows against 1 items: 1 held an item and were removed" in data
    assert LEAK in data


def test_lineage_gives_every_key_from_the_champion_to_the_base(run, page):
    lineage = page.text[page.text.index("Every model and dataset by the key") :]
    places = [lineage.index(run.keys[step]) for step in ("three/grpo", "one/sft", "base")]
    assert places == sorted(places)
    assert "challenger of round two: reject" in lineage and run.keys["two/dpo"] in lineage
    assert f"weights sha256 {inspect_weights(run.store.path(run.keys['base'])).sha256}" in lineage


def test_configuration_and_timings_are_told(page):
    assert "base org/tiny" in page.text and "processor abacus" in page.text and "memory 8.0 GiB" in page.text
    assert "three/grpo stage 2.5 s" in page.text


def test_the_page_asks_for_nothing_from_anywhere(run):
    report = render_report(run.folder)
    for _, name, value in Page(report.html).attributes:
        if name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            assert value.startswith("#") or value == "data:,"
    style = report.html[report.html.index("<style>") : report.html.index("</style>")]
    assert "url(" not in style and "@import" not in style and "http" not in style


def test_the_policy_forbids_scripts_and_knows_the_style_by_its_hash(run):
    import base64
    import hashlib

    html = render_report(run.folder).html
    style = html[html.index("<style>") + len("<style>") : html.index("</style>")]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = next(value for tag, name, value in Page(html).attributes if tag == "meta" and value.startswith("default-src"))
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    assert "style" not in {name for _, name, _ in Page(html).attributes}


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    maker = RunFolderMaker(tmp_path_factory.mktemp("runs") / "hostile", tasks=(f"add{IMAGE}", STYLE), name=f"run {TITLE}")
    text = f"{SCRIPT}{STYLE}{IMAGE}{TEMPLATE}{LINK}\x00\x1b[31m\u202eabc\ud800"
    maker.facts = {"metric": f"rl/{IMAGE}", "source": f"src{SCRIPT}", "text": text, "item": f"id{IMAGE}"}
    maker.data = lambda name, made=maker.data: without_surrogates(maker, made, name)
    maker.whole_run()
    return maker


def without_surrogates(maker, made, name):
    """Parquet cannot hold a lone surrogate; JSON lines can."""
    text = maker.facts["text"]
    maker.facts["text"] = text.replace("\ud800", "")
    key = made(name)
    maker.facts["text"] = text
    return key


def test_hostile_texts_stay_texts(hostile):
    report = render_report(hostile.folder)
    page = Page(report.html)
    assert not page.tags & {"script", "img", "iframe", "object", "embed", "form", "base"}
    assert not [name for _, name, _ in page.attributes if name.startswith("on")]
    assert [value for tag, name, value in page.attributes if name in ("src", "href") and not value.startswith("#")] == ["data:,"]
    for shown in (SCRIPT, STYLE, IMAGE, TITLE, TEMPLATE, LINK, f"add{IMAGE}", f"rl/{IMAGE}", f"src{SCRIPT}", f"id{IMAGE}"):
        assert shown in page.text
    assert report.problems == ()


def test_control_characters_are_shown_and_a_lone_surrogate_does_not_stop_the_page(hostile, tmp_path):
    written = write_report(hostile.folder, tmp_path / "out.html").read_bytes().decode("utf-8")
    assert "␀␛[31m\ufffdabc\\ud800" in written
    assert not {"\x00", "\x1b", "\u202e"} & set(written)


def test_an_unfinished_run_has_a_report(tmp_path):
    maker = RunFolderMaker(tmp_path / "young")
    maker.ledger.close()
    (tmp_path / "young" / "ledger.db").unlink()
    assert "No verdict yet" in render_report(tmp_path / "young").html
    maker.ledger = Ledger(tmp_path / "young" / "ledger.db")
    maker.model("base", "import", {})
    maker.data("chats")
    maker.ledger.add_step("one/sft", "stage", "c" * 32, "started", round_name="one")
    maker.keys["one/sft"] = "c" * 32
    maker.metrics("one/sft", 5)
    report = render_report(tmp_path / "young")
    assert report.sections == ("verdict", "ladder", "curves", "data", "lineage", "configuration", "timings")
    assert "no round has been decided: 3 steps are done, the last was one/sft (started)" in Page(report.html).text
    maker.ledger.close()


def test_a_reward_model_shows_how_often_it_was_right_and_how_certain(tmp_path):
    maker = RunFolderMaker(tmp_path / "scored")
    base = maker.model("base", "import", {})
    bins = [{"low": 0.5, "high": 0.55, "pairs": 4, "confidence": 0.52, "accuracy": 0.5}, {"low": 0.9, "high": "torn", "pairs": None}]
    told = {"pairs": 1204, "accuracy": 0.731, "log_loss": 0.5123, "brier": 0.1844, "ece": 0.041, "bins": bins}
    key = maker.model("one/rm", "reward_model", {"model": base}, round_name="one")
    (maker.store.path(key) / "stage.json").write_text(json.dumps({"kind": "reward_model", "facts": {"heldout": told}}))
    report = render_report(maker.folder)
    assert "reward_models" in report.sections
    text = Page(report.html).text
    assert "right on 73.1 % of 1,204 pairs; log loss 0.512 (a coin toss has 0.693), Brier score 0.184, calibration error 4.1 points" in text
    assert "50.0 to 55.0 % 4 52.0 % 50.0 %" in text
    (maker.store.path(key) / "stage.json").write_text('{"facts": {"heldout": {"pairs": "many"}}}')
    assert "reward_models" not in render_report(maker.folder).sections
    maker.ledger.close()


def test_a_failure_and_an_interruption_stand_under_the_verdict(tmp_path):
    maker = RunFolderMaker(tmp_path / "broken")
    maker.model("base", "import", {})
    maker.ledger.add_failure("one/sft", "c" * 32, "TrainingError", "the loss is nan at step 12")
    maker.ledger.add_step("one/sft", "stage", "c" * 32, "failed", seconds=3.0)
    text = Page(render_report(maker.folder).html).text
    assert "Failed before the first verdict" in text and "step one/sft failed: the loss is nan at step 12" in text
    maker.ledger.add_step("one/sft", "stage", "c" * 32, "started")
    maker.ledger.add_step("one/sft", "stage", "c" * 32, "interrupted", seconds=1.0)
    text = Page(render_report(maker.folder).html).text
    assert "No verdict yet" in text and "the loss is nan" not in text
    assert "step one/sft was interrupted; `steelyard resume` goes on" in text
    assert "one/sft stage 4.0 s interrupted" in text
    maker.ledger.close()


def test_the_title_says_how_far_the_run_came(tmp_path):
    tops = []
    for skills in ((0.6,), (0.6, 0.3), (0.1,), (0.6, 0.9, 0.2), (0.28,), (0.5, 0.7, 0.9)):
        maker = RunFolderMaker(tmp_path / f"run{len(tops)}")
        clean_key = [maker.model("base", "import", {}), maker.data("chats"), maker.evaluate("eval/base/dev", "base", 0.3)][1]
        champion, evaluation = "base", "eval/base/dev"
        for number, (skill, (name, stage)) in enumerate(zip(skills, ROUNDS, strict=False), start=1):
            step = f"{name}/{stage}"
            maker.model(step, stage, {"model": maker.keys[champion], "data": clean_key}, name)
            maker.evaluate(f"eval/{name}/dev", step, skill)
            verdict = maker.gate(number, name, champion, step, (evaluation, f"eval/{name}/dev"))
            if verdict["decision"] == "promote":
                champion, evaluation = step, f"eval/{name}/dev"
        maker.ledger.close()
        task, facts = min(verdict["tasks"].items(), key=lambda entry: entry[1]["diff"])
        top = headline(read_run(maker.folder))
        average = f"average fell by {-100 * verdict['average']['diff']:.1f} points"
        tops.append(
            (
                top.title.replace(average, "AVERAGE fell").replace(f"{task} fell by {-100 * facts['diff']:.1f} points", "WORST fell"),
                top.tally,
            )
        )
    assert tops == [
        ("Promoted in 1 of 3 rounds", "2 not run"),
        ("Refused at two: WORST fell (margin 10), and 2 more guarded tasks fell", "1 of 3 rounds promoted; 1 refused, 1 not run"),
        ("Refused at one: the AVERAGE fell", "none of 3 rounds promoted; 1 refused, 2 not run"),
        ("Refused at three: WORST fell (margin 10), and 2 more guarded tasks fell", "2 of 3 rounds promoted; 1 refused"),
        ("Inconclusive at one: the average is proven neither better nor worse", "none of 3 rounds promoted; 1 inconclusive, 2 not run"),
        ("Promoted in all 3 rounds", ""),
    ]


def decided(folder, change):
    """A run of two recipe rounds of which the first has this verdict, changed by hand, and the second has begun."""
    maker = RunFolderMaker(folder)
    maker.model("base", "import", {})
    maker.evaluate("eval/base/dev", "base", 0.3)
    maker.model("one/sft", "sft", {"model": maker.keys["base"]}, "one")
    maker.evaluate("eval/one/dev", "one/sft", 0.6)
    verdict = weigh(*(maker.store.open(maker.keys[f"eval/{who}/dev"]) for who in ("base", "one")), PolicyConfig(margins={"default": 0.1}))
    content = verdict.to_json()
    change(content)
    sides = {"champion": maker.keys["base"], "challenger": maker.keys["one/sft"], "challenger_step": "one/sft"}
    maker.ledger.add_decision(round_name="one", step="gate/one", key="1" * 32, verdict=content, seconds=0.1, **sides)
    maker.ledger.add_step("two/dpo", "stage", "c" * 32, "started", round_name="two")
    maker.ledger.close()
    return headline(read_run(folder))


def test_the_title_names_the_reason_where_it_is_not_a_guard_that_fell(tmp_path):
    def worse(verdict):
        verdict["decision"], verdict["average"] = "reject", {**verdict["average"], "diff": -0.042, "status": "worse"}

    def open_guard(verdict):
        verdict["decision"], verdict["tasks"]["sort"]["status"] = "inconclusive", "inconclusive"

    def objection(verdict):
        verdict["decision"], verdict["objections"] = "inconclusive", ["answers leak"]

    tops = [decided(tmp_path / change.__name__, change) for change in (worse, open_guard, objection)]
    assert [top.title for top in tops] == [
        "Refused at one: the average fell by 4.2 points",
        "Inconclusive at one: sort is not proven to stay within its margin of 10",
        "Inconclusive at one: an objection keeps the champion",
    ]
    assert tops[0].tally == "none of 3 rounds promoted; 1 refused, 1 not decided, 1 not run"


def test_a_refused_challenger_has_its_scores_beside_the_champions(run, page):
    table = page.text[page.text.index("Scores by task") : page.text.index("Paired differences", page.text.index("Scores by task"))]
    assert "task base dev one/sft dev two/dpo dev refused three/grpo dev" in table
    right = [sum(random.Random(f"add{i}").random() < skill for i in range(run.items)) for skill in (0.2, *SKILLS)]
    scores = [f"{100 * count / run.items:.1f}" for count in right]
    columns = ("base dev", "one/sft dev", "two/dpo dev (refused)", "three/grpo dev")
    assert "add " + " ".join(f"{column} {value}" for column, value in zip(columns, scores, strict=True)) in table


def test_facts_and_settings_are_lines_and_not_json(page):
    data = page.text[page.text.index("data/chats") :]
    assert "pairs 17 sampling correct 1,169 prompts without a pair 820" in data
    assert "gate policy non_inferiority alpha 0.05 margins default 0.1" in page.text


def test_over_fitting_to_dev_is_told_at_the_top(tmp_path):
    maker = RunFolderMaker(tmp_path / "run")
    maker.whole_run()
    maker.ledger = Ledger(maker.folder / "ledger.db")
    maker.evaluate("eval/base/unseen", "base", 0.2)
    maker.tasks = ("add", "sort")
    maker.evaluate("eval/champion/unseen", "three/grpo", 0.21)
    maker.ledger.close()
    gap = {"sentence": "over-fitted to dev: dev gain +70 points, unseen gain +13", "overfitted": True, "opened": 2}
    gap |= {"dev_gain": 0.702, "unseen_gain": 0.131}
    (maker.folder / "unseen.json").write_text(json.dumps(gap))
    html = render_report(maker.folder).html
    page = Page(html)
    assert "Promoted in 2 of 3 rounds On the unseen suite it gained 13 of the 70 points that it gained on dev" in page.text
    assert f"{gap['sentence']}; the unseen suite was opened 2 times" in page.text and '<li class="alarm">' in html
    right = {(t, s): sum(random.Random(f"{t}{i}").random() < s for i in range(maker.items)) for t in maker.tasks for s in (0.21, 0.9)}
    told = ", ".join(f"{t} {right[t, 0.21] * 2.5:.1f} (dev {right[t, 0.9] * 2.5:.1f})" for t in maker.tasks)
    assert f"unseen scores that stayed within 5 points of the base's: {told}" in page.text
    (maker.folder / "unseen.json").write_text(json.dumps({**gap, "overfitted": False, "opened": 1}))
    text = Page(render_report(maker.folder).html).text
    assert "the unseen suite was opened once" in text and "On the unseen suite" not in text and "unseen scores that stayed" not in text


def test_what_is_missing_or_torn_is_named_and_the_rest_is_told(tmp_path):
    maker = RunFolderMaker(tmp_path / "damaged")
    maker.whole_run()
    torn = maker.store.path(maker.keys["clean/chats"]) / "certificate.json"
    torn.write_text("{")
    shutil.rmtree(maker.store.path(maker.keys["eval/two/dev"]))
    report = render_report(maker.folder)
    assert any("certificate.json cannot be read" in problem for problem in report.problems)
    assert any("of step 'eval/two/dev' is not in the folder" in problem for problem in report.problems)
    text = Page(report.html).text
    assert "What could not be read" in text and "Promoted in 2 of 3 rounds" in text and LEAK not in text


def test_a_run_of_the_quickstarts_size_is_reported_in_two_seconds_and_two_megabytes(tmp_path):
    maker = RunFolderMaker(tmp_path / "large", items=180, tasks=("reverse", "sort", "maximum", "count", "upper", "sum", "add", "concise"))
    maker.whole_run()
    started = time.perf_counter()
    path = write_report(maker.folder)
    assert time.perf_counter() - started < 2.0
    assert path == maker.folder / "report.html" and path.stat().st_size < 2_000_000


def test_long_texts_are_cut_and_say_so(tmp_path):
    maker = RunFolderMaker(tmp_path / "long")
    maker.facts["text"] = "w" * 30_000
    maker.whole_run()
    path = write_report(maker.folder)
    assert path.stat().st_size < 1_000_000
    assert "more characters" in path.read_text()


def test_the_command_writes_the_page_and_lists_its_sections(run, tmp_path):
    result = CliRunner().invoke(command, [str(run.folder), "-o", str(tmp_path / "sub" / "page.html"), "--json"])
    assert result.exit_code == 0, result.output
    told = json.loads(result.output)
    assert told["path"] == str(tmp_path / "sub" / "page.html") and Path(told["path"]).is_file()
    assert told["sections"][:3] == ["verdict", "ladder", "differences"] and told["problems"] == []


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(UsageError, match="not a run folder"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def browser(tmp_path):
    binary, driver = shutil.which("chromium") or shutil.which("google-chrome"), shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("no chromium with its chromedriver on this machine: the page is not opened in a browser")
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed: the page is not opened in a browser")

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    flags = "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    flags += f" --disable-component-update --disable-sync --disable-dev-shm-usage --user-data-dir={tmp_path / 'profile'}"
    for flag in flags.split():
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield opened
    opened.quit()


def resize(browser, width, height):
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def test_a_browser_shows_the_verdict_above_the_fold_and_asks_for_nothing(browser, hostile, run, tmp_path):
    browser.get("about:blank")
    browser.get_log("performance")  # What the browser loaded for its own first page.
    for maker in (run, hostile):
        path = write_report(maker.folder, tmp_path / f"{maker.folder.name}.html")
        for width, height in ((1400, 900), (400, 800)):
            resize(browser, width, height)
            browser.get(path.as_uri())
            sentence = browser.execute_script("return document.getElementById('sentence').getBoundingClientRect().toJSON()")
            assert 0 <= sentence["top"] < height / 2 and sentence["height"] > 0
            assert sentence["bottom"] <= height or maker is hostile or width == 400
            browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
            widths = browser.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
            assert widths[0] <= widths[1] == width
            scores = "const box = document.querySelector('#ladder .scroll'); return [box.scrollWidth, box.clientWidth]"
            wanted, given = browser.execute_script(scores)
            assert wanted <= given or maker is hostile
            assert browser.execute_script("return [document.scripts.length, document.images.length]") == [0, 0]
        assert browser.get_log("browser") == []
        asked = [json.loads(row["message"])["message"] for row in browser.get_log("performance")]
        urls = {m["params"]["request"]["url"] for m in asked if m["method"] == "Network.requestWillBeSent"}
        assert path.as_uri() in urls and urls <= {path.as_uri(), "data:,"}


def test_the_page_follows_the_readers_colours_and_prints_what_is_folded(browser, run, tmp_path):
    browser.get(write_report(run.folder, tmp_path / "page.html").as_uri())

    def background():
        return browser.execute_script("return getComputedStyle(document.body).backgroundColor")

    shades = []
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
        shades.append(background())
    assert shades == ["rgb(251, 250, 247)", "rgb(21, 22, 24)"]
    folded = "return [...document.querySelectorAll('details:not([open])')].map(d => d.lastElementChild.checkVisibility())"
    assert set(browser.execute_script(folded)) == {False}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert set(browser.execute_script(folded)) == {True}
