"""Divergences in blocks of rows: gradients against plain autograd, what is held in memory, and logits never whole."""

import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from codistill_ext import CodistillConfig, CodistillParallel, LinearLogits, ModelGroups, codistillation_term, divergence
from codistill_ext import rows as rows_module
from codistill_ext.config import DIVERGENCES
from codistill_ext.dense import mean_prediction
from codistill_ext.exchange import ModelDescription
from codistill_ext.exchange.wire.encoding import build_encoding
from codistill_ext.rows import DenseLogits
from codistill_ext.topk import topk_of
from tests.core.training import needs_fsdp, whole
from tests.ranks import RankError, run_ranks

ROWS, OUTPUTS, UNITS = 7, 11, 5


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows_module, "_BLOCK_ELEMENTS", 2 * OUTPUTS + 3)  # 2 rows a block, and one left over


def plain(student: Tensor, teacher: Tensor, kind: str, temperature: float) -> Tensor:
    """The divergence as one would write it, by autograd."""
    if kind == "mse":
        return (student - teacher).square().mean(1).mean()
    q, p = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    forms = {
        "kl_teacher_student": p * (p.log() - q.log()),
        "kl_student_teacher": q * (q.log() - p.log()),
        "cross_entropy": -p * q.log(),
    }
    return temperature**2 * forms[kind].sum(1).mean()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("target", ["each", "mean"])
@pytest.mark.parametrize("kind", DIVERGENCES)
def test_gradients_of_dense_logits_are_autograds(kind: str, target: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    temperature = 1.0 if kind == "mse" else 2.0
    student, *teachers = (torch.randn(ROWS, OUTPUTS).to(dtype) for _ in range(3))
    student.requires_grad_()
    config = CodistillConfig(models=3, divergence=kind, target=target, temperature=temperature)
    term = codistillation_term(student, teachers, config, alpha=0.5)
    targets = [mean_prediction(teachers, kind, temperature)] if target == "mean" else teachers
    expected = 0.5 * torch.stack([plain(student.float(), t.float(), kind, temperature) for t in targets]).mean()
    torch.testing.assert_close(term.loss, expected)
    found, wanted = (torch.autograd.grad(loss, student)[0] for loss in (term.loss, expected))
    assert found.dtype == dtype
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    ("kind", "k"), [(kind, k) for kind in DIVERGENCES for k in (None, 3, OUTPUTS) if kind != "mse" or k is None]
)
def test_gradients_of_hidden_states_and_the_matrix_are_the_dense_ones(kind: str, k: int | None) -> None:
    torch.manual_seed(1)
    hidden, taught = torch.randn(ROWS, UNITS, requires_grad=True), torch.randn(ROWS, UNITS)
    layer, their_layer = nn.Linear(UNITS, OUTPUTS), nn.Linear(UNITS, OUTPUTS)
    student = LinearLogits(hidden, layer.weight, layer.bias)
    teacher = LinearLogits(taught, their_layer.weight, their_layer.bias)
    logits, their_logits = layer(hidden), their_layer(taught).detach()
    target, dense_target = teacher, their_logits
    if k is not None:
        target, dense_target = topk_of(teacher, k, 1.0), topk_of(DenseLogits(their_logits), k, 1.0)
        torch.testing.assert_close(target.logp_NK, dense_target.logp_NK)
        assert torch.equal(target.index_NK, dense_target.index_NK)
    losses = divergence(student, target, kind), divergence(logits, dense_target, kind)
    torch.testing.assert_close(*losses)
    of = [hidden, layer.weight, layer.bias]
    for found, wanted in zip(*(torch.autograd.grad(loss, of) for loss in losses), strict=True):
        torch.testing.assert_close(found, wanted)
    assert their_layer.weight.grad is None


def test_hidden_states_in_another_precision_are_as_autocast_does_them() -> None:
    torch.manual_seed(2)
    hidden, layer, teacher = torch.randn(ROWS, UNITS, requires_grad=True), nn.Linear(UNITS, OUTPUTS), torch.randn(7, 11)
    with torch.autocast("cpu", torch.bfloat16):
        logits = layer(hidden)
        student = LinearLogits(hidden, layer.weight, layer.bias)
    losses = divergence(student, teacher, "kl_teacher_student"), divergence(logits, teacher, "kl_teacher_student")
    assert torch.equal(*losses)
    of = [hidden, layer.weight]
    for found, wanted in zip(*(torch.autograd.grad(loss, of) for loss in losses), strict=True):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, wanted, rtol=2e-2, atol=1e-3)


def test_a_mask_and_any_memory_order_count_the_rows_that_a_copy_has() -> None:
    torch.manual_seed(3)
    logits = torch.randn(OUTPUTS, 4, 3).permute(1, 2, 0).requires_grad_()
    mask = torch.rand(4, 3) < 0.6
    for rows, copy in (DenseLogits(logits, mask), logits[mask]), (DenseLogits(logits), logits.reshape(12, OUTPUTS)):
        assert rows.shape == copy.shape and torch.equal(rows.whole(), copy)
        teacher = torch.randn(copy.shape)
        for kind, k in ("kl_student_teacher", None), ("kl_teacher_student", 2):
            target = teacher if k is None else topk_of(DenseLogits(teacher), k, 1.0)
            losses = divergence(rows, target, kind), divergence(copy, target, kind)
            assert torch.equal(*losses)
            found, wanted = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in losses)
            assert torch.equal(found, wanted)


class _Largest(TorchDispatchMode):
    """Remembers how many tensors with so many elements were made."""

    def __init__(self, elements: int) -> None:
        super().__init__()
        self.elements, self.storages = elements, set[int]()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage().nbytes() >= self.elements * leaf.itemsize:
                self.storages.add(leaf.untyped_storage()._cdata)
        return result


@pytest.mark.parametrize("encoding", ["full", "topk"])
@pytest.mark.parametrize("hidden", [False, True], ids=["logits", "hidden"])
def test_no_tensor_of_the_size_of_the_logits_but_their_gradient(encoding: str, hidden: bool) -> None:
    rows, outputs = 64, 128  # one row is larger than a block; a matrix of 5 units is small
    config = CodistillConfig(models=3, encoding=encoding, **({"topk": 4} if encoding == "topk" else {}))
    logits = [torch.randn(rows, outputs, requires_grad=True) for _ in range(3)]
    heads = [LinearLogits(torch.randn(rows, 5, requires_grad=True), torch.randn(outputs, 5)) for _ in range(3)]
    student, *teachers = heads if hidden else map(DenseLogits, logits)
    with _Largest(rows * outputs) as made:
        targets = teachers
        if encoding == "topk":
            encoder = build_encoding(config)
            targets = [encoder.decode(encoder.encode(teacher), outputs) for teacher in teachers]
        codistillation_term(student, targets, config, alpha=1.0).loss.backward()
    given = {tensor.untyped_storage()._cdata for tensor in logits}
    assert len(made.storages - given) == (0 if hidden else 1)


def test_the_loss_lets_go_of_the_logits_after_backward() -> None:
    for target in torch.randn(ROWS, OUTPUTS), topk_of(DenseLogits(torch.randn(ROWS, OUTPUTS)), 2, 1.0):
        logits = 1 * torch.randn(ROWS, OUTPUTS, requires_grad=True)  # the graph holds a leaf in any case
        loss, reference = divergence(logits, target, "kl_teacher_student"), weakref.ref(logits)
        loss.backward()
        del logits
        assert reference() is None, "a loss that is kept for the log would hold them until the next step"


class LanguageModel(nn.Module):
    """Returns hidden states; ``head`` makes logits of them."""

    def __init__(self, units: int = 6, outputs: int = OUTPUTS) -> None:
        super().__init__()
        self.embedding = nn.Embedding(outputs, units)
        self.body = nn.Linear(units, units)
        self.head = nn.Linear(units, outputs, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return torch.tanh(self.body(self.embedding(tokens)))


def _shard(module: nn.Module, groups: ModelGroups) -> nn.Module:
    fully_shard(module.body, mesh=groups.model_mesh)
    return fully_shard(module, mesh=groups.model_mesh)


def _train(rank: int, options: dict[str, Any], from_hidden: bool, sharded: bool = False) -> dict[str, Tensor]:
    config = CodistillConfig(models=2, **options)
    groups = ModelGroups.create(config)
    torch.manual_seed(groups.model_index)
    model = CodistillParallel(
        _Logits(LanguageModel()) if not from_hidden else LanguageModel(),
        groups,
        config,
        head="head" if from_hidden else "",
        description=ModelDescription("lm", {}),
        build_peer=lambda _: LanguageModel() if from_hidden else _Logits(LanguageModel()),
        data_parallel=_shard if sharded else None,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for update in range(4):
        tokens = torch.randint(OUTPUTS, (2, 5), generator=torch.Generator().manual_seed(10 * update + groups.data_rank))
        mask = tokens > 2
        output = model(tokens)
        given = {"hidden": output} if from_hidden else {"logits": output}
        term = model.codistill(tokens, mask=mask, **given)
        if from_hidden:
            output = F.linear(output, model.plain.head.weight)
        loss = F.cross_entropy(output.flatten(0, 1), tokens.flatten()) + term.loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        model.after_update()
    assert term.peers == 1 and term.divergence > 0
    model.close()
    return {name.removeprefix("model."): tensor for name, tensor in whole(model.state_dict()).items()}


class _Logits(nn.Module):
    """The same model, of which the logits are whole."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.model.head(self.model(tokens))
        return logits


@pytest.mark.parametrize(
    "options",
    [{}, {"encoding": "topk", "topk": 3}, {"exchange": "checkpoints", "period": 2, "lag": 0, "data": "coordinated"}],
    ids=str,
)
@pytest.mark.parametrize("sharded", [False, pytest.param(True, marks=needs_fsdp)])
def test_models_that_return_hidden_states_train_as_those_that_return_logits(
    options: dict[str, Any], sharded: bool
) -> None:
    expected = run_ranks(4, _train, options, False)
    for wanted, found in zip(expected, run_ranks(4, _train, options, True, sharded), strict=True):
        assert wanted.keys() == found.keys()
        for name, tensor in wanted.items():
            torch.testing.assert_close(found[name], tensor, msg=lambda message, name=name: f"{name}: {message}")


def _mistakes(rank: int) -> None:
    config = CodistillConfig(models=2)
    groups = ModelGroups.create(config)
    torch.manual_seed(groups.model_index)
    tokens = torch.zeros(2, 3, dtype=torch.int64)
    with_head = CodistillParallel(LanguageModel(), groups, config, head="head")
    for given in {"logits": with_head(tokens)}, {}, {"logits": with_head(tokens), "hidden": with_head(tokens)}:
        with pytest.raises(ValueError, match=r"hidden=\.\.\."):
            with_head.codistill(tokens, **given)
    with pytest.raises(ValueError, match=r"\(6, 12\) and \(11, 6\)"):
        with_head.codistill(tokens, hidden=torch.zeros(2, 3, 12))
    for head, message in ("tail", "no layer 'tail'"), ("", "of any other"):
        model = CodistillParallel(LanguageModel(), groups, config, head=head)
        with pytest.raises(ValueError, match=message):
            model.codistill(tokens, hidden=model(tokens))
    raise RuntimeError("as far as this")


def test_what_hidden_states_cannot_do_is_refused() -> None:
    with pytest.raises(RankError, match="as far as this"):
        run_ranks(2, _mistakes)
