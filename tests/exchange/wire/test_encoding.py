"""What crosses in each encoding, what it costs, and what the receiver makes of it."""

from typing import Any

import pytest
import torch

from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups, divergence
from codistill_ext.exchange.wire.encoding import Encoding, build_encoding
from codistill_ext.loss import Target
from codistill_ext.rows import DenseLogits
from codistill_ext.topk import TopK
from tests.core.training import build, train
from tests.naive import naive_divergence
from tests.ranks import run_ranks

CPU = torch.device("cpu")


def encoding(name: str, **options: Any) -> Encoding:
    return build_encoding(CodistillConfig(models=2, encoding=name, **options))


def crossed(encoding: Encoding, logits: torch.Tensor) -> Target:
    """What a receiver decodes, through buffers as the exchange makes them."""
    received = encoding.empty(*logits.shape, CPU)
    payload = encoding.encode(DenseLogits(logits))
    assert sum(tensor.nbytes for tensor in payload) == encoding.payload_bytes(*logits.shape)
    for buffer, tensor in zip(received, payload, strict=True):
        assert buffer.shape == tensor.shape and buffer.dtype == tensor.dtype
        assert tensor.is_contiguous() and not tensor.requires_grad
        buffer.copy_(tensor)
    return encoding.decode(received, logits.size(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_full_is_exact(dtype: torch.dtype) -> None:
    logits = torch.randn(6, 5, requires_grad=True).to(dtype)
    target = crossed(encoding("full"), logits.T.contiguous().T)  # not contiguous
    assert torch.equal(target, logits.float())


def test_half_rounds_and_stays_finite() -> None:
    logits = torch.tensor([[1.0, 1.0 + 2**-12, 1e6, -1e6, 3.0]])
    target = crossed(encoding("half"), logits)
    assert target.tolist() == [[1.0, 1.0, 65504.0, -65504.0, 3.0]] and logits[0, 2] == 1e6
    exact = torch.randn(4, 7).half()
    assert torch.equal(crossed(encoding("half"), exact), exact)
    assert torch.equal(crossed(encoding("half"), exact.bfloat16()).bfloat16(), exact.bfloat16())


@pytest.mark.parametrize("outputs", [2, 255, 256, 257, 32768, 65536, 65537, 70000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_indices_of_the_top_k_survive(outputs: int, dtype: torch.dtype) -> None:
    ends = torch.tensor([0, outputs - 1, outputs // 2])
    logits = torch.zeros(3, outputs, dtype=dtype)
    logits[torch.arange(3), ends] = 8.0
    target = crossed(encoding("topk", topk=1), logits)
    assert isinstance(target, TopK) and target.index_NK.dtype == torch.int64
    assert target.index_NK[:, 0].tolist() == ends.tolist()
    expected = logits.float().log_softmax(1).amax(1).half().float()
    assert torch.equal(target.logp_NK[:, 0], expected)


@pytest.mark.parametrize(("k", "temperature"), [(1, 1.0), (4, 2.0), (64, 1.0)])
def test_the_top_k_are_the_k_largest(k: int, temperature: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(9, 20, requires_grad=True)
    target = crossed(encoding("topk", topk=k, temperature=temperature), logits)
    logp, index = (logits / temperature).log_softmax(1).topk(min(k, 20))
    assert isinstance(target, TopK) and not target.logp_NK.requires_grad
    found, order = target.logp_NK.sort(dim=1, descending=True)
    assert torch.equal(found, logp.half().float())
    assert torch.equal(target.index_NK.gather(1, order).sort(1).values, index.sort(1).values)


@pytest.mark.parametrize("scale", [1e3, 1e6])
def test_a_teacher_that_is_sure_is_sent_in_finite_numbers(scale: float) -> None:
    target = crossed(encoding("topk", topk=4), scale * torch.eye(6))
    assert isinstance(target, TopK) and torch.isfinite(target.logp_NK).all()


@pytest.mark.parametrize("kind", ["kl_teacher_student", "kl_student_teacher", "cross_entropy"])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_a_top_k_that_crossed_equals_a_walk_over_bins(kind: str, temperature: float) -> None:
    torch.manual_seed(1)
    student, teacher = torch.randn(5, 12), 2 * torch.randn(5, 12)
    for k in (1, 5, 11, 12, 64):
        options: dict[str, Any] = {"divergence": kind, "temperature": temperature, "topk": k}
        target = crossed(encoding("topk", **options), teacher)
        value = divergence(student, target, kind, temperature=temperature)
        expected = naive_divergence(student, teacher, CodistillConfig(models=2, encoding="topk", **options))
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6)
        if k >= 12:
            dense = divergence(student, teacher, kind, temperature=temperature)
            torch.testing.assert_close(value, dense, rtol=2e-3, atol=2e-3)  # float16 has 11 bits


def test_bytes() -> None:
    rows, outputs = 3584, 32768
    assert encoding("full").payload_bytes(rows, outputs) == 4 * rows * outputs
    assert encoding("half").payload_bytes(rows, outputs) == 2 * rows * outputs == 234_881_024
    assert encoding("topk").payload_bytes(rows, outputs) == (2 + 2) * 64 * rows == 917_504
    assert encoding("topk").payload_bytes(rows, 1000) == (2 + 2) * 64 * rows
    assert encoding("topk").payload_bytes(rows, 256) == (2 + 1) * 64 * rows
    assert encoding("topk").payload_bytes(rows, 10) == (2 + 1) * 10 * rows
    assert encoding("topk").payload_bytes(rows, 65537) == (2 + 4) * 64 * rows


UPDATES, ROWS, OUTPUTS = 3, 6, 5


@pytest.mark.parametrize(
    ("options", "bytes_a_row", "students"),
    [
        ({"models": 2, "encoding": "half"}, 2 * OUTPUTS, [1, 1]),
        ({"models": 4, "encoding": "topk", "topk": 2}, 2 * 3, [3, 3, 3, 3]),
        ({"models": 4, "encoding": "topk", "topk": 64, "topology": "0<-1,1<-0,2<-0,3<-0"}, OUTPUTS * 3, [3, 1, 0, 0]),
    ],
    ids=["half", "topk", "more than there are"],
)
def test_bytes_that_crossed(options: dict[str, Any], bytes_a_row: int, students: list[int]) -> None:
    config = CodistillConfig(**options)
    for model, result in enumerate(run_ranks(config.models, train, options, UPDATES)):
        assert result["traffic"]["sent/predictions"] == UPDATES * ROWS * bytes_a_row * students[model]
        received = UPDATES * ROWS * bytes_a_row * len(config.peers[model])
        assert result["traffic"]["received/predictions"] == received


def _uneven(rank: int, options: dict[str, Any], rows: list[int]) -> tuple[list[float], list[float], int]:
    """Codistill on another number of rows each round; what came out, and what a walk gives."""
    config = CodistillConfig(**options)
    groups = ModelGroups.create(config)
    model = CodistillParallel(build(rank), groups, config)
    values, expected = [], []
    for update, count in enumerate(rows):
        logits = torch.randn(2, 8, 5, generator=torch.Generator().manual_seed(update))  # of both models
        mask = torch.arange(8) < count  # what is left are padding positions
        # Models that compute in another precision than each other understand each other.
        student = logits[rank].to(torch.bfloat16 if rank == 1 else torch.float32).requires_grad_()
        term = model.codistill(logits[0], student, mask=mask)
        term.loss.backward()
        assert student.grad is not None and not student.grad[~mask].any()
        teacher = logits[1 - rank].to(torch.bfloat16 if rank == 0 else torch.float32)[mask].float()
        values.append(term.divergence.item())
        if count:
            expected.append(naive_divergence(student.detach()[mask].float(), teacher, config).item())
        else:
            expected.append(0.0)
        model.after_update()
    sent = model.exchange.traffic.sent["predictions"]
    model.leave()
    model.close()
    return values, expected, sent


@pytest.mark.parametrize("name", ["full", "half", "topk"])
def test_uneven_batches_padding_and_other_precisions(name: str) -> None:
    options = {"models": 2, "encoding": name} | ({"topk": 3} if name == "topk" else {})
    rows = [8, 3, 1, 0, 5]
    for values, expected, sent in run_ranks(2, _uneven, options, rows):
        assert values == pytest.approx(expected, rel=1e-3 if name == "half" else 1e-5, abs=1e-5)
        assert sent == encoding(name, **({"topk": 3} if name == "topk" else {})).payload_bytes(sum(rows), 5)
