"""What every model of a recipe shares: unknown keys refused, errors in plain words, names that are safe as file names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from steelyard.recipe.complaints import Complaints, complaints_in, plain_words, shown

__all__ = ["Name", "Section"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*")


def _is_name(value: str) -> str:
    if not _NAME.fullmatch(value):
        raise ValueError("a name is made of letters, digits, '_' and '-'")
    return value


Name = Annotated[str, AfterValidator(_is_name)]
"""A name that is also part of step names and of folders."""


class Section(BaseModel):
    """Part of a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)

    what: ClassVar[str] = "the recipe"
    """What a user would call it in a sentence."""

    @model_validator(mode="wrap")
    @classmethod
    def _validate(cls, data: Any, handler: ModelWrapValidatorHandler[Self], info: ValidationInfo) -> Self:
        if isinstance(data, cls):
            return data
        if not isinstance(data, Mapping):
            complaints = Complaints()
            complaints.add((), f"{cls.what} is {shown(data)}, not a mapping of keys to values")
            raise complaints.to_error()
        data = cls.completed(data, info)
        complaints = plain_words(cls, data, cls.what)
        try:
            made = handler(data)
        except ValidationError as error:
            complaints.take(complaints_in(error, cls, data, cls.what))
        if complaints:
            raise complaints.to_error()
        return made

    @classmethod
    def completed(cls, data: Mapping[str, Any], info: ValidationInfo) -> Mapping[str, Any]:
        """The keys with defaults put in that depend on other keys."""
        return data
