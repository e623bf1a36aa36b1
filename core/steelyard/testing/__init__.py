"""The conformance kit: test classes that hold an implementation to its contract. README.md shows how to use them.

A contract is a class without the prefix ``Test``; a plugin's test suite makes a subclass named ``Test…`` that says what to test, and
pytest runs the inherited tests. The kit itself imports no pytest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from steelyard.testing.data import MixerContract, SourceContract
    from steelyard.testing.engines import EngineContract
    from steelyard.testing.recording import RecordedIO
    from steelyard.testing.shapers import ShaperContract
    from steelyard.testing.verifiers import VerifierContract, completion_of, hostile_texts

__all__ = [
    "EngineContract",
    "MixerContract",
    "RecordedIO",
    "ShaperContract",
    "SourceContract",
    "VerifierContract",
    "completion_of",
    "hostile_texts",
]

_FILES = {
    "EngineContract": "engines",
    "MixerContract": "data",
    "RecordedIO": "recording",
    "ShaperContract": "shapers",
    "SourceContract": "data",
    "VerifierContract": "verifiers",
    "completion_of": "verifiers",
    "hostile_texts": "verifiers",
}


def __getattr__(name: str) -> Any:
    if name not in _FILES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_FILES[name]}"), name)
