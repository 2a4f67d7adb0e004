"""A teacher of which only the most likely outputs are known, and its student in the same bins.

Legend for shapes: N rows (samples or tokens), C outputs (classes or vocabulary), K outputs that are known one by
one, B = K + 1 bins with all others in one (B = K = C if none is left).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from codistill_ext.rows import LogitRows, Rebuild, blocks, scaled

_LEAST_MASS = torch.finfo(torch.float32).eps  # of the bin of the rest: below it 1 - sum is rounding
LEAST_LOGP = torch.finfo(torch.float16).min  # as far down as a 16-bit one goes; in place of log 0


@dataclass(frozen=True)
class TopK:
    """A teacher's most likely outputs, one row a sample or token; the rest of its mass is one bin.

    Attributes:
        logp_NK: float32, log-probabilities of softmax(logits / temperature).
        index_NK: int64, which outputs they are of; no output twice in a row.
    """

    logp_NK: Tensor
    index_NK: Tensor


def topk_of(logits: LogitRows, k: int, temperature: float) -> TopK:
    """The k most likely outputs of each row, or all where there are fewer, without a gradient."""
    rows, outputs = logits.shape
    k = min(k, outputs)
    logp_NK = torch.empty(rows, k, dtype=torch.float32, device=logits.device)
    index_NK = torch.empty(rows, k, dtype=torch.int64, device=logits.device)
    for block in blocks(logits):
        logits_nC = logits.block(block).detach()
        # A temperature does not change the order, so the search needs no copy.
        index_NK[block] = logits_nC.topk(k, dim=1, sorted=False).indices
        logp_nC = F.log_softmax(scaled(logits_nC, temperature), dim=1)
        logp_NK[block] = logp_nC.gather(1, index_NK[block])
    return TopK(logp_NK, index_NK)


def binned(student: LogitRows, teachers: Sequence[TopK], temperature: float) -> list[tuple[Tensor, Tensor]]:
    """Log-probabilities of the student and each teacher in the teacher's bins, all of shape (N, B).

    Raises:
        ValueError: a teacher is of other rows, or of more outputs than the student has.
    """
    rows, outputs = student.shape
    for teacher in teachers:
        index_NK = teacher.index_NK
        if teacher.logp_NK.shape != index_NK.shape or len(index_NK) != rows or index_NK.size(1) > outputs:
            raise ValueError(
                f"a top k needs log-probabilities and indices of shape ({rows}, at most {outputs}), not "
                f"{tuple(teacher.logp_NK.shape)} and {tuple(index_NK.shape)}"
            )
    work = _Work(student.rebuild, len(student.tensors), temperature)
    bins = _BinLogits.apply(work, *student.tensors, *(teacher.index_NK for teacher in teachers))
    # 0 log 0 is 0, and not NaN: an output that the student excludes has a logit of -inf.
    return [
        (F.log_softmax(bins_NB, dim=1).clamp(min=LEAST_LOGP), _with_rest(teacher, bins_NB.detach()))
        for bins_NB, teacher in zip(bins, teachers, strict=True)
    ]


def _with_rest(teacher: TopK, student_NB: Tensor) -> Tensor:
    """A teacher's log-probabilities, and in the last bin what they lack to 1 if there is one."""
    teacher_logp = teacher.logp_NK.detach().float().clamp(min=LEAST_LOGP)
    if teacher_logp.size(1) == student_NB.size(1):
        return teacher_logp
    rest_N1 = (1 - teacher_logp.exp().sum(dim=1, keepdim=True)).clamp(min=_LEAST_MASS).log()
    # Where the student excludes all others, what is left to them is rounding, which no student could follow.
    return torch.cat([teacher_logp, rest_N1.masked_fill(student_NB[:, -1:].isneginf(), LEAST_LOGP)], dim=1)


@dataclass(frozen=True)
class _Work:
    """How the student is made out of its tensors, and of how many."""

    rebuild: Rebuild
    tensors: int
    temperature: float


class _BinLogits(torch.autograd.Function):
    """logits / temperature of each teacher's outputs, and in the last column the logsumexp of all others.

    Those are summed themselves: 1 - sum of the given ones would lose a small rest. By hand, because
    autograd would hold several more copies of the logits, which are large (N = 3584, C = 32768:
    470 MB); this makes the gradient and nothing else of their size, in blocks of rows.
    """

    @staticmethod
    def forward(ctx: Any, work: _Work, *tensors: Tensor) -> tuple[Tensor, ...]:
        student, indices = work.rebuild(*tensors[: work.tensors]), tensors[work.tensors :]
        rows, outputs = student.shape
        bins = tuple(
            torch.empty(rows, min(index_NK.size(1) + 1, outputs), dtype=torch.float32, device=student.device)
            for index_NK in indices
        )
        for block in blocks(student):
            logits = scaled(student.block(block), work.temperature)
            for bins_NB, index_NK in zip(bins, indices, strict=True):
                index = index_NK[block]
                bins_NB[block, : index.size(1)] = logits.gather(1, index)
                if index.size(1) < outputs:
                    bins_NB[block, -1] = logits.scatter(1, index, -torch.inf).logsumexp(dim=1)
        ctx.work = work
        ctx.save_for_backward(*tensors, *(bins_NB[:, -1:].clone() for bins_NB in bins))
        return bins

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        work: _Work = ctx.work
        student = work.rebuild(*ctx.saved_tensors[: work.tensors])
        indices, rests = ctx.saved_tensors[work.tensors : -len(grads)], ctx.saved_tensors[-len(grads) :]
        gradients = student.begin_gradients()
        for block in blocks(student):
            logits = scaled(student.block(block), work.temperature)
            shares = [
                _spread_out(logits, index_NK[block], rest_N1[block], grad_NB[block] / work.temperature)
                for index_NK, rest_N1, grad_NB in zip(indices, rests, grads, strict=True)
            ]
            student.add_gradients(gradients, block, functools.reduce(Tensor.add_, shares))
        return None, *gradients, *(None for _ in indices)


def _spread_out(logits: Tensor, index: Tensor, rest: Tensor, grad: Tensor) -> Tensor:
    """The gradient of logits / temperature out of that of the bins."""
    outputs = index.size(1)
    if outputs == logits.size(1):
        return torch.zeros_like(logits).scatter_(1, index, grad)
    # Where all others are excluded, each of them is; infinity minus infinity is not a number.
    share = (logits - rest.masked_fill(rest.isneginf(), 0.0)).exp_().mul_(grad[:, -1:])
    # The given outputs have no share of the rest, and what stands there may be infinite.
    return share.scatter_(1, index, grad[:, :outputs])
