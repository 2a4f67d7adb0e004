"""Closed forms of the divergences, of logits and of a top k, and what the term promises."""

import math

import pytest
import torch

from codistill_ext import CodistillConfig, codistillation_term, divergence, rows
from codistill_ext.dense import mean_prediction
from codistill_ext.topk import TopK
from tests.naive import naive_divergence

# Two outputs: logits (0, log 3) are probabilities (1/4, 3/4); (0, 0) are (1/2, 1/2).
SKEWED = torch.tensor([[0.0, math.log(3.0)]])
EVEN = torch.zeros(1, 2)
DISTRIBUTIONS = ("kl_teacher_student", "kl_student_teacher", "cross_entropy")


def top(teacher: torch.Tensor, k: int, temperature: float = 1.0) -> TopK:
    """The top k without any rounding."""
    logp, index = (teacher.float() / temperature).log_softmax(1).topk(k)
    return TopK(logp_NK=logp, index_NK=index)


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
    [*((kind, t) for kind in DISTRIBUTIONS for t in (1.0, 2.5))] + [("mse", 1.0)],
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


# Probabilities of a teacher (1/2, 1/4, 1/8, 1/8) and a student (1/4, 1/4, 1/4, 1/4).
HALVES = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
QUARTERS = torch.zeros(1, 4)


@pytest.mark.parametrize(
    ("kind", "k", "expected"),
    [
        ("kl_teacher_student", 1, 0.5 * math.log(2.0) + 0.5 * math.log(0.5 / 0.75)),
        ("kl_teacher_student", 2, 0.5 * math.log(2.0) + 0.25 * math.log(0.5)),
        ("kl_teacher_student", 4, 0.5 * math.log(2.0) + 0.25 * math.log(0.5)),  # the rest is alike in both
        ("kl_student_teacher", 1, 0.25 * math.log(0.5) + 0.75 * math.log(1.5)),
        ("cross_entropy", 1, -0.5 * math.log(0.25) - 0.5 * math.log(0.75)),
        ("cross_entropy", 2, -0.75 * math.log(0.25) - 0.25 * math.log(0.5)),
    ],
)
def test_closed_forms_of_a_top_k(kind: str, k: int, expected: float) -> None:
    assert divergence(QUARTERS, top(HALVES, k), kind).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("k", [8, 9], ids=["all but one", "all"])
def test_a_top_k_of_all_outputs_is_the_dense_divergence(kind: str, temperature: float, k: int) -> None:
    torch.manual_seed(4)
    student, teacher = torch.randn(6, 9, requires_grad=True), torch.randn(6, 9)
    dense = divergence(student, teacher, kind, temperature=temperature)
    (expected,) = torch.autograd.grad(dense, student)
    value = divergence(student, top(teacher, k, temperature), kind, temperature=temperature)
    (gradient,) = torch.autograd.grad(value, student)
    torch.testing.assert_close(value, dense, rtol=0, atol=2e-6)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_gradient_of_a_top_k_in_blocks_is_autograds(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_BLOCK_ELEMENTS", 25)  # 2 rows of 11 a block, and one left over
    torch.manual_seed(5)
    student, teacher, temperature = torch.randn(7, 11).to(dtype).requires_grad_(), torch.randn(7, 11), 1.5
    target = top(teacher, 3, temperature)
    q = (student.float() / temperature).softmax(1)
    q_top = q.gather(1, target.index_NK)
    q = torch.cat([q_top, 1 - q_top.sum(1, keepdim=True)], 1)
    p = torch.cat([target.logp_NK.exp(), 1 - target.logp_NK.exp().sum(1, keepdim=True)], 1)
    forms = {
        "kl_teacher_student": p * (p / q).log(),
        "kl_student_teacher": q * (q / p).log(),
        "cross_entropy": -p * q.log(),
    }
    plain = temperature**2 * forms[kind].sum()
    (expected,) = torch.autograd.grad(plain, student)
    value = divergence(student, target, kind, temperature=temperature, reduction="sum")
    (gradient,) = torch.autograd.grad(value, student)
    assert value.dtype == torch.float32 and gradient.dtype == dtype
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(gradient, expected, rtol=1e-5 if dtype == torch.float32 else 2e-2, atol=1e-5)


@pytest.mark.parametrize("kind", DISTRIBUTIONS)
@pytest.mark.parametrize("k", [1, 5, 6])
@pytest.mark.parametrize("scale", [50.0, 1e4, 1e8])
def test_a_top_k_stays_finite_however_sure_the_models_are(kind: str, k: int, scale: float) -> None:
    """A student and a teacher that are sure of one output, of the same and of another."""
    student = (scale * torch.eye(6)[[0, 1, 2, 3]]).requires_grad_()
    target = top(scale * torch.eye(6)[[0, 5, 2, 0]], k)
    value = divergence(student, target, kind)
    value.backward()
    assert torch.isfinite(value) and torch.isfinite(student.grad).all()
    agreed = divergence(student[::2], top(scale * torch.eye(6)[[0, 2]], k), kind)
    assert abs(agreed.item()) < 2e-7 * scale + 1e-5, "where both are sure of the same there is nothing to learn"


def test_log_zero_of_a_top_k_is_finite() -> None:
    student = torch.zeros(1, 3, requires_grad=True)
    target = TopK(logp_NK=torch.tensor([[0.0, -math.inf]]), index_NK=torch.tensor([[2, 0]]))
    value = divergence(student, target, "kl_teacher_student")
    value.backward()
    assert value.item() == pytest.approx(math.log(3.0), abs=1e-5) and torch.isfinite(student.grad).all()


def test_a_small_rest_of_the_student_is_not_lost() -> None:
    """1 - sum would say that the rest has no mass at all, and that it has no gradient."""
    student = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True)
    value = divergence(student, top(torch.tensor([[0.0, 0.0, 0.0]]), 1), "cross_entropy")
    value.backward()
    assert value.item() == pytest.approx(2 / 3 * (40.0 - math.log(2.0)), rel=1e-6)
    assert student.grad[0, 1:].sum().item() == pytest.approx(-2 / 3, abs=1e-6)


def test_no_rows_of_a_top_k_are_zero() -> None:
    student = torch.empty(0, 4, requires_grad=True)
    value = divergence(student, top(torch.empty(0, 4), 2), "kl_teacher_student")
    value.backward()
    assert value.item() == 0.0 and student.grad.shape == (0, 4)


def test_what_a_top_k_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="mse compares logits"):
        divergence(EVEN, top(EVEN, 1), "mse")
    with pytest.raises(ValueError, match="needs all logits"):
        config = CodistillConfig(models=3, target="mean")
        codistillation_term(EVEN, [EVEN, top(EVEN, 1)], config, alpha=1.0)
    with pytest.raises(ValueError, match=r"shape \(2, at most 2\), not \(1, 1\)"):
        divergence(torch.zeros(2, 2), top(EVEN, 1), "kl_teacher_student")


@pytest.mark.parametrize(
    ("kind", "k"),
    [("mse", None)]
    + [(kind, k) for kind in ("kl_teacher_student", "kl_student_teacher", "cross_entropy") for k in (None, 2, 5)],
)
def test_rows_in_which_the_teacher_is_not_finite_teach_nothing(kind: str, k: int | None) -> None:
    generator = torch.Generator().manual_seed(3)
    student = torch.randn(4, 5, generator=generator, requires_grad=True)
    teacher = torch.randn(4, 5, generator=generator)
    good = teacher[:2].clone()
    teacher[2, 3], teacher[3, 1] = math.nan, math.inf
    targets = [teacher, good] if k is None else [top(teacher, k), top(good, k)]
    total = divergence(student, targets[0], kind, reduction="sum")
    torch.testing.assert_close(total, divergence(student[:2], targets[1], kind, reduction="sum"))
    (gradient,) = torch.autograd.grad(total, student)
    (expected,) = torch.autograd.grad(divergence(student[:2], targets[1], kind, reduction="sum"), student)
    torch.testing.assert_close(gradient, expected)
    assert not gradient[2:].any()


@pytest.mark.parametrize("kind", ["kl_teacher_student", "kl_student_teacher", "cross_entropy"])
def test_an_output_that_the_teacher_excludes_has_no_probability(kind: str) -> None:
    student = torch.tensor([[0.0, 0.0, math.log(2.0)]], requires_grad=True)  # 1/4, 1/4, 1/2
    teacher = torch.tensor([[-math.inf, 0.0, math.log(3.0)]])  # 0, 1/4, 3/4
    value = divergence(student, teacher, kind)
    expected = {
        "kl_teacher_student": 0.75 * math.log(1.5),
        # 16 bits' least log-probability stands for log 0
        "kl_student_teacher": 0.25 * (math.log(0.25) + 65504) + 0.5 * math.log(0.5 / 0.75),
        "cross_entropy": 0.25 * math.log(4) + 0.75 * math.log(2),
    }
    assert value.item() == pytest.approx(expected[kind], rel=1e-5)
    value.backward()
    assert student.grad is not None and student.grad.isfinite().all()


@pytest.mark.parametrize("half", [False, True], ids=["as it is", "as 16 bits send it"])
@pytest.mark.parametrize(
    ("kind", "k"),
    [("mse", None)]
    + [(kind, k) for kind in ("kl_teacher_student", "kl_student_teacher", "cross_entropy") for k in (None, 2, 3, 5, 6)],
)
def test_outputs_that_both_exclude_are_as_if_they_were_not_there(kind: str, k: int | None, half: bool) -> None:
    """A vocabulary that is padded, or classes that are masked: their logits are -inf in every model."""
    generator = torch.Generator().manual_seed(4)
    student, teacher = torch.randn(2, 4, 6, generator=generator).unbind()
    kept, excluded = [0, 2, 3], [1, 4, 5]
    student[:, excluded] = teacher[:, excluded] = -math.inf
    student.requires_grad_()
    few = student.detach()[:, kept].requires_grad_()
    sent = teacher.clamp(min=-65504.0) if half else teacher
    expected = divergence(few, teacher[:, kept] if k is None or k >= 3 else top(teacher[:, kept], k), kind)
    if kind == "mse":
        expected = expected * 3 / 6  # the mean is over all outputs
    value = divergence(student, sent if k is None else top(sent, k), kind)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    value.backward()
    expected.backward()
    assert student.grad is not None and few.grad is not None
    torch.testing.assert_close(student.grad[:, kept], few.grad, rtol=1e-5, atol=1e-6)
    assert not student.grad[:, excluded].any()


def test_a_mean_prediction_keeps_what_all_exclude_excluded() -> None:
    student = torch.tensor([[0.0, 0.0, -math.inf]], requires_grad=True)
    teachers = [torch.tensor([[0.0, math.log(3.0), -math.inf]]), torch.tensor([[math.log(3.0), 0.0, -math.inf]])]
    for kind in ("kl_teacher_student", "kl_student_teacher", "mse"):
        config = CodistillConfig(models=3, target="mean", divergence=kind)
        term = codistillation_term(student, teachers, config, alpha=1.0)
        expected = math.log(3.0) ** 2 / 4 * 2 / 3 if kind == "mse" else 0.0
        assert term.loss.item() == pytest.approx(expected, abs=1e-6)
        (gradient,) = torch.autograd.grad(term.loss, student)
        assert gradient.isfinite().all() and gradient[0, 2] == 0
