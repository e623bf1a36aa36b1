"""The stage `import`, which the conductor places first: the recipe's base model as an artifact of the run."""

from __future__ import annotations

from pathlib import Path

import torch

from steelyard.errors import RecipeError
from steelyard.protocols import StageContext
from steelyard.records import StageResult
from steelyard_torch.bases import import_base, new_model
from steelyard_torch.config import ImportConfig
from steelyard_torch.models import load_tokenizer, weights_sha256
from steelyard_torch.templates import template_hash

__all__ = ["Import"]

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class Import:
    """Brings a model in from a folder, a GGUF file or the hub, or makes one with random weights."""

    def __init__(self, config: ImportConfig):
        self._config = config

    def run(self, context: StageContext) -> StageResult:
        config = self._config
        home = Path(str(context.options.get("recipe_dir") or "."))
        template = config.chat_template
        if template is not None and template.endswith(".jinja"):
            template = str(home / template)
        if config.new is not None:
            new_model(
                context.output,
                architecture=config.new.architecture,
                characters=config.new.tokenizer.characters,
                extra_tokens=config.new.tokenizer.extra_tokens,
                chat_template=template,
                seed=context.seed,
            )
        elif config.model is not None:
            local = (home / Path(config.model).expanduser()).absolute()
            import_base(
                str(local) if local.exists() or local.suffix == ".gguf" else config.model,
                context.output,
                chat_template=template,
                revision=config.revision,
                dtype=_DTYPES.get(config.dtype),
                allow_remote_code=config.trust_remote_code is not None and config.trust_remote_code == config.model,
            )
        else:
            raise RecipeError("base needs `model` or `new`")
        facts = {
            "weights_sha256": weights_sha256(context.output),
            "template_hash": template_hash(load_tokenizer(context.output)),
            "source": config.model or "new",
        }
        return StageResult(context.output, {}, facts)
