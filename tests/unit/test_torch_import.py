"""What a recipe names as its base is what is beside the recipe, or on the hub; and nothing brings code along unasked."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from steelyard.errors import DataError, ModelError
from steelyard_data.config import HubConfig
from steelyard_data.sources import HubSource
from steelyard_torch.bases import import_base, new_model

LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 32,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    new_model(tmp_path / "model", architecture=LLAMA, characters="abc ", chat_template="compact", seed=0)
    return tmp_path / "model"


def test_a_relative_name_is_a_hub_id_whatever_the_current_folder_holds(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="could not be fetched from the hub"):
        import_base("model", tmp_path / "out")
    import_base(str(model), tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_a_dataset_of_the_current_folder_is_not_taken_for_one_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here" / "set").mkdir(parents=True)
    (tmp_path / "here" / "set" / "train.jsonl").write_text(json.dumps({"text": "a"}) + "\n")
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(DataError, match="in the current folder and not beside the recipe"):
        list(HubSource(HubConfig(dataset="set"), tmp_path / "recipes").rows())
    assert list(HubSource(HubConfig(dataset="set"), tmp_path / "here").rows()) == [{"text": "a"}]


def test_a_tokenizer_that_brings_code_is_refused_with_the_recipes_way(model: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    shutil.copytree(model, foreign)
    config = json.loads((foreign / "tokenizer_config.json").read_text())
    config |= {"tokenizer_class": "StrangeTokenizer", "auto_map": {"AutoTokenizer": ["strange.StrangeTokenizer", None]}}
    (foreign / "tokenizer_config.json").write_text(json.dumps(config))
    (foreign / "strange.py").write_text("raise SystemExit('ran')\n")
    with pytest.raises(ModelError, match=r"brings its own Python code.*base\.trust_remote_code"):
        import_base(str(foreign), tmp_path / "out")
