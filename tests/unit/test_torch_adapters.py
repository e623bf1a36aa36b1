"""Adapters: which layers get one, that the base stays, and that what comes out is the model that was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from steelyard.errors import EngineError, Interrupted, ModelError, TrainingError, UsageError
from steelyard.records import Prompt, Sampling
from steelyard_engines.config import TransformersEngineConfig
from steelyard_engines.transformers_engine import TransformersEngine
from steelyard_torch.adapters import has_adapters, make_trainable, merged_state_dict, plain_model, save_adapter, weights_dtype
from steelyard_torch.batching import micro_batches
from steelyard_torch.config import OptimiserOptions
from steelyard_torch.encoding import EncodedRow
from steelyard_torch.flops import training_flops
from steelyard_torch.head import token_logprobs
from steelyard_torch.models import load_model, load_tokenizer
from steelyard_torch.trainee import Trainee

CPU = torch.device("cpu")
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}


def options(**adapter: Any) -> OptimiserOptions:
    return OptimiserOptions(lr=1e-2, adapter={"rank": 4, **adapter})


def adapted(bench: Any, *, shape: dict[str, Any] | None = None, **adapter: Any) -> PreTrainedModel:
    model = load_model(bench.model(**(shape or {})))
    make_trainable(model, options(**adapter), device=CPU)
    return model


def scramble(model: PreTrainedModel) -> None:
    """Give every trained weight some value: B begins at 0, and an adapter that does nothing shows nothing."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def rows() -> list[EncodedRow]:
    import numpy as np

    random = np.random.RandomState(0)
    return [EncodedRow(random.randint(0, 40, size=n).astype(np.int32), np.arange(n) > 2) for n in (12, 7, 5)]


@torch.no_grad()
def logprobs(model: PreTrainedModel) -> torch.Tensor:
    model.train(False)
    (batch,) = micro_batches(rows(), token_budget=10_000, pad_id=0)
    return token_logprobs(model, batch).logprobs


def adapted_layers(model: PreTrainedModel) -> set[str]:
    return {name.removesuffix(".lora_A") for name, _ in model.named_modules() if name.endswith(".lora_A")}


# Which layers


def test_all_linear_layers_but_the_head_get_one_and_nothing_else_is_trained(bench: Any) -> None:
    model = adapted(bench)
    assert {name.rpartition(".")[2] for name in adapted_layers(model)} == PROJECTIONS
    assert len(adapted_layers(model)) == 14
    assert all((".lora_A." in name or ".lora_B." in name) == p.requires_grad for name, p in model.named_parameters())
    assert type(model).__name__ == "LlamaForCausalLM"


def test_targets_and_exclusions_are_endings_or_patterns(bench: Any) -> None:
    assert adapted_layers(adapted(bench, targets=["q_proj", "model.layers.1.mlp.*"])) == {
        "model.layers.0.self_attn.q_proj",
        *(f"model.layers.1.{name}" for name in ("self_attn.q_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")),
    }
    left = adapted_layers(adapted(bench, exclude=["self_attn.*", "layers.0.*"]))
    assert left == {f"model.layers.1.mlp.{name}" for name in ("gate_proj", "up_proj", "down_proj")}


def test_targets_that_match_nothing_are_refused_with_the_models_own_layers(bench: Any) -> None:
    with pytest.raises(UsageError, match=r"adapter.targets 'query_key_value' matches no linear layer .*down_proj, gate_proj, .*q_proj"):
        adapted(bench, targets=["query_key_value"])
    with pytest.raises(UsageError, match=r"adapter.exclude 'qproj' matches no linear layer .*did you mean 'q_proj'"):
        adapted(bench, exclude=["qproj"])
    with pytest.raises(UsageError, match="no layer is left"):
        adapted(bench, targets=["q_proj"], exclude=["q_proj"])
    with pytest.raises(ValidationError, match="targets names no layer"):
        options(targets=[])


def test_adapters_alone_are_no_output(bench: Any) -> None:
    with pytest.raises(ValidationError, match=r"keep 'adapter' would put out no model .*; say 'both'"):
        options(keep="adapter")


def test_a_head_tied_to_the_embeddings_is_no_target(bench: Any) -> None:
    with pytest.raises(ModelError, match="'lm_head', which is tied to the embeddings"):
        adapted(bench, targets=["lm_head", "q_proj"])


# What they compute


def test_fresh_adapters_change_nothing(bench: Any) -> None:
    assert torch.equal(logprobs(adapted(bench)), logprobs(load_model(bench.model())))


@pytest.mark.parametrize("adapter", [{}, {"use_rslora": True}, {"use_dora": True}, {"targets": ["lm_head", "q_proj"]}])
def test_merged_weights_score_as_the_adapted_model_does(bench: Any, adapter: dict[str, Any]) -> None:
    shape = {"tie_word_embeddings": "targets" not in adapter}
    model = adapted(bench, shape=shape, **adapter)
    scramble(model)
    mine = logprobs(model)
    assert float((mine - logprobs(load_model(bench.model(**shape)))).abs().max()) > 0.1, "the adapters must matter"
    plain = plain_model(model, merged_state_dict(model))
    assert not has_adapters(plain) and has_adapters(model)
    torch.testing.assert_close(logprobs(plain), mine, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(logprobs(model), mine, atol=0, rtol=0)


def test_layers_that_hold_their_weights_transposed_merge_as_well() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=41, n_embd=16, n_layer=1, n_head=2, n_positions=32, initializer_range=0.2)).eval()
    for use_dora in (False, True):
        trained = plain_model(model, model.state_dict())
        make_trainable(trained, options(use_dora=use_dora), device=CPU)
        assert "transformer.h.0.attn.c_attn" in adapted_layers(trained)
        scramble(trained)
        torch.testing.assert_close(logprobs(plain_model(trained, merged_state_dict(trained))), logprobs(trained), atol=1e-5, rtol=0)


def test_merged_weights_are_the_base_plus_the_scaled_product_bit_for_bit(bench: Any) -> None:
    model, base = adapted(bench, alpha=6), bench.weights(bench.model())
    scramble(model)
    merged, own = merged_state_dict(model), model.state_dict()
    assert set(merged) == {*base, "lm_head.weight"}
    name = "model.layers.1.mlp.up_proj"
    down, up = own[f"{name}.lora_A.default.weight"], own[f"{name}.lora_B.default.weight"]
    assert torch.equal(merged[f"{name}.weight"], base[f"{name}.weight"] + up @ down * 1.5)
    for other in ("model.norm.weight", "model.embed_tokens.weight"):
        assert torch.equal(merged[other], base[other])


def test_the_model_below_the_adapters_is_the_initial_one_in_the_same_memory(bench: Any) -> None:
    model = load_model(bench.model())
    initial = make_trainable(model, options(), device=CPU)
    assert initial is not None
    scramble(model)
    assert torch.equal(logprobs(initial), logprobs(load_model(bench.model())))
    assert not torch.equal(logprobs(model), logprobs(initial))
    mine = {parameter.data_ptr() for parameter in model.parameters()}
    assert all(parameter.data_ptr() in mine and not parameter.requires_grad for parameter in initial.parameters())


def test_a_base_in_bfloat16_keeps_its_adapters_in_float32(bench: Any, tmp_path: Path) -> None:
    from steelyard_torch.models import save_model

    save_model(load_model(bench.model()), load_tokenizer(bench.model()), tmp_path / "half", dtype=torch.bfloat16)
    kinds = {
        (precision, base): weights_dtype(tmp_path / "half", OptimiserOptions(lr=1, precision=precision, adapter={"base_dtype": base}))
        for precision in ("fp32", "bf16")
        for base in ("auto", "float32")
    }
    assert kinds.pop(("bf16", "auto")) == torch.bfloat16
    assert set(kinds.values()) == {torch.float32}
    assert weights_dtype(bench.model(), OptimiserOptions(lr=1, precision="bf16", adapter={})) == torch.float32
    model = load_model(tmp_path / "half", dtype=torch.bfloat16)
    make_trainable(model, options(use_dora=True), device=CPU)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    merged = merged_state_dict(model)
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}


# What comes out


def test_peft_loads_the_kept_adapter_onto_the_base(bench: Any, tmp_path: Path) -> None:
    from peft import PeftModel

    for use_dora in (False, True):
        model = adapted(bench, use_dora=use_dora, exclude=["down_proj"])
        scramble(model)
        folder = tmp_path / f"adapter-{use_dora}"
        save_adapter(model, folder)
        assert {path.name for path in folder.iterdir()} >= {"adapter_model.safetensors", "adapter_config.json"}
        again = PeftModel.from_pretrained(load_model(bench.model()), str(folder))
        torch.testing.assert_close(logprobs(again.get_base_model()), logprobs(model), atol=1e-6, rtol=0)
        names = json.loads((folder / "adapter_config.json").read_text())["target_modules"]
        assert names == sorted(names)


def test_the_new_head_of_a_reward_model_is_trained_whole_and_kept_with_the_adapter(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=41, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4, num_labels=1, pad_token_id=0
    )
    base = LlamaForSequenceClassification(config).eval()
    model = plain_model(base, {name: tensor.clone() for name, tensor in base.state_dict().items()})
    make_trainable(model, options(), device=CPU)
    assert "score" not in adapted_layers(model) and model.score.weight.requires_grad
    scramble(model)
    ids = torch.tensor([[3, 5, 7, 11]])
    with torch.no_grad():
        mine = model.eval()(input_ids=ids).logits
        save_adapter(model, tmp_path / "adapter")
        again = PeftModel.from_pretrained(base, str(tmp_path / "adapter"))
        torch.testing.assert_close(plain_model(model, merged_state_dict(model))(input_ids=ids).logits, mine, atol=1e-5, rtol=0)
        torch.testing.assert_close(again(input_ids=ids).logits, mine, atol=1e-6, rtol=0)


# In the stages


class StageBench:
    """Runs any stage by its name, on data that suits it."""

    def __init__(self, bench: Any):
        self.bench = bench
        words = ["abc", "de", "fghi", "jk", "lmn", "op"]
        self.data = bench.data(
            {
                "messages": bench.chat(word, word[::-1]) if not prompts else bench.chat(word, "")[:1],
                "text": f"{word} = {word[::-1]}",
                "prompt": bench.chat(word, "")[:1],
                "chosen": bench.chat("", word[::-1])[1:],
                "rejected": bench.chat("", "no")[1:],
                "verifier": "length",
                "reference": "a",
            }
            for word in words
            for prompts in (False,)
        )
        self.prompts = bench.data(
            ({"id": word, "messages": bench.chat(word, "")[:1], "verifier": "some", "reference": "a"} for word in words), "prompts"
        )

    def run(
        self, kind: str, *, name: str = "step", io: Any = None, model: Path | None = None, reference: Path | None = None, **keys: Any
    ) -> Any:
        registry, bench = self.bench.registry, self.bench
        spec = registry.get("stages", kind)
        config = registry.configure(spec, {"lr": 1e-2, "adapter": {"rank": 4, "keep": "both"}, **SHAPES.get(kind, {}), **keys})
        init = model or bench.model()
        context = bench.context(
            config,
            model=init,
            data=self.prompts if kind == "grpo" else self.data,
            name=name,
            io=io,
            reference=reference or (bench.model(seed=1) if kind == "distill" else init),
            verifiers=bench.verifiers({"some": ("regex", {"pattern": "[a-m]"}, None)}) if kind == "grpo" else None,
        )
        return registry.load(spec)(config).run(context), context


SHAPES: dict[str, dict[str, Any]] = {
    "sft": {"batch_size": 6, "max_steps": 8},
    "pretrain": {"batch_size": 6, "max_steps": 8},
    "dpo": {"batch_size": 6, "max_steps": 8},
    "kto": {"batch_size": 12, "max_steps": 8},
    "orpo": {"batch_size": 6, "max_steps": 8},
    "distill": {"batch_size": 6, "max_steps": 8},
    "grpo": {"steps": 2, "prompts_per_step": 4, "samples_per_prompt": 4, "max_new_tokens": 3, "minibatches": 2, "kl_coefficient": 0.1},
}


@pytest.mark.parametrize("kind", list(SHAPES))
def test_every_stage_trains_adapters_and_puts_out_a_plain_model(bench: Any, kind: str) -> None:
    result, context = StageBench(bench).run(kind)
    base, merged = bench.weights(bench.model()), bench.weights(result.model)
    kept = load_file(result.model / "adapter" / "adapter_model.safetensors")
    assert merged.keys() == base.keys(), "a plain folder, under the base's names"
    moved = 0
    for name, tensor in merged.items():
        layer = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{layer}.lora_A.weight" not in kept:
            assert torch.equal(tensor, base[name])
            continue
        # alpha / rank = 8; the base below must be what it was, bit for bit, for this sum to be what was saved.
        delta = kept[f"{layer}.lora_B.weight"] @ kept[f"{layer}.lora_A.weight"] * 8.0
        assert torch.equal(tensor, base[name] + delta)
        moved += bool(delta.abs().max() > 0)
    assert moved == 14
    assert result.facts["adapter"]["layers"] == 14
    assert result.facts["trained_parameters"] == sum(tensor.numel() for tensor in kept.values())
    if kind != "grpo":
        losses = context.io.series("train/loss")
        assert losses[-1] < losses[0]


def test_a_reward_model_is_trained_through_adapters_and_its_new_head(bench: Any) -> None:
    from transformers import AutoModelForSequenceClassification

    result, context = StageBench(bench).run("reward_model", batch_size=6, max_steps=12, heldout=0.0)
    losses = context.io.series("train/loss")
    assert losses[-1] < losses[0]
    base, merged = bench.weights(bench.model()), bench.weights(result.model)
    name = "model.layers.0.self_attn.q_proj"
    kept = load_file(result.model / "adapter" / "adapter_model.safetensors")
    delta = kept[f"base_model.model.{name}.lora_B.weight"] @ kept[f"base_model.model.{name}.lora_A.weight"] * 8.0
    assert torch.equal(merged[f"{name}.weight"], base[f"{name}.weight"] + delta)
    assert torch.equal(merged["model.norm.weight"], base["model.norm.weight"])
    assert torch.equal(merged["score.weight"], kept["base_model.model.score.weight"])
    assert AutoModelForSequenceClassification.from_pretrained(result.model).num_labels == 1


def test_nothing_but_the_model_is_kept_unless_asked_for(bench: Any) -> None:
    result, _ = StageBench(bench).run("sft", adapter={"rank": 2})
    assert not (result.model / "adapter").exists()


@pytest.mark.parametrize("use_dora", [False, True])
def test_a_stopped_step_resumes_to_the_very_same_weights(bench: Any, use_dora: bool) -> None:
    stages = StageBench(bench)
    adapter = {"rank": 4, "dropout": 0.3, "use_dora": use_dora}
    whole, _ = stages.run("sft", name="whole", adapter=adapter)
    with pytest.raises(Interrupted):
        stages.run("sft", name="stopped", adapter=adapter, io=bench.io(stop_after=3))
    (kept,) = (bench.root / "stopped" / "checkpoints").rglob("model.safetensors")
    assert all(".lora_" in name for name in load_file(kept)), "a checkpoint holds what is trained"
    resumed, context = stages.run("sft", name="stopped", adapter=adapter)
    assert any("resumed" in line for line in context.io.lines)
    mine, theirs = bench.weights(resumed.model), bench.weights(whole.model)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_adapters_that_run_away_stop_the_stage_and_the_last_finite_checkpoint_stays(bench: Any) -> None:
    io = bench.io()
    with pytest.raises(TrainingError, match=r"is nan|is inf|not finite"):
        StageBench(bench).run("sft", lr=1e25, schedule="constant", checkpoint_every=1, max_non_finite=2, io=io)
    kept = sorted((bench.root / "step" / "checkpoints").rglob("model.safetensors"))
    assert kept and len(io.metrics) < SHAPES["sft"]["max_steps"]
    assert all(bool(torch.isfinite(tensor).all()) for file in kept for tensor in load_file(file).values())


def test_dropout_that_a_stage_switches_off_is_refused(bench: Any) -> None:
    with pytest.raises(UsageError, match=r"adapter.dropout is 0.1, but this stage compares"):
        StageBench(bench).run("dpo", adapter={"dropout": 0.1})


def test_the_reference_below_the_adapters_gives_what_a_loaded_one_gives(bench: Any) -> None:
    """DPO's first loss is log 2 against the initial model; on, it must go as with a reference loaded from a copy of that folder."""
    import shutil

    stages = StageBench(bench)
    copied = Path(shutil.copytree(bench.model(), bench.root / "copy"))
    below, mine = stages.run("dpo", name="below")
    shutil.rmtree(bench.root / "cache")
    loaded, theirs = stages.run("dpo", name="loaded", reference=copied)
    assert mine.io.series("train/loss") == theirs.io.series("train/loss")
    assert mine.io.series("train/loss")[0] == pytest.approx(0.6931472)
    one, other = bench.weights(below.model), bench.weights(loaded.model)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_reference_is_loaded_when_it_is_another_model(bench: Any) -> None:
    config = options()
    context = bench.context(config, model=bench.model(), data=None, reference=bench.model(seed=1))
    other = Trainee(context, config, dropout=False).load_reference()
    assert torch.equal(logprobs(other), logprobs(load_model(bench.model(seed=1))))
    context = bench.context(config, model=bench.model(), data=None, reference=bench.model())
    trainee = Trainee(context, config, dropout=False)
    assert {p.data_ptr() for p in trainee.load_reference().parameters()} <= {p.data_ptr() for p in trainee.model.parameters()}


# Engines


def test_engines_see_the_adapters_after_an_update(bench: Any) -> None:
    """The one that shares the module, and one of its own, which gets merged weights under the base's names."""
    config = options()
    trainee = Trainee(bench.context(config, model=bench.model(), data=None), config, dropout=False)
    sharing = TransformersEngine(TransformersEngineConfig(device="cpu"), bench.model(), module=trainee.model)
    apart = TransformersEngine(TransformersEngineConfig(device="cpu"), bench.model())
    prompt, sampling = [Prompt("p", token_ids=(3, 5, 7))], Sampling(temperature=1.0, max_new_tokens=6, n=4, seed=1, logprobs=True)
    before = apart.generate(prompt, sampling)[0]
    scramble(trainee.model)
    for engine in (sharing, apart):
        engine.load_weights(trainee.weights(), version=1)
        completions = engine.generate(prompt, sampling)[0]
        assert [c.token_ids for c in completions] != [c.token_ids for c in before]
        for completion in completions:
            ids = torch.tensor([[3, 5, 7, *completion.token_ids]])
            with torch.no_grad():
                theirs = torch.log_softmax(trainee.model(input_ids=ids).logits[0, 2:-1], dim=-1)
            scored = theirs[torch.arange(len(completion.token_ids)), torch.tensor(completion.token_ids)]
            torch.testing.assert_close(torch.tensor(completion.logprobs), scored, atol=1e-5, rtol=0)


def test_an_engine_that_shares_a_module_refuses_the_weights_of_another(bench: Any) -> None:
    model, other = adapted(bench), adapted(bench)
    engine = TransformersEngine(TransformersEngineConfig(device="cpu"), bench.model(), module=model)
    with pytest.raises(EngineError, match="shares its weights"):
        engine.load_weights(merged_state_dict(other), version=1)


# Four bits


def test_four_bits_without_bitsandbytes_are_refused(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match=r"needs bitsandbytes, which is not installed; pip install 'steelyard\[qlora\]'"):
        adapted(bench, quantise="nf4")


def test_a_base_in_four_bits_is_trained_through_and_comes_out_dequantised(bench: Any) -> None:
    pytest.importorskip("bitsandbytes")
    shape = {"hidden_size": 64, "intermediate_size": 128}
    model = adapted(bench, shape=shape, quantise="nf4")
    packed = [p for p in model.parameters() if p.dtype == torch.uint8]
    assert len(packed) == 14
    whole = training_flops(load_model(bench.model(**shape)), tokens=9, trained_tokens=3, mean_length=9, backward=False)
    own = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert training_flops(model, tokens=9, trained_tokens=3, mean_length=9, backward=False) == pytest.approx(whole + 2 * 9 * own)
    base = bench.weights(bench.model(**shape))
    error = merged_state_dict(model)["model.layers.0.mlp.up_proj.weight"] - base["model.layers.0.mlp.up_proj.weight"]
    # NormalFloat's widest gap is 0.28 of a block's largest number, and what is rounded is at most half a gap away (QLoRA, appendix E).
    assert 0 < float(error.abs().max()) <= 0.16 * float(base["model.layers.0.mlp.up_proj.weight"].abs().max())
    scramble(model)
    torch.testing.assert_close(logprobs(plain_model(model, merged_state_dict(model))), logprobs(model), atol=1e-4, rtol=0)
    stages = StageBench(bench)
    result, context = stages.run("sft", model=bench.model(**shape), adapter={"rank": 4, "quantise": "nf4"})
    losses = context.io.series("train/loss")
    assert losses[-1] < losses[0]
    assert {tensor.dtype for tensor in bench.weights(result.model).values()} == {torch.float32}
    assert result.facts["parameters"] > sum(tensor.numel() for tensor in base.values())
    assert "quantization_config" not in json.loads((result.model / "config.json").read_text())
    for name, quantise in (("whole", None), ("packed", "nf4")):
        _, mine = stages.run("dpo", name=name, model=bench.model(**shape), adapter={"rank": 4, "quantise": quantise})
        # The reference is the model in four bits, too, and kept log-probabilities of the other are not taken for its own.
        assert mine.io.series("train/loss")[0] == pytest.approx(0.6931472, abs=1e-6)
