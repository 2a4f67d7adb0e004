"""One update: accumulated, averaged, compiled; against closed forms and a second implementation."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import nn

from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups
from codistill_ext.schedules import Curve
from tests.ranks import run_ranks
from tests.states import assert_same
from tests.vision.small import PLAIN, final_state, run
from vision import checkpointing
from vision.device import Place
from vision.ema import build_ema
from vision.hyperparameters import HyperParameters, LearningRates
from vision.models import build_model
from vision.optim import build_optimizer
from vision.options import build_parser, parse_options
from vision.step import Step
from vision.sync_bn import check_sync_bn, with_sync_bn

CPU = Place.from_args(parse_options(build_parser(), PLAIN).args)
LR, DECAY = 0.5, 0.75


def _constant(value: float) -> Curve:
    return Curve(((0.0, value, False),))


def _step(ema: bool = False, place: Place = CPU) -> Step:
    """On a net without BatchNorm, whose mini-batches do not feel how they were split."""
    config = CodistillConfig()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
    model = CodistillParallel(net, ModelGroups.create(config), config)
    rates = LearningRates(base=LR, warmup_start=LR, warmup_epochs=0)
    hyper = HyperParameters(
        rates=rates,
        lr=lambda update: LR,
        weight_decay=_constant(0.1),
        norm_weight_decay=_constant(0),
        label_smoothing=_constant(0.1),
    )
    average = build_ema(model.plain, DECAY if ema else None)
    return Step(
        model, build_optimizer(model.plain, opt="sgd_nesterov", momentum=0.9), hyper, place, mock.Mock(), average
    )


def _accumulated(rank: int, splits: list[list[int]]) -> list[dict[str, Any]]:
    """Weights after two updates of 6 samples a rank, for each way to split them into mini-batches."""
    generator = torch.Generator().manual_seed(1 + rank)
    x, y = torch.randn(2, 6, 5, generator=generator), torch.randint(3, (2, 6), generator=generator)
    weights = []
    for sizes in splits:
        step = _step()
        for update in range(2):
            parts = list(zip(x[update].split(sizes), y[update].split(sizes), strict=True))
            for index, (images, labels) in enumerate(parts):
                share, last = len(labels) / 6, index == len(parts) - 1
                step.train(images, labels, update=update, share=share, first=index == 0, last=last)
        assert step.model.updates == 2
        weights.append(step.model.state_dict())
    return weights


@pytest.mark.parametrize("ranks", [1, 2])
def test_mini_batches_of_any_size_add_up_to_their_whole(ranks: int) -> None:
    splits = [[6], [4, 2], [1, 2, 3]]
    results = run_ranks(ranks, _accumulated, splits) if ranks > 1 else [_accumulated(0, splits)]
    for whole, *others in results:
        for other in others:
            torch.testing.assert_close(other, whole, rtol=1e-5, atol=1e-6)
    if ranks == 2:
        assert_same(*results)
        single = _accumulated(0, splits)
        assert not torch.equal(single[0]["0.weight"], results[0][0]["0.weight"]), "gradients of both ranks"


def test_the_average_of_the_weights_in_closed_form() -> None:
    step = _step(ema=True)
    expected: dict[str, torch.Tensor] = {}
    for update in range(4):
        step.train(torch.randn(4, 5), torch.tensor([0, 1, 2, 0]), update=update, share=1, first=True, last=True)
        now = copy.deepcopy(step.model.state_dict())
        expected = {name: DECAY * expected.get(name, now[name]) + (1 - DECAY) * now[name] for name in now}
    assert step.ema is not None
    torch.testing.assert_close(dict(step.ema.module.state_dict()), expected)


def test_an_overflow_in_float16_skips_the_step_and_halves_the_scale() -> None:
    step = _step(place=replace(CPU, autocast_dtype=torch.float16))
    assert step.scaler.is_enabled()
    scale, seen = 2.0**20, []
    step.scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    for update in range(8):
        before = copy.deepcopy(step.model.state_dict())
        step.train(torch.ones(4, 5), torch.tensor([0, 1, 2, 0]), update=update, share=1, first=True, last=True)
        skipped = all(torch.equal(before[name], tensor) for name, tensor in step.model.state_dict().items())
        assert skipped == (step.scaler.get_scale() == scale / 2)
        scale = step.scaler.get_scale()
        seen.append(skipped)
    assert seen[0] and not seen[-1] and step.model.updates == 8, "an update that is skipped counts"


def test_best_weights_are_those_of_the_best_validation(tmp_path: Path) -> None:
    options = ["--ema-decay", "0.5", "--epochs", "4", "--output-dir", str(tmp_path)]
    saved: list[dict[str, torch.Tensor]] = []
    averages: list[dict[str, torch.Tensor]] = []

    def keep(path: Path, module: nn.Module, save: Any = checkpointing.save_weights) -> None:
        (averages if "ema" in path.name else saved).append(copy.deepcopy(module.state_dict()))
        save(path, module)

    with mock.patch.object(checkpointing, "save_weights", keep):
        run([*PLAIN, *options])
    history = final_state(tmp_path)["history"]
    for prefix, states in [("", saved), ("ema_", averages)]:
        tops = [record[f"{prefix}top1"] for record in history]
        for name, state in [("best", states[tops.index(max(tops))]), ("last", states[-1])]:
            loaded = torch.load(tmp_path / f"model0/{prefix}{name}.pt", weights_only=True)
            assert_same(dict(loaded), dict(state))


def test_compiled_training_is_wired_in_place(tmp_path: Path) -> None:
    """With a compiler that changes nothing: the same names, and the same bits, resumed as well."""
    compile_module, compiled = nn.Module.compile, []

    def compile_eagerly(self: nn.Module) -> None:
        compiled.append(self)
        compile_module(self, backend="eager")

    options = [*PLAIN, "--max-updates", "3", "--ema-decay", "0.5", "--output-dir"]
    run([*options, str(tmp_path / "plain")])
    with mock.patch.object(nn.Module, "compile", compile_eagerly):
        run([*options, str(tmp_path / "compiled"), "--compile"])
        assert len(compiled) == 1
        left = [*options, str(tmp_path / "left"), "--compile", "--resume", "auto"]
        run([*left, "--max-updates", "2"])
        run(left)
        assert len(compiled) == 3
    plain = final_state(tmp_path / "plain")
    for name in ("compiled", "left"):
        through = final_state(tmp_path / name)
        for key in ("model", "optimizer", "ema", "random"):
            assert_same(plain[key], through[key], f"{name}: {key}")


def _synchronised(rank: int) -> bool:
    config = CodistillConfig(models=2)
    groups = ModelGroups.create(config)
    plain = build_model("resnet8_stride2", num_classes=10, image_sizes=[32])
    names, norms = set(plain.state_dict()), sum(isinstance(layer, nn.BatchNorm2d) for layer in plain.modules())
    module = with_sync_bn(plain, groups)
    layers = [layer for layer in module.modules() if isinstance(layer, nn.SyncBatchNorm)]
    copied = [layer for layer in copy.deepcopy(module).modules() if isinstance(layer, nn.SyncBatchNorm)]
    assert len(layers) == len(copied) == norms > 0 and set(module.state_dict()) == names
    assert not any(a is b or a.weight is b.weight for a, b in zip(layers, copied, strict=True))
    module.eval()(torch.randn(2, 3, 32, 32))
    return all(layer.process_group is groups.model_group for layer in layers + copied)


def test_batch_statistics_are_shared_inside_a_model_alone() -> None:
    assert run_ranks(4, _synchronised) == [True] * 4


def test_shared_batch_statistics_are_refused_where_they_cannot_be(tmp_path: Path) -> None:
    groups = ModelGroups.create(CodistillConfig())
    with pytest.raises(ValueError, match="--sync-bn needs GPUs"):
        run([*PLAIN, "--sync-bn", "--output-dir", str(tmp_path)])
    with pytest.raises(ValueError, match="--sync-bn has no effect with one process a model"):
        check_sync_bn(groups, torch.device("cuda"))
