"""A run that is told to leave saves, leaves, and goes on to the same bits, with every option that has a state."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import psutil
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from codistill_ext import CodistillConfig, ModelGroups
from codistill_ext.job.storage import load_checkpoint
from tests import commands
from tests.commands import ROOT, torchrun
from tests.ranks import run_ranks
from tests.states import assert_same
from tests.vision.small import PLAIN, final_state, run, write_folders
from vision import preemption
from vision.build import train_loader
from vision.device import Place
from vision.evaluate import validation_loader
from vision.options import build_parser, parse_options
from vision.preemption import Preemption, exit_code, ignore_signals
from vision.trainer import Trainer

# 3 updates of 2 mini-batches an epoch, the last of one; 9 in all.
EVERY = ["--accumulate", "2", "--amp", "--amp-dtype", "float16", "--ema-decay", "0.8", "--eval-every", "2"]
EVERY += ["--lr-scheduler", "multisteplr", "--lr-milestones", "1", "7up", "--weight-decay", "1e-2,1e-3,0"]
EVERY += ["--label-smoothing", "0.2~0@8up", "--codistill-alpha", "0~1@50%"]
EVERY += ["--norm-weight-decay", "1e-2~0@8up", "--lr-warmup-epochs", "1", "--lr-warmup-decay", "0.1"]
UPDATES = 9
CHECKPOINTS = ["--codistill-exchange", "checkpoints", "--codistill-period", "4", "--codistill-lag", "3"]


class _Scaler(torch.amp.GradScaler):
    """Gradients overflow above a scale of 2**8."""

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.get_scale() > 2**8:
            optimizer.param_groups[0]["params"][0].grad.fill_(torch.inf)
        super().step(optimizer)


@contextlib.contextmanager
def _in_float16(init_scale: float = 2.0**8) -> Iterator[None]:
    """A scaler, but a forward pass in float32: convolutions in float16 take seconds on a CPU."""
    with (
        mock.patch.object(Place, "autocast", lambda _: contextlib.nullcontext()),
        mock.patch.object(Place, "scaler", lambda _: _Scaler("cpu", init_scale=init_scale)),
    ):
        yield


def _signal_at(update: int, number: int) -> mock._patch:
    """This process gets a signal while it makes an update."""
    original = Trainer._train_batch

    def train_batch(self: Trainer, images: Tensor, labels: Tensor) -> None:
        if self.progress.update == update and self.progress.batch % 2 == 0:
            os.kill(os.getpid(), number)
        original(self, images, labels)

    return mock.patch.object(Trainer, "_train_batch", train_batch)


@pytest.mark.slow
@_in_float16()
def test_one_model_leaves_at_once_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    assert run([*PLAIN, *EVERY, "--output-dir", str(tmp_path / "whole")]) == 0
    options = [*PLAIN, *EVERY, "--resume", "auto", "--output-dir", str(tmp_path / "left")]
    for update, number, status in [(1, signal.SIGTERM, 143), (4, signal.SIGUSR1, 0), (5, signal.SIGTERM, 143)]:
        with _signal_at(update, number):
            assert run(options) == status
        assert load_checkpoint(tmp_path / "left/model0/checkpoint.pt")["update"] == update + 1
        assert not (tmp_path / "left/summary.json").exists()
    assert run(options) == 0
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "after the run the signals are as before"
    whole = final_state(tmp_path / "whole")
    assert whole["update"] == UPDATES and whole["ema"] is not None and whole["scaler"]["scale"] > 0
    assert_same(whole, final_state(tmp_path / "left"))


def test_bfloat16_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    """Real 16-bit convolutions."""
    options = [*PLAIN, "--amp", "--channels-last", "--ema-decay", "0.8", "--output-dir"]
    assert run([*options, str(tmp_path / "whole")]) == 0
    left = [*options, str(tmp_path / "left"), "--resume", "auto"]
    with _signal_at(4, signal.SIGUSR1):
        assert run(left) == 0
    assert not (tmp_path / "left/summary.json").exists() and run(left) == 0
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "left"))


@pytest.mark.slow
@pytest.mark.real_python
def test_signals_through_torchrun(tmp_path: Path) -> None:
    """SIGTERM to torchrun alone, and SIGUSR1 to everybody under a shell that ignores it, as docs/vision.md has them."""
    write_folders(tmp_path / "data", train=8, val=2)
    options = ["--data-path", str(tmp_path / "data"), "--model", "resnet8_stride2", "--device", "cpu", "-j", "0"]
    options += ["--train-crop-size", "32", "--val-resize-size", "36", "--val-crop-size", "32", "-b", "4"]
    options += ["--lr", "0.05", "--epochs", "5000", "--eval-every", "60", "--print-freq", "1"]
    command = torchrun(2, "-m", "vision.train", *options, "--codistill-models", "2", "--resume", "auto")
    command += ["--output-dir", str(tmp_path / "left")]
    ignoring = ["bash", "-c", 'trap "" USR1; exec "$@"', "-", *command]
    for started, number, to_all, status in ((command, signal.SIGTERM, False, 1), (ignoring, signal.SIGUSR1, True, 0)):
        before = _lines(tmp_path / "left")
        process = subprocess.Popen(started, cwd=ROOT, env=commands.environment(), start_new_session=True)
        children: list[psutil.Process] = []
        try:
            deadline = time.monotonic() + 120
            while _lines(tmp_path / "left") < before + 10:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.05)
            children = psutil.Process(process.pid).children(recursive=True)
            for child in children if to_all else []:
                child.send_signal(number)
            process.send_signal(number)
            assert process.wait(timeout=60) == status
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                children = children or psutil.Process(process.pid).children(recursive=True)
            for left in (process, *children):
                with contextlib.suppress(psutil.NoSuchProcess):
                    left.kill()
        assert not (tmp_path / "left/summary.json").exists()
    # How far it came depends on the machine; a run that is not disturbed goes exactly as far.
    updates = load_checkpoint(tmp_path / "left/model0/checkpoint.pt")["update"] + 5
    commands.run([*command, "--max-updates", str(updates)])
    commands.run([*command[:-1], str(tmp_path / "whole"), "--max-updates", str(updates)])
    for model in (0, 1):
        assert_same(final_state(tmp_path / "whole", model), final_state(tmp_path / "left", model))


def _lines(directory: Path) -> int:
    path = directory / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def _left_and_resumed(rank: int, whole: list[str], left: list[str]) -> list[int]:
    """The last rank alone is told to leave, twice. The first two steps of model 1 overflow."""
    ranks = dist.get_world_size()
    model = rank * 2 // ranks
    with (
        mock.patch.multiple(preemption, VOTE_UPDATES=2, VOTE_SECONDS=torch.inf),
        _in_float16(2.0 ** (10 if model == 1 else 8)),
    ):
        states = [run(whole)]
        for update in (1, 6):
            dist.barrier()
            with _signal_at(update if rank == ranks - 1 else -1, signal.SIGTERM):
                states.append(run(left))
            dist.barrier()
            states.append(load_checkpoint(Path(left[-1]) / f"model{model}/checkpoint.pt")["update"])
        dist.barrier()
        return [*states, run(left)]


def _left_at(rank: int, seconds_an_update: tuple[float, float], told: int) -> int:
    """The update that a rank leaves at, if rank 0 is told to just before it has made the update ``told``."""
    clock = mock.Mock(monotonic=mock.Mock(return_value=0.0))
    with mock.patch.object(preemption, "time", clock):
        votes = Preemption(ModelGroups.create(CodistillConfig(models=2)), timeout_s=60)
        with votes.listening():
            for update in range(1, 100):
                clock.monotonic.return_value += seconds_an_update[rank]
                if rank == 0 and update == told:
                    signal.raise_signal(signal.SIGUSR1)
                if votes.agreed(update):
                    return update
    return 0


@pytest.mark.parametrize(
    ("seconds", "told", "left"),
    [((0.1, 0.1), 21, 40), ((0.1, 0.5), 21, 28), ((0.1, 5.0), 21, 22), ((5.0, 0.1), 1, 2)],
    ids=["10 updates", "2 seconds of the slowest", "each update", "the first"],
)
def test_slow_updates_vote_more_often(seconds: tuple[float, float], told: int, left: int) -> None:
    assert run_ranks(2, _left_at, seconds, told) == [left, left]


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "extra"), [(2, []), (4, CHECKPOINTS)], ids=["predictions", "checkpoints"])
def test_all_models_leave_at_the_same_update_and_overflows_of_one_are_its_own(
    ranks: int, extra: list[str], tmp_path: Path
) -> None:
    """With four ranks a batch of 4 on each, so that the updates are as many."""
    options = [*PLAIN, *EVERY, *extra, "-b", str(16 // ranks), "--codistill-models", "2", "--resume", "auto"]
    whole, left = ([*options, "--output-dir", str(tmp_path / name)] for name in ("whole", "left"))
    states = run_ranks(ranks, _left_and_resumed, whole, left)
    assert states == [states[0]] * ranks
    assert states[0] == [0, 143, 4, 0, UPDATES, 0], "of two votes, at updates 2 and 4; the second comes too late"
    for model in (0, 1):
        whole = final_state(tmp_path / "whole", model)
        assert_same(whole, final_state(tmp_path / "left", model))
        assert whole["codistill"]["updates"] == UPDATES, "a skipped step counts"
        assert whole["codistill"]["exchange"]["round"] == (2 if extra else 15), "weights twice, or each mini-batch"
        assert whole["scaler"]["scale"] == 2**8


def test_with_weight_0_it_is_the_plain_run(tmp_path: Path) -> None:
    options = [*PLAIN, *EVERY, "--output-dir"]
    with _in_float16():
        run([*options, str(tmp_path / "plain")])
    run_ranks(2, _run, [*options, str(tmp_path / "zero"), "--codistill-models", "2", "--codistill-alpha", "0"])
    plain, zero = final_state(tmp_path / "plain"), final_state(tmp_path / "zero")
    for key in ("model", "optimizer", "scaler", "ema", "random"):
        assert_same(plain[key], zero[key], key)


def _run(rank: int, argv: list[str]) -> None:
    with _in_float16():
        run(argv)


def _votes(rank: int) -> list[int]:
    """What each rank is told after each update; rank 1 gets the gentle signal, then rank 2 the urgent one."""
    listener = Preemption(ModelGroups.create(CodistillConfig()), timeout_s=60.0)
    told = []
    with listener.listening():
        for update in range(1, 51):
            if (rank, update) == (1, 12):
                os.kill(os.getpid(), signal.SIGUSR1)
            if (rank, update) == (2, 15):
                os.kill(os.getpid(), signal.SIGTERM)
            told.append(listener.agreed(update))
            if told[-1]:
                break
    listener.close()
    return told


def test_the_ranks_hear_of_a_signal_at_the_same_update() -> None:
    assert run_ranks(3, _votes) == [[0] * 29 + [signal.SIGTERM]] * 3
    assert (exit_code(signal.SIGTERM), exit_code(signal.SIGUSR1)) == (143, 0)


@pytest.mark.parametrize(("error", "ends"), [(dist.DistError("gone"), True), (OSError("full"), False)])
def test_a_signal_because_another_rank_failed_is_not_kept(error: Exception, ends: bool) -> None:
    listener, seen = Preemption(ModelGroups.create(CodistillConfig()), timeout_s=60.0), []
    before = signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    try:
        with pytest.raises(type(error)), listener.listening():
            signal.raise_signal(signal.SIGTERM)
            assert listener.agreed(1) == signal.SIGTERM and not seen
            raise error
    finally:
        signal.signal(signal.SIGTERM, before)
    assert seen == [signal.SIGTERM] * ends


def test_loading_processes_outlive_the_signal() -> None:
    args = parse_options(build_parser(), [*PLAIN, "-j", "1"]).args
    place, groups = Place.from_args(args), ModelGroups.create(CodistillConfig())
    assert train_loader([0], args, SimpleNamespace(train=range(40)), place).worker_init_fn is ignore_signals
    batches = iter(validation_loader(range(40), groups, place, batch_size=1, workers=1))
    seen = [next(batches).item()]
    for number in preemption.SIGNALS:
        os.kill(batches._workers[0].pid, number)
    assert seen + [batch.item() for batch in batches] == list(range(40))
