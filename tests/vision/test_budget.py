"""The length of a run: the four set-ups of the talk's table, and the paper's own schedules (sections 3 and 4)."""

import argparse
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import pytest

from tests.ranks import run_ranks
from tests.vision.small import BATCHES_AN_EPOCH, PLAIN, run, run_rank
from vision import step
from vision.budget import Budget
from vision.hyperparameters import HyperParameters, lr_decays
from vision.options import build_parser, parse_options
from vision.step import Step

IMAGES = 1_281_167
IMAGENET = ["--data-path", "somewhere"]
WORKERS = 8


def planned(models: int, ranks: int, *options: str, images: int = IMAGES) -> tuple[argparse.Namespace, Budget]:
    """The budget of n models of so many ranks each."""
    args = parse_options(build_parser(), [*IMAGENET, *options]).args
    groups: Any = SimpleNamespace(num_models=models, world_size=models * ranks, data_size=ranks)
    rank_images: Any = range(-(-images // ranks))
    return args, Budget.of(args, groups, rank_images)


def hyper(args: argparse.Namespace, budget: Budget) -> HyperParameters:
    return HyperParameters.of(args, budget.horizon(lr_decays(args, budget.horizon())), budget.batch)


def test_the_talks_table() -> None:
    """Workers, updates a worker and in total, in units of N and M; whole epochs are rounded up to a batch."""
    _, a = planned(1, WORKERS)
    _, b1 = planned(1, 2 * WORKERS)
    _, earlier = planned(2, WORKERS)
    _, paper = planned(2, WORKERS, "--budget", "equal-updates")
    n, m = a.workers, a.updates
    assert [budget.workers / n for budget in (b1, earlier, paper)] == [2, 2, 2]
    assert [budget.updates / m for budget in (b1, earlier, paper)] == pytest.approx([0.5, 1, 0.5], rel=2e-4)
    totals = [budget.to_dict()["updates_in_total"] / (n * m) for budget in (b1, earlier, paper)]
    assert totals == pytest.approx([1, 2, 1], rel=2e-4)
    images = [budget.images(budget.updates) / a.images(m) for budget in (b1, earlier, paper)]
    assert images == pytest.approx([1, 2, 1], rel=1e-5)


WARM = ["--lr", "0.2", "--lr-warmup-epochs", "5", "--lr-warmup-decay", "0.5"]
ADJUSTED = ["--weight-decay", "1e-4,1e-5,0"]


@pytest.mark.parametrize(
    ("options", "places"),
    [
        ([], [15, 30, 40]),
        (["--lr-milestones", "18of45", "38of45", "44of45"], [18, 38, 44]),
        (["--lr-milestones", "36", "76", "88"], [18, 38, 44]),
    ],
    ids=["out of the box", "of the run's own epochs", "of the budget's epochs"],
)
def test_the_papers_schedules_for_half_the_epochs(options: list[str], places: list[int]) -> None:
    args, budget = planned(2, 8, "--budget", "equal-updates", *WARM, *ADJUSTED, *options)
    an_epoch = budget.updates_an_epoch
    assert (budget.epochs, budget.updates, an_epoch) == (45, 45 * 5005, 5005)
    at = hyper(args, budget)
    assert [at.lr(0), at.lr(1.25 * an_epoch), at.lr(2.5 * an_epoch)] == pytest.approx([0.1, 0.15, 0.2])
    for place, lr, decay in zip(places, [0.02, 0.002, 0.0002], [1e-5, 0, 0], strict=True):
        before, after = place * an_epoch - 1, place * an_epoch
        assert at.lr(before) == pytest.approx(10 * lr) and at.lr(after) == pytest.approx(lr)
        assert at.weight_decay(after) == decay
    assert at.weight_decay(places[0] * an_epoch - 1) == 1e-4


def test_the_same_places_for_all_reduce() -> None:
    args, budget = planned(1, 16, *WARM, *ADJUSTED, "--lr-milestones", "18of45", "38of45", "44of45")
    assert lr_decays(args, budget.horizon()) == tuple(2503 * epoch for epoch in (36, 76, 88))
    assert hyper(args, budget).weight_decay(2503 * 36) == 1e-5


@pytest.mark.parametrize(
    ("ranks", "base", "start", "warmup"),
    [(8, 0.1, 0.1, 0), (16, 0.2, 0.1, 5), (256, 3.2, 0.1, 5), (4, 0.05, 0.1, 0)],
)
def test_the_learning_rate_of_goyal(ranks: int, base: float, start: float, warmup: float) -> None:
    """0.1 kn / 256, from 0.1 over 5 epochs where kn > 256 (sections 2.1, 2.2, 5.1)."""
    args, budget = planned(1, ranks, "--preset", "goyal")
    assert budget.batch == 32 * ranks
    at = hyper(args, budget)
    assert (at.rates.base, at.rates.warmup_start, at.rates.warmup_epochs) == (pytest.approx(base), start, warmup)
    assert at.lr(0) == pytest.approx(start if warmup else base)
    lrs = [at.lr(epoch * budget.updates_an_epoch) for epoch in (2.5, 5, 29.99, 30, 60, 80)]
    middle = (start + base) / 2 if warmup else base
    assert lrs == pytest.approx([middle, base, base, base / 10, base / 100, base / 1000])


def test_accumulated_mini_batches_are_one_batch() -> None:
    _, whole = planned(1, 8, "-b", "64")
    args, parts = planned(1, 8, "-b", "32", "--accumulate", "2", "--preset", "goyal")
    assert (parts.batch, parts.updates, parts.updates_an_epoch) == (512, whole.updates, whole.updates_an_epoch)
    assert parts.images(parts.updates) == whole.images(whole.updates)
    assert hyper(args, parts).rates.base == pytest.approx(0.2)


@pytest.mark.parametrize(("epochs", "updates"), [("45", 113), ("44", 110), ("0.1", 1), ("2.6", 7)])
def test_fractions_of_epochs_are_updates(epochs: str, updates: int) -> None:
    """5 batches an epoch: 22.5 epochs are 112.5 updates, and half an update is one."""
    _, budget = planned(2, 1, "--budget", "equal-updates", "--epochs", epochs, "-b", "8", images=38)
    assert budget.updates == updates
    whole, rest = divmod(updates, 5)
    assert budget.images(updates) == 2 * (38 * whole + 8 * rest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lr-milestones", "60", "30"], "must be ascending and positive, not 60ep 30ep"),
        (["--lr-milestones", "30", "30of90"], "must be ascending"),
        (["--lr-milestones", "0"], "must be ascending and positive"),
        (["--lr-milestones", "999999999up"], r"--lr-milestones 999999999up has no effect in \d+ updates"),
        (["--weight-decay", "3,2,1,0,0"], "--weight-decay 3,2,1,0,0: 5 values need 4 decays .* but it has 3 in this"),
        (["--label-smoothing", "0.1~0@91ep"], "--label-smoothing 0.1~0@91ep: 91ep is never reached"),
        (["--epochs", "20", "--weight-decay", "1e-4,0"], "where the learning rate decays, but it has no decays"),
        (["--lr-scheduler", "cosineannealinglr", "--wd", "1e-4,0"], "but it has no decays in this run: give"),
    ],
)
def test_schedules_that_do_not_fit_the_run_are_refused(options: list[str], message: str) -> None:
    args, budget = planned(1, 8, *options)
    with pytest.raises(ValueError, match=message):
        hyper(args, budget)


def test_two_and_a_half_epochs_by_halves(tmp_path: Path) -> None:
    """5 epochs for two models, validated every second epoch and at the end."""
    options = [*PLAIN, "--epochs", "5", "--budget", "equal-updates", "--eval-every", "2", "--codistill-models", "2"]
    run_ranks(2, run_rank, [*options, "--codistill-alpha", "0~1@50%", "--output-dir", str(tmp_path)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    updates = 13  # 12.5
    assert summary["updates"] == updates
    images = 2 * (2 * 38 + 3 * 8)
    assert summary["work"] == {
        "budget": "equal-updates",
        "models": 2,
        "workers": 2,
        "batch_of_a_model": 8,
        "epochs_of_a_model": 2.6,
        "updates_of_a_worker": updates,
        "updates_in_total": 2 * updates,
        "images": images,
    }
    for model in summary["models"]:
        assert [(record["update"], record["epoch"]) for record in model["history"]] == [(10, 2), (13, 2.6)]
        first, last = model["history"]
        assert first["alpha"] == 1 and last["images"] == images
        assert 0 < first["distance_from_start"] < last["distance_from_start"]
        assert last["agreement"] == summary["agreement"] and last["ensemble_top1"] == summary["ensemble_top1"]
        assert last["bytes_sent"] == last["bytes_received"] > (76 + 24) * 10 * 4  # predictions, and headers
        assert last["staleness/" + str(1 - model["model"])] == 0
    keys = {key for line in (tmp_path / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    wanted = "train/lr train/weight_decay train/label_smoothing train/alpha train/loss train/codistill_loss "
    wanted += "staleness/1 train/distance_from_start train/bytes_sent valid/agreement valid/ensemble_top1 valid/top1"
    assert {f"model0/{name}" for name in wanted.split()} <= keys


def test_weight_decay_and_label_smoothing_are_set_at_every_update(tmp_path: Path) -> None:
    options = ["--lr-scheduler", "multisteplr", "--lr-milestones", "1", "6up", "--weight-decay", "3e-3,2e-3,0"]
    options += ["--norm-weight-decay", "1e-3,0@4up", "--label-smoothing", "0.2~0@10up", "--print-freq", "1"]
    applied: list[list[tuple[float, float]]] = []
    finish = Step._finish

    def finish_and_look(self: Step) -> None:
        applied.append([(group["lr"], group["weight_decay"]) for group in self.optimizer.param_groups])
        finish(self)

    loss = mock.Mock(wraps=step.F.cross_entropy)
    with mock.patch.object(Step, "_finish", finish_and_look), mock.patch.object(step.F, "cross_entropy", loss):
        run([*PLAIN, *options, "--max-updates", "8", "--output-dir", str(tmp_path)])
    rates, decays = [0.05] * BATCHES_AN_EPOCH + [0.005, 5e-4, 5e-4], [3e-3] * BATCHES_AN_EPOCH + [2e-3, 0, 0]
    of_norms = [1e-3] * 4 + [0] * 4
    assert len(applied) == 8
    for update, (others, norms) in enumerate(applied):
        assert others == pytest.approx((rates[update], decays[update])) and norms[1] == of_norms[update]
    smoothed = [call.kwargs["label_smoothing"] for call in loss.call_args_list if "label_smoothing" in call.kwargs]
    assert smoothed == pytest.approx([0.2 - 0.02 * update for update in range(8)])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if "model0/train/top1" in line]
    assert [line["model0/train/weight_decay"] for line in trained] == [3e-3] * BATCHES_AN_EPOCH + [2e-3, 0, 0]
    smoothing = [line["model0/train/label_smoothing"] for line in trained]
    assert smoothing == pytest.approx([0.2 - 0.02 * update for update in range(8)])
