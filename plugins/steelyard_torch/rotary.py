"""Rotary position embeddings that change with the longest row of a forward pass, and what that means for micro-batches.

``longrope`` (Phi 3, arXiv 2402.13753) turns every row by its long factors as soon as one row is longer than the model was first trained on,
and ``dynamic`` (NTK) by a base that grows with the longest row of this pass or an earlier one. What a row is scored by would then depend on
which rows happen to stand beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedModel

from steelyard.errors import DataError

__all__ = ["check_lengths", "rotary_boundary"]


def rotary_boundary(model: PreTrainedModel) -> int | None:
    """Tokens above which a row must not stand beside shorter ones; None where positions are turned alike whatever the length."""
    found = [_boundary(model, kind, facts) for kind, facts in _kinds(model)]
    return min((boundary for boundary in found if boundary is not None), default=None)


def check_lengths(model: PreTrainedModel, lengths: Sequence[int]) -> None:
    """Refuse rows that no micro-batch can hold as they would be alone: longer than ``dynamic`` positions leave as they are.

    Raises:
        DataError: with the longest row and the length to keep to.
    """
    boundary = rotary_boundary(model)
    if boundary is None or max(lengths, default=0) <= boundary or not any("dynamic" in kind for kind, _ in _kinds(model)):
        return
    raise DataError(
        f"a row has {max(lengths)} tokens, but this model's positions (rope_type 'dynamic') change above {boundary} with the longest row "
        f"met so far, so that its scores would hang on the order of rows; keep rows to {boundary} tokens (`max_length`), or give the model "
        "a rope_type that is fixed, such as 'yarn'"
    )


def _kinds(model: PreTrainedModel) -> list[tuple[str, dict[str, object]]]:
    rope = getattr(model.config.get_text_config(), "rope_parameters", None) or {}
    # Some configurations have one for each type of layer.
    every = [rope] if "rope_type" in rope else [one for one in rope.values() if isinstance(one, dict)]
    return [(str(one.get("rope_type", "default")), one) for one in every]


def _boundary(model: PreTrainedModel, kind: str, facts: dict[str, object]) -> int | None:
    config = model.config.get_text_config()
    if kind == "longrope":
        boundary = facts.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    else:
        boundary = config.max_position_embeddings if "dynamic" in kind else None
    return boundary if isinstance(boundary, int) else None
