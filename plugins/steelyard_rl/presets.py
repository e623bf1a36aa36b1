"""Published methods as values of the dials; each is what its recipe does, and a dial that is given goes before it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

__all__ = ["GIVES_WAY", "PRESETS", "Preset"]

Preset = Literal["grpo", "dr_grpo", "dapo", "gspo", "cispo", "rloo", "reinforce_pp", "ppo", "mirror_descent"]

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Shao et al., arXiv 2402.03300, equation 3. The dials' own defaults; its β of 0.04 is for the recipe to set, since it costs a
    # reference.
    "grpo": {},
    # Liu et al., arXiv 2503.20783, section 3.2.
    "dr_grpo": {"scale_by_std": False, "loss_reduction": "constant"},
    # Yu et al., arXiv 2503.14476, sections 3.1 to 3.4; answers that are too long are left to the shaper `soft_overlong`.
    "dapo": {"clip_low": 0.2, "clip_high": 0.28, "loss_reduction": "token_mean", "drop_without_signal": True, "truncated": "keep"},
    # Zheng et al., arXiv 2507.18071, equation 5 and section 5.1.
    "gspo": {"importance": "sequence", "clip_low": 3e-4, "clip_high": 4e-4, "loss_reduction": "sequence_mean", "minibatches": 4},
    # MiniMax-M1, arXiv 2506.13585, section 3.1: no lower bound, float32 head. Its upper bound is not published; 5 is ScaleRL's absolute
    # cap.
    "cispo": {
        "objective": "cispo",
        "clip_low": None,
        "clip_high": None,
        "ratio_cap": 5.0,
        "loss_reduction": "token_mean",
        "fp32_head": True,
    },
    # Ahmadian et al., arXiv 2402.14740, section 3: whole answers, leave-one-out, KL in the reward.
    "rloo": {
        "advantage": "leave_one_out",
        "scale_by_std": False,
        "importance": "trajectory",
        "loss_reduction": "sequence_mean",
        "kl_in": "reward",
        "kl_estimator": "k1",
    },
    # Hu, arXiv 2501.03262: no group baseline, KL in the tokens' rewards, advantages normalised over the batch.
    "reinforce_pp": {
        "advantage": "none",
        "scale_by_std": False,
        "whiten": True,
        "loss_reduction": "token_mean",
        "kl_in": "reward",
        "kl_estimator": "k1",
        "drop_without_signal": False,
    },
    # Tülu 3's RLVR, arXiv 2411.15124, section 6 and table 21 (8B).
    "ppo": {
        "advantage": "gae",
        "scale_by_std": False,
        "whiten": True,
        "gamma": 1.0,
        "gae_lambda": 0.95,
        "clip_low": 0.2,
        "clip_high": 0.2,
        "value_clip": 0.2,
        "value_coefficient": 0.1,
        "loss_reduction": "token_mean",
        "kl_in": "reward",
        "kl_estimator": "k1",
        "kl_coefficient": 0.05,
        "epochs": 4,
        "minibatches": 1,
        "samples_per_prompt": 1,
        "reward_scale": 10.0,
        "truncated": "penalise",
        "truncation_reward": -10.0,
        "drop_without_signal": False,
    },
    # Kimi k1.5, arXiv 2501.12599, section 2.3.2; τ is not published.
    "mirror_descent": {
        "objective": "mirror_descent",
        "advantage": "group_mean",
        "scale_by_std": False,
        "reset_optimiser": True,
        "drop_without_signal": False,
    },
}

GIVES_WAY: Mapping[str, str] = {"ratio_cap": "clip_high", "truncation_reward": "truncated"}
"""A preset's value that is not filled in where the recipe says something else of the other dial."""
