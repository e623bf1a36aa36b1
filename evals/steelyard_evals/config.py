"""What a suite's task may say under ``options`` for the lm-eval harness."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from steelyard.errors import UsageError, nearest
from steelyard.recipe.suite import SuiteTask

__all__ = ["TaskOptions", "options_of"]


class TaskOptions(BaseModel):
    """Keys of a suite task's ``options``."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    source: dict[str, Any] | None = None
    """A Steelyard source (`{kind: …, …}`) whose rows are the items, in place of the task's own dataset."""
    verifier: dict[str, Any] | None = None
    """A Steelyard verifier (`{kind: …, timeout_s: …, …}`) that scores the generated text, in place of the task's metric."""
    reference: str = "reference"
    """The field of an item that the verifier compares with."""
    id_field: str | None = None
    """The field with an item's stable id; default `id` where items have it, else a hash of the item."""
    decontamination_fields: list[str] | None = None
    """The fields of an item that must not be trained on; default: the question as the task puts it."""
    chat_template: bool | None = None
    """Whether prompts go through the model's chat template; default: whether it has one."""
    system: str | None = None
    """A system message in front of every prompt."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Examples in front of every question; default: the task's own number, or none."""
    fewshot_as_multiturn: bool = True
    """Under a chat template: examples as turns of the conversation, not as one message."""
    generation: dict[str, Any] = Field(default_factory=dict)
    """Changes to the task's `generation_kwargs` (`temperature`, `max_gen_toks`, `until` …)."""
    truncate: bool = False
    """Cut the beginning off prompts that do not fit in the model's context, as lm-eval does; else such a prompt is an error."""


def options_of(task: SuiteTask) -> TaskOptions:
    """The task's options, checked. Errors: :class:`UsageError` naming the task and the option."""
    try:
        return TaskOptions.model_validate(task.options)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        near = nearest(place, TaskOptions.model_fields) if first["type"] == "extra_forbidden" else ""
        raise UsageError(f"task {task.name!r} of the suite: option {place!r}: {first['msg'].lower()}{near}") from error
