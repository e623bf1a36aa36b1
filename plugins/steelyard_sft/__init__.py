"""Supervised stages: fine-tuning on conversations, and training on plain text for small base models."""

from collections.abc import Iterator

from steelyard.hookspecs import hookimpl
from steelyard.specs import LazyRef, StageSpec


@hookimpl
def steelyard_stages() -> Iterator[StageSpec]:
    yield StageSpec(
        "sft",
        impl=LazyRef("steelyard_sft.supervised:Sft"),
        config=LazyRef("steelyard_sft.config:SftConfig"),
        data="messages",
        distributed=True,
        summary="supervised fine-tuning on the assistant's turns",
    )
    yield StageSpec(
        "pretrain",
        impl=LazyRef("steelyard_sft.supervised:Pretrain"),
        config=LazyRef("steelyard_sft.config:PretrainConfig"),
        data="text",
        distributed=True,
        summary="next-token training on plain text, or on answers after a masked prompt",
    )
