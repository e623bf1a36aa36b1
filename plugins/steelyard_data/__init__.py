"""Sources and mixers: where training data comes from, and how a dataset is made of it."""

from collections.abc import Iterator

from steelyard.hookspecs import hookimpl
from steelyard.specs import LazyRef, MixerSpec, SourceSpec


@hookimpl
def steelyard_sources() -> Iterator[SourceSpec]:
    yield SourceSpec(
        "jsonl",
        impl=LazyRef("steelyard_data.sources:JsonlSource"),
        config=LazyRef("steelyard_data.config:JsonlConfig"),
        summary="rows of JSON-lines files",
    )
    yield SourceSpec(
        "parquet",
        impl=LazyRef("steelyard_data.sources:ParquetSource"),
        config=LazyRef("steelyard_data.config:ParquetConfig"),
        summary="rows of Parquet files",
    )
    yield SourceSpec(
        "hub",
        impl=LazyRef("steelyard_data.sources:HubSource"),
        config=LazyRef("steelyard_data.config:HubConfig"),
        summary="a dataset of the Hugging Face hub, or a local folder of the same layout",
    )
    yield SourceSpec(
        "tasks",
        impl=LazyRef("steelyard_data.sources:TasksSource"),
        config=LazyRef("steelyard_data.config:TasksConfig"),
        summary="procedurally generated questions with one right answer each",
    )


@hookimpl
def steelyard_mixers() -> Iterator[MixerSpec]:
    yield MixerSpec(
        "mix",
        impl=LazyRef("steelyard_data.mix:Mix"),
        config=LazyRef("steelyard_data.config:MixConfig"),
        summary="rows of several sources in exact proportions, shuffled",
    )
    yield MixerSpec(
        "preference_pairs",
        impl=LazyRef("steelyard_data.pairs:PreferencePairs"),
        config=LazyRef("steelyard_data.config:PreferencePairsConfig"),
        samples_model=True,
        needs_verifiers=True,
        produces="preference",
        summary="samples a model, verifies its answers, pairs better with worse",
    )
