"""What the wrapper promises, in real processes."""

import os
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups, divergence
from codistill_ext.parallel import IdenticalModelsWarning
from tests.core.training import LR, batches, build, train
from tests.naive import Net
from tests.ranks import RankError, run_ranks


def _plain(updates: int) -> dict[str, torch.Tensor]:
    module = build(0)
    optimizer = torch.optim.SGD(module.parameters(), lr=LR, momentum=0.9)
    for update in range(updates):
        x, y = batches(update, 0, 0, coordinated=True)
        loss = F.cross_entropy(module(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.state_dict()


def _same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_one_model_alone_is_plain_training_bit_for_bit() -> None:
    assert _same_bits(train(0, {"models": 1}, 6)["state"], _plain(6))


def test_weight_zero_is_plain_training_bit_for_bit() -> None:
    first, second = run_ranks(2, train, {"models": 2, "alpha": 0.0}, 6)
    assert _same_bits(first["state"], _plain(6))
    assert not _same_bits(second["state"], first["state"]), "the models start different"


def test_a_burn_in_is_plain_training_until_it_ends() -> None:
    first, _ = run_ranks(2, train, {"models": 2, "burn_in": 6}, 6)
    assert _same_bits(first["state"], _plain(6))
    assert first["traffic"]["sent/predictions"] == 0 and first["traffic"]["sent/control"] > 0


def test_bytes_of_predictions_are_what_crossed() -> None:
    first, _ = run_ranks(2, train, {"models": 2}, 6)
    assert first["traffic"]["sent/predictions"] == 6 * 6 * 5 * 4  # updates, rows, outputs, bytes


def _one_batch(rank: int) -> None:
    """No gradient reaches a teacher, and it is nowhere in the module; buffers arrive."""
    config = CodistillConfig(models=2, exchange="checkpoints", period=1, lag=0)
    groups = ModelGroups.create(config)
    module = build(groups.model_index)
    model = CodistillParallel(module, groups, config)
    names = set(module.state_dict())
    x, _ = batches(0, groups.model_index, 0, coordinated=False)
    before = model.codistill(x, model(x))
    assert before.peers == 0 and before.loss.item() == 0.0
    with torch.no_grad():
        module.norm.running_mean.fill_(10.0 + rank)
    model.after_update()
    teacher = model.exchange.teachers[1 - rank]
    assert teacher.module.norm.running_mean.unique().tolist() == [10.0 + (1 - rank)], "buffers travel"
    assert not teacher.module.training and not any(p.requires_grad for p in teacher.module.parameters())
    logits = model(x)
    term = model.codistill(x, logits)
    (F.cross_entropy(logits, torch.zeros(len(x), dtype=torch.long)) + term.loss).backward()
    assert all(p.grad is None for p in teacher.module.parameters())
    assert set(model.state_dict()) == names, "no teacher is saved"
    own = {id(p) for p in module.parameters()}
    assert {id(p) for p in model.parameters()} == own, "an optimizer gets the student's parameters alone"
    expected = divergence(logits, teacher.module(x), config.divergence)
    torch.testing.assert_close(term.divergence, expected.detach())
    model.leave()
    model.close()


def test_teachers_are_copies_apart() -> None:
    run_ranks(2, _one_batch)


def _other_data(rank: int, exchange: str, check_every: int = 1) -> None:
    options: dict[str, Any] = {"models": 2, "timeout": 20.0, "check_every": check_every}
    if exchange == "checkpoints":
        options |= {"exchange": exchange, "period": 4, "lag": 0, "data": "coordinated"}
    config = CodistillConfig(**options)
    groups = ModelGroups.create(config)
    model = CodistillParallel(build(groups.model_index), groups, config)
    for update in range(5):
        x, _ = batches(update, 0, groups.data_rank, coordinated=True)
        if update == 3 and rank == 3:
            x = x.clone()
            x[2, 1] += 1e-6  # the planted mismatch
        model.codistill(x, model(x))
        model.after_update()
    model.close()


@pytest.mark.parametrize(("check_every", "is_seen"), [(0, False), (2, False), (3, True)])
def test_every_nth_round_is_checked(check_every: int, is_seen: bool) -> None:
    """The mismatch is in round 3; round 0 is always checked, and none with 0."""
    if not is_seen:
        run_ranks(4, _other_data, "predictions", check_every)
        return
    with pytest.raises(RankError, match=r"different mini-batches at update 3\b"):
        run_ranks(4, _other_data, "predictions", check_every)


@pytest.mark.parametrize(("exchange", "update"), [("predictions", 3), ("checkpoints", 4)])
def test_a_data_mismatch_names_both_ranks_and_the_update(exchange: str, update: int) -> None:
    with pytest.raises(RankError) as error:
        run_ranks(4, _other_data, exchange)
    texts = [text for text in error.value.errors.values() if "CoordinationError" in text]
    assert texts
    for text in texts:
        assert "model 0 (rank 1)" in text and "model 1 (rank 3)" in text
        assert re.search(rf"different mini-batches at update {update}\b", text)


def _other_outputs(rank: int) -> None:
    config = CodistillConfig(models=2, timeout=20.0)
    groups = ModelGroups.create(config)
    torch.manual_seed(rank)
    model = CodistillParallel(Net(outputs=5 + rank), groups, config)
    x = torch.ones(6, 8)
    model.codistill(x, model(x))


def test_other_outputs_are_refused() -> None:
    with pytest.raises(RankError, match=r"has 5 outputs and model 1 \(rank 1\) has 6"):
        run_ranks(2, _other_outputs)


def _repeated_batch(rank: int) -> None:
    config = CodistillConfig(models=2, exchange="checkpoints", period=1, lag=0, timeout=20.0)
    groups = ModelGroups.create(config)
    model = CodistillParallel(build(rank), groups, config)
    model.exchange.round += rank
    model.after_update()


def test_another_round_is_an_error_that_names_both() -> None:
    with pytest.raises(RankError, match=r"is in exchange \d of update 1, but model \d \(rank \d\) is in exchange"):
        run_ranks(2, _repeated_batch)


def _leaves(rank: int, options: dict[str, Any], updates: list[int]) -> dict[str, Any]:
    return train(rank, options, updates[rank])


@pytest.mark.parametrize(
    "options",
    [{"models": 3}, {"models": 3, "exchange": "checkpoints", "period": 3, "lag": 0}],
    ids=["predictions", "checkpoints"],
)
def test_models_of_other_lengths_never_hang_a_peer(options: dict[str, Any]) -> None:
    results = run_ranks(3, _leaves, options | {"timeout": 20.0}, [4, 12, 9])
    last_terms = [result["terms"][-1][1] for result in results]
    if options.get("exchange") == "checkpoints":
        assert last_terms == [2, 2, 2], "the last teacher of a model that left goes on teaching"
    else:
        assert last_terms == [2, 0, 1], "whoever left is no peer any more"
        assert [peers for _, peers in results[1]["terms"]] == [2] * 4 + [1] * 5 + [0] * 3


def _falls_silent(rank: int, exchange: str, heard: str) -> None:
    """Rank 1 neither answers nor ends before rank 0 has ended with its error."""
    options: dict[str, Any] = {"models": 2, "timeout": 3.0}
    if exchange == "checkpoints":
        options |= {"exchange": exchange, "period": 2, "lag": 1}
    config = CodistillConfig(**options)
    groups = ModelGroups.create(config)
    model = CodistillParallel(build(rank), groups, config)
    try:
        for update in range(10):
            if rank == 1 and update == 3:
                Path(heard).read_bytes()  # until rank 0 has written
                os._exit(0)
            x, _ = batches(update, 0, 0, coordinated=True)
            model.codistill(x, model(x))
            model.after_update()
    finally:
        if rank == 0:
            Path(heard).write_bytes(b"")


@pytest.mark.slow
@pytest.mark.parametrize("exchange", ["predictions", "checkpoints"])
def test_a_silent_peer_is_named_with_the_step(exchange: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "heard")
    with pytest.raises(RankError) as error:
        run_ranks(2, _falls_silent, exchange, str(tmp_path / "heard"))
    text = error.value.errors[0]
    assert "PeerTimeoutError" in text and "model 1 (rank 1)" in text and "model 0 (rank 0)" in text
    assert "--codistill-timeout" in text and "update 3" in text + " update 3" * (exchange == "checkpoints")


def _twins(rank: int) -> list[str]:
    config = CodistillConfig(models=2)
    groups = ModelGroups.create(config)
    torch.manual_seed(0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        CodistillParallel(Net(), groups, config)
    return [str(w.message) for w in caught if issubclass(w.category, IdenticalModelsWarning)]


def test_models_that_start_the_same_are_warned_of() -> None:
    for texts in run_ranks(2, _twins):
        assert len(texts) == 1 and "models 0, 1 start with the same weights" in texts[0]


def _other_options(rank: int) -> None:
    config = CodistillConfig(models=2, alpha=1.0 + rank)
    CodistillParallel(build(rank), ModelGroups.create(config), config)


def test_other_options_on_another_rank_are_refused() -> None:
    with pytest.raises(RankError, match=r"ranks 0 and 1 differ: alpha: 1\.0 and 2\.0"):
        run_ranks(2, _other_options)


def test_models_need_processes() -> None:
    with pytest.raises(ValueError, match="start with torchrun --nproc-per-node 2"):
        ModelGroups.create(CodistillConfig(models=2))


def _resumes(rank: int, options: dict[str, Any], stop: int, updates: int) -> tuple[bool, bool]:
    """Train through, and train with a stop at which everything is carried over in a state."""
    config = CodistillConfig(**options)
    states = []
    for stops in [updates], [stop, updates]:
        saved: dict[str, Any] | None = None
        for end in stops:
            groups = ModelGroups.create(config)
            module = build(groups.model_index)
            model = CodistillParallel(module, groups, config)
            optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
            if saved is not None:
                model.load_state_dict(saved["model"])
                optimizer.load_state_dict(saved["optimizer"])
                model.load_codistill_state_dict(saved["codistill"])
            for update in range(model.updates, end):
                x, y = batches(update, groups.model_index, groups.data_rank, coordinated=config.coordinated)
                logits = model(x)
                loss = F.cross_entropy(logits, y) + model.codistill(x, logits).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                model.after_update()
            saved = {
                "model": {name: tensor.clone() for name, tensor in model.state_dict().items()},
                "optimizer": optimizer.state_dict(),
                "codistill": model.codistill_state_dict(),
            }
        states.append(saved)
    first, second = states
    same_traffic = first["codistill"]["exchange"]["traffic"] == second["codistill"]["exchange"]["traffic"]
    return _same_bits(first["model"], second["model"]), same_traffic


@pytest.mark.parametrize("stop", [5, 7, 9], ids=["begin of a flight", "in flight", "after it"])
def test_resuming_gives_the_same_bits(stop: int) -> None:
    options = {"models": 2, "exchange": "checkpoints", "period": 5, "lag": 3}
    assert run_ranks(4, _resumes, options, stop, 14) == [(True, True)] * 4


def test_resuming_predictions_gives_the_same_bits() -> None:
    assert run_ranks(2, _resumes, {"models": 2}, 5, 9) == [(True, True)] * 2


def test_a_state_of_other_options_is_refused() -> None:
    model = CodistillParallel(build(0), ModelGroups.create(CodistillConfig()), CodistillConfig())
    other = CodistillParallel(build(0), ModelGroups.create(CodistillConfig()), CodistillConfig(alpha=0.5))
    with pytest.raises(ValueError, match=r"other codistillation options \(alpha: 0\.5 then, 1\.0 now\)"):
        model.load_codistill_state_dict(other.codistill_state_dict())


def test_what_is_of_the_place_alone_may_differ_on_resume() -> None:
    def model(**options: Any) -> CodistillParallel:
        config = CodistillConfig(**options)
        return CodistillParallel(build(0), ModelGroups.create(config), config)

    other = model(timeout=7.0, check_every=3, settings="x.yaml")
    model().load_codistill_state_dict(other.codistill_state_dict())


def _resumes_on_fewer_ranks(rank: int) -> None:
    config = CodistillConfig(models=2)
    model = CodistillParallel(build(rank), ModelGroups.create(config), config)
    model.load_codistill_state_dict(model.codistill_state_dict() | {"ranks_a_model": 2})


def test_a_state_of_another_number_of_ranks_is_refused() -> None:
    with pytest.raises(RankError, match=r"another number of ranks a model \(2 then, 1 now\): resume it"):
        run_ranks(2, _resumes_on_fewer_ranks)


def _skips(rank: int, options: dict[str, Any]) -> tuple[int, int]:
    """Model 1's optimizer skips every third step, as fp16 does at an overflow."""
    config = CodistillConfig(**options)
    groups = ModelGroups.create(config)
    model = CodistillParallel(build(rank), groups, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    steps = peers = 0
    for update in range(12):
        x, y = batches(update, 0, 0, coordinated=True)
        logits = model(x)
        term = model.codistill(x, logits)
        optimizer.zero_grad()
        (F.cross_entropy(logits, y) + term.loss).backward()
        if rank == 0 or update % 3:
            optimizer.step()
            steps += 1
        model.after_update()
        peers += term.peers
    model.leave()
    model.close()
    return steps, peers


@pytest.mark.parametrize(
    ("options", "terms"),
    [({"models": 2}, 12), ({"models": 2, "exchange": "checkpoints", "period": 4, "lag": 1}, 7)],
    ids=["predictions", "checkpoints"],
)
def test_a_model_that_skips_updates_stays_with_its_peer(options: dict[str, Any], terms: int) -> None:
    assert run_ranks(2, _skips, options | {"timeout": 20.0}) == [(12, terms), (8, terms)]


def _late(rank: int, policy: str, until: int, begun: str) -> list[tuple[int, float | None]]:
    """Model 1 comes to the exchange after update 4 when model 0 has begun update ``until``.

    Returns:
        peers and staleness in each update.
    """
    options = {"models": 2, "exchange": "checkpoints", "period": 2, "lag": 0, "stale_policy": policy}
    config = CodistillConfig(**options, max_staleness=4, timeout=30.0)
    groups = ModelGroups.create(config)
    model = CodistillParallel(build(groups.model_index), groups, config)
    seen = []
    for update in range(14):
        if groups.model_index == 1 and update == 3:
            Path(f"{begun}{groups.data_rank}").read_bytes()
        if groups.model_index == 0 and update == until:
            Path(f"{begun}{groups.data_rank}").write_bytes(b"")
        x, _ = batches(update, groups.model_index, groups.data_rank, coordinated=False)
        term = model.codistill(x, model(x))
        seen.append((term.peers, model.report().get(f"staleness/{1 - groups.model_index}")))
        model.after_update()
    model.leave()
    model.close()
    return seen


@pytest.mark.parametrize(("policy", "until"), [("wait", 5), ("go_on", 7), ("drop", 7)])
def test_late_weights_and_the_policies(policy: str, until: int, tmp_path: Path) -> None:
    for rank in range(2):
        os.mkfifo(tmp_path / f"begun{rank}")
    first, second, *_ = run_ranks(4, _late, policy, until, str(tmp_path / "begun"))
    assert [peers for peers, _ in first] == [peers for peers, _ in second], "the ranks of a model swap together"
    ages = [age for _, age in first if age is not None]
    if policy == "wait":
        assert max(ages) <= 5, "4 updates old, and the one that is trained now"
    elif policy == "go_on":
        assert first[until] == (1, 5), "late weights are not waited for"
    else:
        assert first[until] == (0, None) and all(age <= 4 for age in ages)


def _teacher_option(rank: int, options: dict[str, Any]) -> bool:
    config = CodistillConfig(models=2, exchange="checkpoints", period=1, lag=0, **options)
    groups = ModelGroups.create(config)
    module = build(groups.model_index)
    model = CodistillParallel(module, groups, config)
    x, _ = batches(0, 0, 0, coordinated=True)
    for _ in range(2):  # the weights of a compiled teacher are replaced, too
        model.after_update()
        term = model.codistill(x, model(x))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.mul_(1.5)
    model.after_update()
    term = model.codistill(x, model(x))
    teacher = model.exchange.teachers[1 - rank]
    assert (teacher._forward is not teacher.module) == config.teacher_compile
    reference = divergence(model(x), teacher.module(x), config.divergence)
    model.leave()
    model.close()
    return bool(torch.isclose(term.divergence, reference.detach(), rtol=0.05, atol=1e-3))


@pytest.mark.parametrize(
    "options",
    [
        {"teacher_precision": "bfloat16"},
        {"teacher_device": "cpu"},
        {"encoding": "half"},
        pytest.param(
            {"teacher_compile": True},
            marks=[
                pytest.mark.skipif(shutil.which(os.environ.get("CXX", "g++")) is None, reason="no C++ compiler"),
                pytest.mark.slow,
            ],
        ),
    ],
    ids=str,
)
def test_options_of_teachers(options: dict[str, Any]) -> None:
    assert run_ranks(2, _teacher_option, options) == [True, True]


def _teacher_dtypes(rank: int, options: dict[str, Any], students: list[torch.dtype | None]) -> list[torch.dtype]:
    """The type that the teacher computes in, beside students of several precisions."""
    config = CodistillConfig(models=2, exchange="checkpoints", period=1, lag=0, **options)
    model = CodistillParallel(build(rank), ModelGroups.create(config), config)
    model.after_update()
    seen: list[torch.dtype] = []
    model.exchange.teachers[1 - rank].module.last.register_forward_hook(lambda _m, _i, out: seen.append(out.dtype))
    x, _ = batches(0, 0, 0, coordinated=True)
    for dtype in students:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            logits = model(x)
        model.codistill(x, logits.float())
    model.leave()
    model.close()
    return seen


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [torch.float32, torch.bfloat16, torch.float32]),
        ({"teacher_precision": "float32"}, [torch.float32] * 3),
        ({"teacher_precision": "bfloat16"}, [torch.bfloat16] * 3),
    ],
    ids=["auto", "float32", "bfloat16"],
)
def test_a_teacher_computes_as_its_student_or_as_it_is_told(options: dict[str, Any], expected: list[Any]) -> None:
    students = [None, torch.bfloat16, None]
    assert run_ranks(2, _teacher_dtypes, options, students) == [expected, expected]
