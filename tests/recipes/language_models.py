"""Runs of the recipe for language models, smaller than small; importable by the ranks."""

import os
import signal
from pathlib import Path
from typing import Any

import torch

from codistill_ext import CodistillParallel
from recipes.language_model.gpt import Sizes
from recipes.language_model.train import run
from recipes.language_model.training import Training
from tests.core.training import whole

SIZES = Sizes(vocabulary=120, context=8, layers=2, width=16, heads=2, dropout=0.1)
LINES = 60
UPDATES, SAVE_EVERY, KILLED_AFTER = 6, 2, 5
TWO = ["--codistill-models", "2", "--codistill-encoding", "topk", "--codistill-topk", "8"]
BY_FILES = "--codistill-exchange files --codistill-dir d --codistill-model-index 0".split()


def options(root: str, name: str, *more: str) -> list[str]:
    return [
        *("--output-dir", f"{root}/{name}", "--text-dir", f"{root}/text", "--device", "cpu", "--lines", str(LINES)),
        *(text for key in ("vocabulary", "context", "layers", "width", "heads") for text in _option(key)),
        *("--updates", str(UPDATES), "--warmup", "2", "--batch-size", "2", "--lr", "0.05"),
        *("--log-every", "1", "--eval-every", "3", "--save-every", str(SAVE_EVERY), "--codistill-timeout", "60"),
        *more,
    ]


def _option(name: str) -> tuple[str, str]:
    return f"--{name}", str(getattr(SIZES, name))


def train(rank: int, argv: list[str], killed: bool = False) -> dict[str, Any]:
    """A run; its summary, and this rank's model, with all tensors in full. ``killed``: rank 3 does not live on."""
    kept: dict[str, Any] = {}
    finish, after_update = Training.finish, CodistillParallel.after_update

    def finish_and_keep(training: Training) -> dict[str, Any]:
        kept.update(model=training.groups.model_index, state=whole(training.model.state_dict()))
        return finish(training)

    def after_update_or_never(model: CodistillParallel) -> None:
        after_update(model)
        if killed and rank == 3 and model.updates == KILLED_AFTER:
            os.kill(os.getpid(), signal.SIGKILL)

    Training.finish, CodistillParallel.after_update = finish_and_keep, after_update_or_never
    try:
        return {"summary": run(argv)} | kept
    finally:
        Training.finish, CodistillParallel.after_update = finish, after_update


def mistakes(rank: int, argvs: list[list[str]]) -> list[str]:
    """What each run is told that this one's directory is not for."""
    told = []
    for argv in argvs:
        try:
            run(argv)
        except ValueError as error:
            told.append(str(error))
    return told


def text_of(root: Path) -> dict[str, torch.Tensor]:
    from recipes.language_model.text import prepare, read_blocks

    return read_blocks(prepare(root / "text", SIZES.vocabulary, LINES), SIZES.context)
