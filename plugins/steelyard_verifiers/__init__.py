"""Verifiers: what checks a completion against a reference. Hooks only; README.md describes each."""

from collections.abc import Iterator

from steelyard.hookspecs import hookimpl
from steelyard.specs import LazyRef, VerifierSpec


@hookimpl
def steelyard_verifiers() -> Iterator[VerifierSpec]:
    yield VerifierSpec(
        "exact",
        impl=LazyRef("steelyard_verifiers.exact:Exact"),
        config=LazyRef("steelyard_verifiers.config:ExactConfig"),
        isolation="inline",
        summary="the answer is the reference, character by character, after declared clean-up",
    )
    yield VerifierSpec(
        "number",
        impl=LazyRef("steelyard_verifiers.number:Number"),
        config=LazyRef("steelyard_verifiers.config:NumberConfig"),
        isolation="inline",
        summary="the final number equals the reference, as exact fractions",
    )
