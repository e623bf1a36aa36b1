"""Sources read what others wrote, and say where it is wrong."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from steelyard.errors import DataError
from steelyard.rows import texts_of
from steelyard_data.columns import RowReader, recognise
from steelyard_data.config import HubConfig, JsonlConfig, ParquetConfig, RowOptions, TasksConfig
from steelyard_data.procedural import split_of
from steelyard_data.sources import HubSource, JsonlSource, ParquetSource, TasksSource

USER, ASSISTANT = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}


def read(raw: dict[str, Any], **options: Any) -> dict[str, Any]:
    return RowReader(RowOptions(**options)).read(raw, "here")


def write_lines(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"messages": [USER, ASSISTANT]}, {"messages": [USER, ASSISTANT]}),
        (
            {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
            {"messages": [USER, ASSISTANT]},
        ),
        ({"instruction": "2+2?", "input": "", "output": "4"}, {"messages": [USER, ASSISTANT]}),
        (
            {"instruction": "Add", "input": "2 2", "output": "4"},
            {"messages": [{"role": "user", "content": "Add\n\n2 2"}, ASSISTANT]},
        ),
        (
            {"messages": [USER], "ground_truth": "4", "dataset": "gsm8k"},
            {"messages": [USER], "reference": "4", "verifier": "gsm8k"},
        ),
        (
            {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
            {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT | {"content": "5"}]},
        ),
        (
            {"chosen": [USER, ASSISTANT], "rejected": [USER, ASSISTANT | {"content": "5"}]},
            {"prompt": [USER], "chosen": [ASSISTANT], "rejected": [ASSISTANT | {"content": "5"}]},
        ),
        ({"prompt": "a=", "completion": "1"}, {"prompt": "a=", "completion": "1"}),
        ({"text": "hello"}, {"text": "hello"}),
    ],
    ids=["messages", "sharegpt", "alpaca", "alpaca with input", "tulu rl", "preference texts", "preference chats", "completion", "text"],
)
def test_common_public_layouts_are_recognised(raw: dict[str, Any], expected: dict[str, Any]) -> None:
    assert read(raw) == expected


def test_a_canary_stays_one_and_is_true_or_false() -> None:
    raw = {"messages": [USER], "reference": "nothing", "verifier": "sums", "canary": True}
    assert read(raw) == raw
    with pytest.raises(DataError, match="canary is 'yes', not true or false"):
        read({**raw, "canary": "yes"})


def test_an_unknown_layout_is_refused_with_its_columns() -> None:
    with pytest.raises(DataError, match=r"answer, question.*map them with `columns:`"):
        recognise({"question": "2+2?", "answer": "4"})


def test_columns_map_foreign_names_and_reach_into_structs() -> None:
    row = read({"qa": {"q": "2+2?"}, "a": "4"}, columns={"prompt": "qa.q", "completion": "a"}, layout="prompt_completion")
    assert row == {"prompt": "2+2?", "completion": "4"}


def test_a_mapping_to_an_absent_column_names_it_and_the_place() -> None:
    with pytest.raises(DataError, match=r"here: no column 'q'.*it has a"):
        read({"a": "4"}, columns={"prompt": "q"})


def test_a_system_message_is_added_only_where_there_is_none() -> None:
    own = {"role": "system", "content": "own"}
    assert read({"messages": [USER, ASSISTANT]}, system="be brief")["messages"][0] == {"role": "system", "content": "be brief"}
    assert read({"messages": [own, USER, ASSISTANT]}, system="be brief")["messages"][0] == own


def test_answers_that_are_ranked_edited_or_labelled_keep_what_they_are() -> None:
    better, said = {"role": "assistant", "content": "5"}, [ASSISTANT]
    pair = {"prompt": [USER], "chosen": said, "rejected": [better], "margin": 1.5}
    assert read({**pair, "edited": [USER, better]}) == {**pair, "edited": [better]}
    assert read({"prompt": "2+2?", "ranked": ["4", [better]]}) == {"prompt": [USER], "ranked": [said, [better]]}
    assert read({"prompt": "2+2?", "completion": "4", "label": False}) == {"prompt": [USER], "completion": said, "label": False}
    assert texts_of({"prompt": [USER], "ranked": [said, [better]]}) == ["2+2?", "4", "5"]
    assert texts_of({"prompt": [USER], "completion": said, "label": False, "edited": [better]}) == ["2+2?", "4", "5"]


@pytest.mark.parametrize(
    ("raw", "complaint"),
    [
        ({"prompt": "q", "completion": "a", "label": "good"}, "label is 'good', not true or false"),
        ({"prompt": "q", "ranked": ["a"]}, "at least two answers, best first"),
        ({"prompt": "q", "chosen": "a", "rejected": "b", "margin": "big"}, "margin is 'big', not a number"),
    ],
)
def test_labels_rankings_and_margins_of_another_kind_are_refused(raw: dict[str, Any], complaint: str) -> None:
    with pytest.raises(DataError, match=complaint):
        read(raw)


def test_a_pair_without_a_shared_prompt_is_refused() -> None:
    with pytest.raises(DataError, match="share no prompt"):
        read({"chosen": [USER, ASSISTANT], "rejected": [USER | {"content": "other"}, ASSISTANT]})


def test_a_prompt_that_ends_in_an_answer_is_refused() -> None:
    with pytest.raises(DataError, match="ends in a user turn"):
        read({"messages": [USER, ASSISTANT], "reference": "4"})


def test_jsonl_reads_several_files_in_order_and_through_gzip(tmp_path: Path) -> None:
    write_lines(tmp_path / "a1.jsonl", {"text": "one"}, "", {"text": "two"})
    with gzip.open(tmp_path / "a2.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": "three"}) + "\n")
    source = JsonlSource(JsonlConfig(path="a*.jsonl*"), tmp_path)
    assert [row["text"] for row in source.rows()] == ["one", "two", "three"]
    assert [row["text"] for row in source.rows()] == ["one", "two", "three"]


@pytest.mark.parametrize(("line", "complaint"), [("{", "not JSON"), ("[1]", "a line is a JSON object"), ('{"x": 1}', "no known layout")])
def test_a_broken_line_is_refused_with_file_and_number(tmp_path: Path, line: str, complaint: str) -> None:
    path = write_lines(tmp_path / "d.jsonl", *([{"text": "fine"}] if complaint != "no known layout" else []), line)
    number = len(path.read_text().splitlines())
    with pytest.raises(DataError, match=rf"d\.jsonl:{number}: .*{complaint}") as error:
        list(JsonlSource(JsonlConfig(path="d.jsonl"), tmp_path).rows())
    assert "max_bad_lines" in str(error.value)


def test_broken_lines_within_the_limit_are_counted_and_left_out(tmp_path: Path) -> None:
    write_lines(tmp_path / "d.jsonl", {"text": "a"}, "{", {"text": "b"}, "not json")
    source = JsonlSource(JsonlConfig(path="d.jsonl", max_bad_lines=2), tmp_path)
    assert [row["text"] for row in source.rows()] == ["a", "b"]
    assert source.bad_lines == 2


def test_text_that_is_not_utf8_is_a_broken_line(tmp_path: Path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b'{"text": "\xff"}\n')
    with pytest.raises(DataError, match=r"d\.jsonl:1: not UTF-8"):
        list(JsonlSource(JsonlConfig(path="d.jsonl"), tmp_path).rows())


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file .*nowhere\.jsonl"):
        list(JsonlSource(JsonlConfig(path="nowhere.jsonl"), tmp_path).rows())
    with pytest.raises(DataError, match="no file matches"):
        list(JsonlSource(JsonlConfig(path="*.jsonl"), tmp_path).rows())


def test_the_fingerprint_follows_the_content_of_files(tmp_path: Path) -> None:
    config = JsonlConfig(path="d.jsonl")
    write_lines(tmp_path / "d.jsonl", {"text": "a"})
    before = config.fingerprint(tmp_path)
    assert config.fingerprint(tmp_path) == before
    write_lines(tmp_path / "d.jsonl", {"text": "b"})
    assert config.fingerprint(tmp_path) != before


def test_parquet_gives_the_same_rows_as_jsonl(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [{"messages": [USER, ASSISTANT], "id": str(i)} for i in range(2500)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "d.parquet")
    write_lines(tmp_path / "d.jsonl", *rows)
    ours = list(ParquetSource(ParquetConfig(path="d.parquet"), tmp_path).rows())
    assert ours == list(JsonlSource(JsonlConfig(path="d.jsonl"), tmp_path).rows())
    assert len(ours) == 2500


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "d.parquet").write_text("nonsense")
    with pytest.raises(DataError, match=r"d\.parquet: not a readable Parquet file"):
        list(ParquetSource(ParquetConfig(path="d.parquet"), tmp_path).rows())


def test_the_hub_source_loads_a_local_folder_of_the_hubs_layout(tmp_path: Path) -> None:
    folder = tmp_path / "owner" / "set" / "data"
    folder.mkdir(parents=True)
    write_lines(folder / "train-00000.jsonl", {"messages": [USER, ASSISTANT]})
    write_lines(folder / "test-00000.jsonl", {"messages": [USER, ASSISTANT | {"content": "four"}]})
    rows = list(HubSource(HubConfig(dataset="owner/set", split="test"), tmp_path).rows())
    assert rows == [{"messages": [USER, ASSISTANT | {"content": "four"}]}]


def test_two_folders_of_one_name_are_not_taken_for_one_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    for word in ("first", "second"):
        folder = tmp_path / word / "org" / "data"
        folder.mkdir(parents=True)
        (folder / "train.jsonl").write_text(json.dumps({"text": word}) + "\n")
        (folder / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files: train.jsonl\n---\n")
        [row] = HubSource(HubConfig(dataset="org/data"), tmp_path / word).rows()
        assert row["text"] == word


def test_the_hub_source_loads_a_folder_saved_to_disk(tmp_path: Path) -> None:
    import datasets

    datasets.DatasetDict({"train": datasets.Dataset.from_list([{"text": "a"}])}).save_to_disk(str(tmp_path / "saved"))
    assert list(HubSource(HubConfig(dataset="saved"), tmp_path).rows()) == [{"text": "a"}]
    with pytest.raises(DataError, match=r"no split 'dev'; it has train"):
        list(HubSource(HubConfig(dataset="saved", split="dev"), tmp_path).rows())


def test_a_hub_dataset_that_cannot_be_had_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"cannot load dataset 'nobody/nothing', split 'train'.*local folder"):
        list(HubSource(HubConfig(dataset="nobody/nothing"), tmp_path).rows())


def test_a_folder_with_a_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "data.pkl").write_bytes(b"")
    with pytest.raises(DataError, match="is a pickle"):
        list(HubSource(HubConfig(dataset="set"), tmp_path).rows())


def test_tasks_make_rows_of_their_split_in_every_form(tmp_path: Path) -> None:
    for form in ("plain", "chat", "prompt"):
        rows = list(TasksSource(TasksConfig(rows=50, split="dev", form=form, verifier="exact"), tmp_path).rows())
        assert len(rows) == 50
        for row in rows:
            prompt = row["prompt"].removesuffix("=") if form == "plain" else row["messages"][0]["content"]
            assert split_of(prompt) == "dev"
            assert ("reference" in row and row["verifier"] == "exact") == (form == "prompt")


def test_more_distinct_items_than_there_are_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="ask for fewer"):
        list(TasksSource(TasksConfig(tasks=["sum"], rows=10_000, split="dev"), tmp_path).rows())


def test_an_unknown_task_is_refused_by_its_configuration() -> None:
    with pytest.raises(ValueError, match="unknown task 'sorting'"):
        TasksConfig(tasks=["sorting"], rows=1)
