"""The torch toolkit that training stages and engines share: functions and no trainer class; README.md is its manual.

Of hooks it has one, for the stage that imports a run's base model. Nothing heavy is imported here, so that finding plugins stays free of
torch; import the module you need, for example ``from steelyard_torch.models import load_model``.
"""

from collections.abc import Iterator

from steelyard.hookspecs import hookimpl
from steelyard.specs import LazyRef, StageSpec


@hookimpl
def steelyard_stages() -> Iterator[StageSpec]:
    yield StageSpec(
        "import",
        impl=LazyRef("steelyard_torch.import_stage:Import"),
        config=LazyRef("steelyard_torch.config:ImportConfig"),
        data=None,
        hidden=True,
        summary="the base model, from a folder, a GGUF file, the hub, or with random weights",
    )
