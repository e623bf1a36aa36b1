"""Metrics of the procedural task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def process_results(doc: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """``exact``: the answer and nothing else. ``concise``: one word of at most eight characters and nothing around it, right or
    wrong; no answer is longer, and a model that rambles on, be it in blanks, is not concise."""
    text = results[0]
    return {"exact": float(text == doc["reference"]), "concise": float(text.split() == [text] and len(text) <= 8)}
