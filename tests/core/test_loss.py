"""Closed forms of the divergences, and what the term promises."""

import math

import pytest
import torch

from codistill_ext import CodistillConfig, codistillation_term, divergence
from codistill_ext.loss import mean_prediction
from tests.naive import naive_divergence

# Two outputs: logits (0, log 3) are probabilities (1/4, 3/4); (0, 0) are (1/2, 1/2).
SKEWED = torch.tensor([[0.0, math.log(3.0)]])
EVEN = torch.zeros(1, 2)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("kl_teacher_student", 0.5 * math.log(2.0) + 0.5 * math.log(2.0 / 3.0)),
        ("kl_student_teacher", 0.25 * math.log(0.5) + 0.75 * math.log(1.5)),
        ("cross_entropy", -0.5 * math.log(0.25) - 0.5 * math.log(0.75)),
        ("mse", math.log(3.0) ** 2 / 2),
    ],
)
def test_closed_forms(kind: str, expected: float) -> None:
    assert divergence(SKEWED, EVEN, kind).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "temperature"),
    [*((kind, t) for kind in ("kl_teacher_student", "kl_student_teacher", "cross_entropy") for t in (1.0, 2.5))]
    + [("mse", 1.0)],
)
def test_equals_a_walk_over_rows_and_outputs(kind: str, temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(7, 5), torch.randn(7, 5)
    config = CodistillConfig(models=2, divergence=kind, temperature=temperature)
    mean = divergence(student, teacher, kind, temperature=temperature)
    torch.testing.assert_close(mean, naive_divergence(student, teacher, config))
    total = divergence(student, teacher, kind, temperature=temperature, reduction="sum")
    torch.testing.assert_close(total, 7 * mean)


def test_the_gradient_of_kl_teacher_student_is_the_difference_of_probabilities() -> None:
    torch.manual_seed(1)
    student, teacher = torch.randn(3, 4, requires_grad=True), torch.randn(3, 4, requires_grad=True)
    divergence(student, teacher, "kl_teacher_student", reduction="sum").backward()
    torch.testing.assert_close(student.grad, student.softmax(1).detach() - teacher.softmax(1).detach())
    assert teacher.grad is None, "no gradient may reach a teacher"


def test_the_term_is_the_mean_over_peers_times_alpha() -> None:
    torch.manual_seed(2)
    student, first, second = torch.randn(3, 6, 4)
    config = CodistillConfig(models=3, alpha=0.5)
    term = codistillation_term(student, [first, second], config, alpha=0.5)
    mean = (divergence(student, first, config.divergence) + divergence(student, second, config.divergence)) / 2
    torch.testing.assert_close(term.loss, 0.5 * mean)
    torch.testing.assert_close(term.divergence, mean)
    assert term.peers == 2 and not term.divergence.requires_grad


def test_the_mean_target_is_the_mean_of_probabilities() -> None:
    torch.manual_seed(3)
    first, second = torch.randn(2, 6, 4)
    mean = mean_prediction([first, second], "kl_teacher_student").softmax(1)
    torch.testing.assert_close(mean, (first.softmax(1) + second.softmax(1)) / 2)


def test_half_precision_is_computed_in_float32() -> None:
    student, teacher = torch.full((2, 40000), 8.0, dtype=torch.float16), torch.zeros(2, 40000, dtype=torch.float16)
    student[:, 0], teacher[:, 1] = 12.0, 12.0
    value = divergence(student, teacher, "kl_teacher_student", reduction="sum")
    assert value.dtype == torch.float32 and torch.isfinite(value)
    expected = divergence(student.double(), teacher.double(), "kl_teacher_student", reduction="sum")
    torch.testing.assert_close(value, expected)


def test_without_peers_or_weight_the_loss_is_an_exact_zero() -> None:
    student = torch.randn(3, 4, requires_grad=True)
    config = CodistillConfig(models=2)
    for teachers, alpha in ([], 1.0), ([torch.randn(3, 4)], 0.0):
        term = codistillation_term(student, teachers, config, alpha=alpha)
        assert term.loss.item() == 0.0 and not term.loss.requires_grad and term.peers == 0


def test_a_batch_of_padding_alone_is_zero_and_not_nan() -> None:
    nothing = torch.empty(0, 4, requires_grad=True)
    value = divergence(nothing, torch.empty(0, 4), "kl_teacher_student")
    assert value.item() == 0.0


def test_unlike_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"equal shapes.*\(2, 3\).*\(2, 4\)"):
        divergence(torch.zeros(2, 3), torch.zeros(2, 4), "mse")
    with pytest.raises(ValueError, match="mean or sum"):
        divergence(EVEN, EVEN, "mse", reduction="none")
