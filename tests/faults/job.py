"""One process of a training job that ends itself with SIGKILL where FAULTS says so.

``torchrun ... tests/faults/job.py vision|fairseq OPTIONS``; FAULTS is a JSON list with one entry an
attempt (torchrun counts its restarts): ``[rank, "step"|"save", n]`` kills the rank before its n-th
update of that attempt, or in the middle of writing its n-th file.
"""

import functools
import io
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch

DYING = b"dies as planned\n"


def main() -> None:
    trainer, *options = sys.argv[1:]
    fault = planned_fault()
    if fault is not None and fault[0] == "save":
        torch.save = dies_writing(torch.save, fault[1])
    run_vision(options, fault) if trainer == "vision" else run_fairseq(options, fault)


def planned_fault() -> tuple[str, int] | None:
    faults = json.loads(os.environ.get("FAULTS", "[]"))
    attempt = int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if attempt >= len(faults):
        return None
    rank, where, number = faults[attempt]
    return (where, number) if rank == int(os.environ["RANK"]) else None


def die() -> None:
    os.write(1, DYING)  # so that a test sees that it did
    os.kill(os.getpid(), signal.SIGKILL)


def dies_writing(save: Callable[..., None], number: int) -> Callable[..., None]:
    calls = 0

    def save_half(obj: Any, file: Any, **options: Any) -> None:
        nonlocal calls
        calls += not options  # pickling tensors for a collective has some
        if calls < number or options:
            return save(obj, file, **options)
        whole = io.BytesIO()
        save(obj, whole)
        file.write(whole.getvalue()[: whole.tell() // 2])
        file.flush()
        die()

    return save_half


def dies_before(step: Callable[..., Any], fault: tuple[str, int] | None) -> Callable[..., Any]:
    calls = 0

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if fault == ("step", calls):
            die()
        return step(*args, **kwargs)

    return counted


def run_vision(options: list[str], fault: tuple[str, int] | None) -> None:
    from tests.vision.small import small_cifar10
    from vision import datasets
    from vision.train import main as train
    from vision.trainer import Trainer

    with (
        mock.patch.object(datasets, "load_cifar10", small_cifar10),
        mock.patch.object(Trainer, "_train_batch", dies_before(Trainer._train_batch, fault)),
    ):
        train(options)


def run_fairseq(options: list[str], fault: tuple[str, int] | None) -> None:
    from fairseq.trainer import Trainer
    from fairseq_cli.train import cli_main

    if not torch.cuda.is_available():
        # fairseq's --fp16 asks which GPU has the master weights, and puts the norm of an overflow there.
        torch.cuda.current_device = lambda: None
        torch.Tensor.cuda = lambda tensor: tensor
        # Its --amp is CUDA's, which does nothing elsewhere: the same of the CPU.
        torch.cuda.amp.GradScaler = functools.partial(torch.amp.GradScaler, "cpu")
        torch.cuda.amp.autocast = functools.partial(torch.autocast, "cpu", torch.float16)
    Trainer.train_step = dies_before(Trainer.train_step, fault)
    sys.argv[1:] = options
    cli_main()


if __name__ == "__main__":
    main()
