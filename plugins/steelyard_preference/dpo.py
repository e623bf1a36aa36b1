"""The stages on pairs: `dpo` with its variants, which has a reference model, and `simpo` and `orpo`, which have none."""

from __future__ import annotations

from steelyard.protocols import StageContext
from steelyard.records import StageResult
from steelyard_preference.config import DpoConfig, OrpoConfig, SimpoConfig
from steelyard_preference.losses import dpo_loss, orpo_loss, simpo_loss
from steelyard_preference.pairs import PairScores, train_on_pairs
from steelyard_torch.losses import Loss

__all__ = ["Dpo", "Orpo", "Simpo"]


class Dpo:
    """Trains on rows with ``prompt``, ``chosen`` and ``rejected`` against a reference model."""

    def __init__(self, config: DpoConfig):
        self._config = config

    def run(self, context: StageContext) -> StageResult:
        config = self._config

        def loss(scores: PairScores, pairs: int) -> Loss:
            return dpo_loss(
                scores.chosen,
                scores.rejected,
                scores.reference_chosen,
                scores.reference_rejected,
                chosen_tokens=scores.chosen_tokens,
                rejected_tokens=scores.rejected_tokens,
                loss=config.loss,
                beta=config.beta,
                pairs=pairs,
                label_smoothing=config.label_smoothing or 0.1,
                ipo_delta=config.ipo_delta or "mean",
            )

        return train_on_pairs(context, config, loss, kind="dpo")


class Simpo:
    """Trains on the same rows by the answers' mean log-probabilities."""

    def __init__(self, config: SimpoConfig):
        self._config = config

    def run(self, context: StageContext) -> StageResult:
        config = self._config

        def loss(scores: PairScores, pairs: int) -> Loss:
            return simpo_loss(
                scores.chosen,
                scores.rejected,
                chosen_tokens=scores.chosen_tokens,
                rejected_tokens=scores.rejected_tokens,
                beta=config.beta,
                gamma=config.gamma,
                pairs=pairs,
            )

        return train_on_pairs(context, config, loss, kind="simpo")


class Orpo:
    """Trains on the same rows by cross-entropy on the chosen answers and an odds ratio against the rejected ones."""

    def __init__(self, config: OrpoConfig):
        self._config = config

    def run(self, context: StageContext) -> StageResult:
        config = self._config

        def loss(scores: PairScores, pairs: int) -> Loss:
            return orpo_loss(
                scores.chosen,
                scores.rejected,
                chosen_tokens=scores.chosen_tokens,
                rejected_tokens=scores.rejected_tokens,
                odds_weight=config.odds_weight,
                pairs=pairs,
            )

        return train_on_pairs(context, config, loss, kind="orpo")
