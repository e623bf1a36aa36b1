"""Divergences between a teacher's and a student's next-token distributions, token by token, as pure functions.

Notation: P the teacher, Q the student, both softmax(logits / temperature) over a vocabulary of V; N tokens. In nats.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from steelyard.errors import UsageError

__all__ = ["Divergence", "forward_kl", "generalised_jsd", "reverse_kl", "token_divergences"]

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]


def forward_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(P ‖ Q) = Σ_v P(v) (log P(v) − log Q(v)): the teacher's distribution weighs (Hinton et al., arXiv 1503.02531).

    Args:
        student, teacher: (N, V) log-probabilities.

    Returns:
        (N,).
    """
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(dim=-1)


def reverse_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """KL(Q ‖ P) = Σ_v Q(v) (log Q(v) − log P(v)): the student's distribution weighs (Gu et al., arXiv 2306.08543).

    Arguments and result as in :func:`forward_kl`.
    """
    return F.kl_div(teacher, student, reduction="none", log_target=True).sum(dim=-1)


def generalised_jsd(student: torch.Tensor, teacher: torch.Tensor, beta: float) -> torch.Tensor:
    """β KL(P ‖ M) + (1 − β) KL(Q ‖ M) with M = β P + (1 − β) Q (GKD, Agarwal et al., arXiv 2306.13649, section 2).

    At both ends this is 0 whatever P and Q are; divided by β or by 1 − β its limits there are KL(P ‖ Q) and KL(Q ‖ P). As GKD's
    implementations do, ``beta`` 0 and 1 therefore stand for those two.

    Args:
        student, teacher: (N, V) log-probabilities.

    Returns:
        (N,).
    """
    if beta == 0:
        return forward_kl(student, teacher)
    if beta == 1:
        return reverse_kl(student, teacher)
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    return beta * forward_kl(mixture, teacher) + (1 - beta) * forward_kl(mixture, student)


def token_divergences(
    student_logits: torch.Tensor,
    teacher_logits: torch.Tensor,
    *,
    divergence: Divergence,
    beta: float = 0.5,
    temperature: float = 1.0,
    max_logits: int = 2**25,
) -> torch.Tensor:
    """The divergence at each token, with gradient to the student's logits only.

    Args:
        student_logits, teacher_logits: (N, V) and (N, V′). Models of one tokenizer may be padded to different widths; both distributions
            are then over the narrower one's V. Half precision is computed in float32.
        divergence, beta, temperature: see :class:`steelyard_distill.config.DistillConfig`.
        max_logits: logits worked on at once; more go in chunks, which the backward pass computes again.

    Returns:
        (N,) float32, or float64 for float64 logits.

    Raises:
        UsageError: an unknown divergence.
    """
    if divergence not in ("forward_kl", "reverse_kl", "jsd"):
        raise UsageError(f"unknown divergence {divergence!r} (known: forward_kl, reverse_kl, jsd)")
    width = min(student_logits.shape[-1], teacher_logits.shape[-1])

    def compare(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        student, teacher = _log_probabilities(student[:, :width], temperature), _log_probabilities(teacher[:, :width], temperature)
        if divergence == "forward_kl":
            return forward_kl(student, teacher)
        return reverse_kl(student, teacher) if divergence == "reverse_kl" else generalised_jsd(student, teacher, beta)

    teacher_logits = teacher_logits.detach()
    size = max(1, max_logits // width)
    if len(student_logits) <= size:
        return compare(student_logits, teacher_logits)
    parts = []
    for student, teacher in zip(torch.split(student_logits, size), torch.split(teacher_logits, size), strict=True):
        part = checkpoint(compare, student, teacher, use_reentrant=False) if torch.is_grad_enabled() else compare(student, teacher)
        parts.append(part)
    return torch.cat(parts)


def _log_probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return torch.log_softmax(wide / temperature, dim=-1)
