"""Runs: what they write, that weight 0 is plain training, and that stopping changes nothing."""

import json
import os
import shutil
from pathlib import Path
from unittest import mock

import pytest
import torch
import torchvision

from codistill_ext.job.storage import StorageError
from tests.commands import run as run_command
from tests.commands import torchrun
from tests.exchange import filesystems
from tests.ranks import run_ranks
from tests.states import assert_same, without
from tests.vision.small import BATCHES_AN_EPOCH, PLAIN, final_state, run, run_rank, write_folders
from vision.checkpointing import check_identity
from vision.export import export, load_trained
from vision.report import Report
from vision.run import _of_history
from vision.train import main
from vision.trainer import Trainer

CIFAR_TEST = ["--dataset", "cifar10", "--model", "resnet8_stride2", "-b", "8"]
TWO = [*PLAIN, "--codistill-models", "2"]
CHECKPOINTS = ["--codistill-exchange", "checkpoints", "--codistill-period", "4", "--codistill-lag", "3"]


def _stop_at(update: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run dies before this update."""
    original = Trainer._train_batch

    def train_batch(self: Trainer, images: torch.Tensor, labels: torch.Tensor) -> None:
        if self.progress.update == update:
            raise KeyboardInterrupt
        original(self, images, labels)

    monkeypatch.setattr(Trainer, "_train_batch", train_batch)


def test_one_model_resumes_bit_for_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run([*PLAIN, "--output-dir", str(tmp_path / "whole")])
    options = [*PLAIN, "--output-dir", str(tmp_path / "stopped"), "--resume", "auto"]
    options += ["--save-every-updates", "3"]
    for update in (1, 4, 7, 11):  # before any checkpoint, within epochs, after an epoch's end
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            _stop_at(update, patch)
            run(options)
    run(options)
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "stopped"))


@pytest.mark.parametrize("extra", [[], CHECKPOINTS], ids=["predictions", "checkpoints"])
def test_two_models_resume_bit_for_bit(extra: list[str], tmp_path: Path) -> None:
    options = [*TWO, *extra]
    whole = [*options, "--max-updates", "9", "--output-dir", str(tmp_path / "whole")]
    stopped = [*options, "--output-dir", str(tmp_path / "stopped"), "--resume", "auto", "--max-updates"]
    run_ranks(2, run_rank, whole, [*stopped, "4"], [*stopped, "9"])
    for model in (0, 1):
        assert_same(final_state(tmp_path / "whole", model), final_state(tmp_path / "stopped", model))


def test_a_model_on_three_ranks_resumes_bit_for_bit(tmp_path: Path) -> None:
    """Of three numbers the order of summation matters, and DDP changes it after its first update."""
    whole = [*PLAIN, "--max-updates", "6", "--output-dir", str(tmp_path / "whole")]
    stopped = [*PLAIN, "--output-dir", str(tmp_path / "stopped"), "--resume", "auto", "--max-updates"]
    run_ranks(3, run_rank, whole, [*stopped, "3"])
    run_ranks(3, run_rank, [*stopped, "6"])  # other processes, as after a kill
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "stopped"))


def test_weight_0_is_plain_training_bit_for_bit(tmp_path: Path) -> None:
    run([*PLAIN, "--output-dir", str(tmp_path / "plain")])
    run_ranks(2, run_rank, [*TWO, "--codistill-alpha", "0", "--output-dir", str(tmp_path / "zero")])
    plain, zero = final_state(tmp_path / "plain"), final_state(tmp_path / "zero")
    for state in plain, zero:  # what is of all models
        state["history"] = without(state["history"], ("images", "agreement", "ensemble_top1"))
    for key in ("model", "optimizer", "epoch_averages", "history", "random"):
        assert_same(plain[key], zero[key], key)
    other = final_state(tmp_path / "zero", model=1)["model"]
    assert not torch.equal(other["conv1.weight"], zero["model"]["conv1.weight"])


def test_two_models_on_four_ranks_and_their_summary(tmp_path: Path) -> None:
    run_ranks(4, run_rank, [*TWO, "--epochs", "2", "--output-dir", str(tmp_path)])
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert len(summary["models"]) == 2 and summary["updates"] == 2 * 3  # 19 samples a rank
    assert summary["reported_model"] == 0
    assert summary["mean_top1"] == pytest.approx(sum(m["top1"] for m in summary["models"]) / 2)
    assert 0 <= summary["agreement"] <= 1 and 0 <= summary["ensemble_top1"] <= 100
    hits = [model["top1"] * 21 / 100 for model in summary["models"]]
    assert hits == pytest.approx([round(hit) for hit in hits], abs=1e-4)  # every picture counted once
    # 4 ranks send 38 x 10 logits of 4 bytes to one peer, twice over 19-sample shares of 2 ranks.
    assert summary["bytes"]["sent/predictions"] == 2 * 2 * 38 * 10 * 4
    for model in (0, 1):
        assert len(summary["models"][model]["history"]) == 2
        assert (tmp_path / f"model{model}" / "checkpoint.pt").exists()
    keys = {key for line in (tmp_path / "metrics.jsonl").read_text().splitlines() for key in json.loads(line)}
    assert {"model0/train/codistill_loss", "model1/train/loss", "model1/valid/top1"} <= keys


def test_models_saved_at_different_updates_resume_at_the_common_one(tmp_path: Path) -> None:
    """Killed after model 0 was saved and before model 1 was."""
    options = [*TWO, "--output-dir", str(tmp_path), "--resume", "auto", "--max-updates"]
    run_ranks(2, run_rank, [*options, "4"])
    shutil.copytree(tmp_path / "model1", tmp_path / "earlier")
    run_ranks(2, run_rank, [*options, "5"])
    expected = final_state(tmp_path, 0)
    assert expected["update"] == 5
    shutil.rmtree(tmp_path / "model1")
    (tmp_path / "earlier").rename(tmp_path / "model1")
    run_ranks(2, run_rank, [*options, "5"])
    assert_same(final_state(tmp_path, 0), expected)
    shutil.rmtree(tmp_path / "model1")
    with pytest.raises(AssertionError, match=r"were saved at different updates .*model 1: update 0 in the beginning"):
        run_ranks(2, run_rank, [*options, "5"])


def test_resume_of_another_run_names_what_differs(tmp_path: Path) -> None:
    run([*PLAIN, "--max-updates", "2", "--output-dir", str(tmp_path)])
    with pytest.raises(ValueError, match="already holds a run: continue it with --resume auto"):
        run([*PLAIN, "--output-dir", str(tmp_path)])
    with pytest.raises(ValueError, match="weight_decay: 0.0001 then, 0.5 now"):
        run([*PLAIN, "--output-dir", str(tmp_path), "--resume", "auto", "--wd", "0.5"])
    with pytest.raises(ValueError, match="there is nothing to resume"):
        run([*PLAIN, "--output-dir", str(tmp_path / "new"), "--resume", str(tmp_path / "nowhere")])
    with pytest.raises(ValueError, match="model: 'resnet8_stride2' then, 'resnet20' now"):
        run(["--dataset", "cifar10", "--model", "resnet20", "--test-only", "--resume", str(tmp_path)])


def test_a_run_of_before_an_option_was_made_with_what_is_now_its_default() -> None:
    then = {"dataset": "imagenet", "model": "resnet50", "classes": 2}
    now = then | {"stride_in": "3x3", "opt": "sgd_nesterov"}
    check_identity(then, now, test_only=False)
    with pytest.raises(ValueError, match="opt: 'sgd_nesterov' then, 'sgd' now"):
        check_identity(then, now | {"opt": "sgd"}, test_only=False)
    with pytest.raises(ValueError, match="stride_in: '3x3' then, '1x1' now"):
        check_identity(then, now | {"stride_in": "1x1"}, test_only=True)


@pytest.mark.slow
def test_a_run_with_the_stride_in_the_1x1_and_plain_momentum(tmp_path: Path) -> None:
    """Trained beside a peer with its stride in the 3x3, by weights; validated again and exported as it was trained."""
    write_folders(tmp_path / "data")
    (tmp_path / "settings.yaml").write_text("1: {stride_in: 3x3}\n")
    folder = ["--data-path", str(tmp_path / "data"), "--model", "resnet50", "--stride-in", "1x1"]
    folder += ["--val-resize-size", "36", "--val-crop-size", "32", "-b", "4", "-j", "0", "--device", "cpu"]
    options = [*folder, "--train-crop-size", "32", "--epochs", "2", "--lr", "0.01", "--opt", "sgd", "--momentum", "0"]
    options += ["--codistill-models", "2", "--codistill-settings", str(tmp_path / "settings.yaml")]
    options += ["--codistill-exchange", "checkpoints", "--codistill-period", "2", "--codistill-lag", "1"]
    run_ranks(2, run_rank, [*options, "--output-dir", str(tmp_path / "run")])
    for index, stride_in in enumerate(("1x1", "3x3")):
        trained = load_trained(tmp_path / "run", index)
        assert trained.stride_in == stride_in and trained.module.layer2[0].conv1.stride[0] == 2 - index
    assert "resnet50 with the stride in the 1x1 after" in export(
        tmp_path / "run", model=0, form="torch_export", output=tmp_path / "one.pt2"
    )
    evaluation = [*folder, "--codistill-models", "2", "--test-only", "--resume", str(tmp_path / "run")]
    with pytest.raises(AssertionError, match="stride_in: '3x3' then, '1x1' now"):
        run_ranks(2, run_rank, evaluation)


def test_a_run_that_goes_on_elsewhere_takes_its_best_weights_along(tmp_path: Path) -> None:
    options = [*PLAIN, "--ema-decay", "0.5"]
    run([*options, "--max-updates", "5", "--output-dir", str(tmp_path / "first")])
    best = torch.load(tmp_path / "first/model0/best.pt", weights_only=True)
    with mock.patch.object(Report, "_save_weights"):  # as if nothing after that were better
        run([*options, "--output-dir", str(tmp_path / "second"), "--resume", str(tmp_path / "first")])
    assert_same(best, torch.load(tmp_path / "second/model0/best.pt", weights_only=True))
    assert (tmp_path / "second/model0/ema_best.pt").is_file()


def test_an_interruption_is_none_of_those_that_the_best_weights_are_chosen_from(tmp_path: Path) -> None:
    """Epochs end with 40 and 45 %; the run stops between them, at 99."""
    tops = iter([40.0, 99.0, 45.0])
    with mock.patch.object(Report, "_evaluate", lambda _: {"top1": next(tops), "valid_loss": 1.0}):
        for updates in (BATCHES_AN_EPOCH + 1, 2 * BATCHES_AN_EPOCH):
            run([*PLAIN, "--output-dir", str(tmp_path), "--resume", "auto", "--max-updates", str(updates)])
    best, last = (torch.load(tmp_path / f"model0/{name}.pt", weights_only=True) for name in ("best", "last"))
    assert_same(best, last)
    with mock.patch.object(Report, "_evaluate", lambda _: {"top1": 99.0, "valid_loss": 1.0}):
        run([*PLAIN, "--output-dir", str(tmp_path), "--resume", "auto", "--max-updates", str(2 * BATCHES_AN_EPOCH + 1)])
    assert_same(best, torch.load(tmp_path / "model0/best.pt", weights_only=True))


def test_test_only_gives_the_figures_of_the_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run([*PLAIN, "--max-updates", "2", "--output-dir", str(tmp_path)])
    trained = [line for line in capsys.readouterr().out.splitlines() if line.startswith("model 0   top-1")]
    before = sorted(p.name for p in tmp_path.iterdir())
    run([*CIFAR_TEST, "--test-only", "--resume", str(tmp_path)])
    assert capsys.readouterr().out.splitlines() == trained
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_validation_has_no_padding_whatever_the_shards(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """21 pictures, for one rank, and for two and four with shards of 11 and 10, of 6 and 5."""
    run([*PLAIN, "--max-updates", "2", "--output-dir", str(tmp_path)])
    figures = []
    for ranks in (1, 2, 4):
        capfd.readouterr()
        run_ranks(ranks, run_rank, [*CIFAR_TEST, "-b", "4", "--test-only", "--resume", str(tmp_path)])
        figures.append([line for line in capfd.readouterr().out.splitlines() if line.startswith("model 0   top-1")])
    assert figures[0] == figures[1] == figures[2] and len(figures[0]) == 1


def test_the_learning_rate_moves_at_every_update(tmp_path: Path) -> None:
    run([*PLAIN, "--print-freq", "1", "--output-dir", str(tmp_path), "--lr-warmup-epochs", "1"])
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rates = [line["model0/train/lr"] for line in lines if "model0/train/lr" in line]
    assert len(set(rates)) == 3 * BATCHES_AN_EPOCH
    assert max(rates) == rates[BATCHES_AN_EPOCH] == 0.05


def test_what_a_run_says_of_its_history() -> None:
    """The median of the last five validations, and the best of all, which comes first here."""
    history = [{"top1": top1, "ema_top1": 100 - top1} for top1 in (90.0, 1.0, 2.0, 3.0, 4.0, 5.0)]
    found = _of_history(history)
    assert (found["median_top1"], found["best_top1"]) == (3, 90)
    assert (found["best_ema_top1"], found["ema_top1"]) == (99, 95)


@pytest.mark.real_python
def test_torchrun_on_an_image_folder(tmp_path: Path) -> None:
    write_folders(tmp_path / "data")
    sizes = ["--train-crop-size", "32", "--val-resize-size", "36", "--val-crop-size", "32"]
    command = [*torchrun(2), "-m", "vision.train", "--data-path", str(tmp_path / "data"), "--model", "resnet18", *sizes]
    command += ["-b", "4", "-j", "1", "--epochs", "1", "--lr", "0.01", "--amp", "--channels-last"]
    command += ["--output-dir", str(tmp_path / "run"), "--device", "cpu", "--codistill-models", "2"]
    assert "ensemble  top-1" in run_command(command)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [m["top5"] for m in summary["models"]] == [100, 100]  # two classes
    for model, name in [(0, "last"), (1, "best")]:  # any program loads them
        weights = torch.load(tmp_path / f"run/model{model}/{name}.pt", weights_only=True)
        torchvision.models.resnet18(num_classes=2).load_state_dict(weights)


def test_a_mistake_ends_the_program_with_its_message(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--data-path", "nowhere"])
    assert stop.value.code == 2
    assert "error: nowhere/train is not a directory" in capsys.readouterr().err


def test_one_process_for_two_models_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 models need at least 2 processes"):
        run([*TWO, "--output-dir", str(tmp_path)])


def test_an_output_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ValueError, match="cannot write in .*file/model0 .*: choose another directory for the run"):
        run([*PLAIN, "--output-dir", str(tmp_path / "file")])


def test_a_disk_that_fills_up_ends_the_run_and_keeps_its_checkpoint(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with filesystems.small(disk, megabytes=8):
        options = [*PLAIN, "--resume", "auto", "--output-dir", str(disk), "--max-updates"]
        run([*options, "1"])
        before = (disk / "model0/checkpoint.pt").read_bytes()
        with open(disk / "others", "wb") as file:
            os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - 100_000)
        with pytest.raises(StorageError, match=r"cannot write .*last\.pt: .* full \(.* and 0\.. MB are free"):
            run([*options, "3"])
        assert (disk / "model0/checkpoint.pt").read_bytes() == before
        (disk / "others").unlink()
        run([*options, "3"])
        assert final_state(disk)["update"] == 3
