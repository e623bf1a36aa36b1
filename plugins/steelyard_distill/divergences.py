"""Divergences between a teacher's and a student's next-token distributions, token by token, as pure functions.

Notation: P the teacher, Q the student, both softmax(logits / temperature) over a vocabulary of V; N tokens. In nats.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
import torch.nn.functional as F

from steelyard.errors import UsageError

__all__ = [
    "Divergence",
    "Tail",
    "TopK",
    "divergence_and_slope",
    "divergence_between",
    "forward_kl",
    "generalised_jsd",
    "log_probabilities",
    "reverse_kl",
    "sampled_reverse_kl",
    "top_k_divergences",
    "top_k_of",
]

Divergence = Literal["forward_kl", "reverse_kl", "jsd"]
Tail = Literal["bucket", "renormalise", "ignore"]

_LEAST = -1e4
"""The logarithm that a probability of 0 counts as, so that 0 · log 0 is 0 and a divergence stays finite."""


@dataclass(frozen=True, slots=True, eq=False)
class TopK:
    """What is known of a teacher's distribution at N tokens."""

    ids: torch.Tensor
    """(N, k) int64, the k most probable tokens, the most probable first."""
    logprobs: torch.Tensor
    """(N, k) float, theirs."""
    tail: torch.Tensor
    """(N,) float, logarithm of the probability of all others; of no account where k is V."""
    target: torch.Tensor
    """(N,) float, log-probability of the token that stands there."""
    width: int | None = field(default=None, kw_only=True)
    """V of the teacher, where it may be below the student's; what the student gives to tokens beyond it is left out."""

    @property
    def columns(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What has N entries, in the order of the fields."""
        return self.ids, self.logprobs, self.tail, self.target

    def __len__(self) -> int:
        return len(self.ids)


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


def divergence_between(student: torch.Tensor, teacher: torch.Tensor, *, divergence: Divergence, beta: float = 0.5) -> torch.Tensor:
    """The divergence of that name between (N, V) log-probabilities, (N,).

    Raises:
        UsageError: an unknown divergence.
    """
    if divergence == "forward_kl":
        return forward_kl(student, teacher)
    if divergence == "reverse_kl":
        return reverse_kl(student, teacher)
    if divergence == "jsd":
        return generalised_jsd(student, teacher, beta)
    raise UsageError(f"unknown divergence {divergence!r} (known: forward_kl, reverse_kl, jsd)")


@torch.no_grad()
def divergence_and_slope(
    student: torch.Tensor, teacher: torch.Tensor, *, divergence: Divergence, beta: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    """:func:`divergence_between` and its derivatives by what the student's log-probabilities are the log-softmax of.

    Those are Q − P of the forward KL; Q (log Q − log P − D) of the reverse; (1 − β) Q (log Q − log M − KL(Q ‖ M)) of the generalised
    Jensen–Shannon divergence. In fewer passes over the vocabulary than by automatic differentiation.

    Args:
        student, teacher: (N, V) log-probabilities.

    Returns:
        (N,) and (N, V).
    """
    q = student.exp()
    if divergence == "forward_kl" or (divergence == "jsd" and beta == 0):
        p = teacher.exp()
        return _expected(p, teacher, student), q.sub_(p)
    if divergence == "reverse_kl" or (divergence == "jsd" and beta == 1):
        value = _expected(q, student, teacher)
        return value, (student - teacher).sub_(value[:, None]).mul_(q)
    if divergence != "jsd":
        return divergence_between(student, teacher, divergence=divergence, beta=beta), q
    mixture = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    mine = _expected(q, student, mixture)
    value = beta * _expected(teacher.exp(), teacher, mixture) + (1 - beta) * mine
    return value, (student - mixture).sub_(mine[:, None]).mul_(q).mul_(1 - beta)


def _expected(weights: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Σ_v w (a − b), (N,); terms of weight 0 are 0."""
    found: torch.Tensor = torch.linalg.vecdot(weights, torch.nan_to_num_(one - other, nan=0.0, posinf=-_LEAST, neginf=_LEAST))
    return found


def top_k_of(logits: torch.Tensor, targets: torch.Tensor, k: int, *, temperature: float = 1.0) -> TopK:
    """The ``k`` most probable tokens of softmax(logits / temperature), with what is left and the target's own.

    Args:
        logits: (N, V), k ≤ V.
        targets: (N,) token ids.
    """
    logprobs = log_probabilities(logits, temperature)
    best, ids = torch.topk(logprobs, k, dim=-1)
    return TopK(ids, best, _log_rest(logprobs, ids), logprobs.gather(1, targets[:, None])[:, 0])


def top_k_divergences(
    student_logits: torch.Tensor,
    teacher: TopK,
    *,
    divergence: Divergence,
    beta: float = 0.5,
    temperature: float = 1.0,
    tail: Tail = "bucket",
) -> torch.Tensor:
    """The divergence at each token where of the teacher only the most probable tokens S are known, with gradient to the logits.

    ``bucket``
        Between the two distributions over S and one class more, the rest: the coarsest truth. A divergence of such a partition is never
        above the whole one (data processing inequality), and is it where S is the vocabulary.
    ``renormalise``
        Between P(· | S) and Q(· | S). How much the student gives to other tokens does not count.
    ``ignore``
        The whole divergence's sum without the terms outside S, both as they are. With ``forward_kl`` its gradient to the student's
        log-probabilities is the whole one's within S; its value may be negative.

    Args:
        student_logits: (N, V); half precision is computed in float32.
        teacher: of N tokens, at the same ``temperature``; its ids are below V.
        divergence, beta, temperature, tail: see :class:`steelyard_distill.config.DistillConfig`.

    Returns:
        (N,).

    Raises:
        UsageError: an unknown divergence or tail.
    """
    whole = log_probabilities(student_logits[:, : teacher.width], temperature)
    student, theirs = whole.gather(1, teacher.ids), teacher.logprobs.to(whole.dtype).clamp(min=_LEAST)
    if tail == "bucket":
        if teacher.ids.shape[1] < whole.shape[1]:
            student = torch.cat([student, _log_rest(whole, teacher.ids)[:, None]], dim=1)
            theirs = torch.cat([theirs, teacher.tail.to(whole.dtype).clamp(min=_LEAST)[:, None]], dim=1)
    elif tail == "renormalise":
        student, theirs = torch.log_softmax(student, dim=-1), torch.log_softmax(theirs, dim=-1)
    elif tail != "ignore":
        raise UsageError(f"unknown tail {tail!r} (known: bucket, renormalise, ignore)")
    return divergence_between(student, theirs, divergence=divergence, beta=beta)


def sampled_reverse_kl(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Estimate of KL(Q ‖ P) from tokens that Q sampled: its value is log Q(y) − log P(y), its gradient that times ∇ log Q(y).

    Over samples of Q both are unbiased for each token's reverse KL, since E[∇ log Q(y)] = 0: policy gradient with the advantage
    log P(y) − log Q(y) held fixed (Lu and Thinking Machines Lab, "On-policy distillation", 2025; Qwen3, arXiv 2505.09388, section 4.5,
    for on-policy distillation). Later tokens' divergences do not count towards earlier ones.

    Args:
        student, teacher: (N,) log-probabilities of the sampled tokens.

    Returns:
        (N,).
    """
    gap = (student - teacher).detach()
    return gap + gap * (student - student.detach())


def log_probabilities(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """log softmax(logits / temperature), in float32 at least."""
    wide = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return torch.log_softmax(wide if temperature == 1 else wide / temperature, dim=-1)


def _log_rest(logprobs: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """(N,) logarithm of what the tokens ``ids`` leave; summed over the others, since 1 − Σ is noise where they leave little."""
    if ids.shape[1] == logprobs.shape[1]:
        return logprobs.new_full((len(logprobs),), -math.inf)
    return logprobs.scatter(1, ids, -math.inf).logsumexp(dim=-1)
