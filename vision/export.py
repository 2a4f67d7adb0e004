"""Take a trained model, or the ensemble of a run's models, out of its run.

    python -m vision.export RUN --model 0 --output resnet50.pt                        # torchvision loads it
    python -m vision.export RUN --ensemble --format torch_export --output both.pt2    # runs without our code

A state_dict is that of the model itself; of an ensemble its keys begin with models.0., models.1. and so on.
An exported program takes normalised pictures of shape (B, 3, SIZE, SIZE), any B, and returns logits of shape
(B, classes); of an ensemble the logarithm of the mean of the models' probabilities. SIZE is that of the training crops
unless --size says otherwise (that of the validation crops, say).
What was written is read again and compared with the models on random pictures before the command ends.
"""

from __future__ import annotations

import argparse
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from codistill_ext.job.failures import Parser
from codistill_ext.job.option_types import at_least
from codistill_ext.job.storage import load_whole
from vision.checkpointing import BEFORE, checkpoint_path
from vision.models import build_model

FORMATS = ("state_dict", "torch_export")
WEIGHTS = ("last", "best", "ema_last", "ema_best")
CIFAR_SIZE = 32


class Ensemble(nn.Module):
    """The logarithm of the mean of several models' probabilities."""

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, images_BCHW: Tensor) -> Tensor:
        logs_MBK = torch.stack([model(images_BCHW).log_softmax(dim=1) for model in self.models])
        return logs_MBK.logsumexp(dim=0) - math.log(len(self.models))


@dataclass(frozen=True, kw_only=True)
class Trained:
    """A model from a checkpoint, in eval mode.

    Attributes:
        stride_in: of ``vision.models.STRIDES``.
        when: it was saved, in words; ``models``: how many trained together; ``size``: of its pictures.
    """

    module: nn.Module
    name: str
    stride_in: str
    classes: int
    when: str
    models: int
    size: int

    def build(self) -> nn.Module:
        """The same architecture, with new weights."""
        return build_model(self.name, num_classes=self.classes, image_sizes=(self.size,), stride_in=self.stride_in)

    @property
    def words(self) -> str:
        """Which network it is, and when it was saved."""
        # The weights fit torchvision's class all the same, which would compute something else with them.
        stride = "" if self.stride_in == "3x3" else f" with the stride in the {self.stride_in}"
        return f"{self.name}{stride} {self.when}"


def load_trained(run: Path, index: int, weights: str = "last", size: int | None = None) -> Trained:
    """A model of a run.

    Args:
        size: of its pictures, if not that of the training crops.
        weights: of ``WEIGHTS``; ``last`` is the newest checkpoint, the others are as of a validation.

    Raises:
        ValueError: there is no whole checkpoint of it, or the run has no such weights.
    """
    path = checkpoint_path(run, index)
    if not path.exists():
        raise ValueError(f"{path} does not exist: give a run's directory, and a model that it trains")
    try:
        state: dict[str, Any] = load_whole(path)
        identity, found = state["identity"], state["model"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} is no whole checkpoint of vision.train: {error}") from error
    if size is None:
        size = CIFAR_SIZE if identity["dataset"] == "cifar10" else int(identity["train_crop_size"])
    name, classes = identity["model"], identity["classes"]
    stride_in = (BEFORE | identity)["stride_in"]
    module = build_model(name, num_classes=classes, image_sizes=(size,), stride_in=stride_in)
    when = f"after {state['update']} updates"
    if weights != "last":
        found, when = _read_weights(path.with_name(f"{weights}.pt")), weights
    module.load_state_dict(found)
    models = state["codistill"]["config"]["models"]
    return Trained(
        module=module.eval(),
        name=name,
        stride_in=stride_in,
        classes=classes,
        when=when,
        models=models,
        size=size,
    )


def _read_weights(path: Path) -> dict[str, Tensor]:
    if not path.exists():
        raise ValueError(f"{path} does not exist: the run has not validated yet, or trains without --ema-decay")
    try:
        weights: dict[str, Tensor] = load_whole(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): export the last weights") from error
    return weights


def load_ensemble(run: Path, weights: str = "last", size: int | None = None) -> list[Trained]:
    """All models of a run.

    Raises:
        ValueError: there is only one, or they read pictures of different sizes.
    """
    first = load_trained(run, 0, weights, size)
    if first.models == 1:
        raise ValueError(f"{run} has one model: export it with --model 0")
    members = [first, *(load_trained(run, index, weights, size) for index in range(1, first.models))]
    sizes = sorted({member.size for member in members})
    if len(sizes) > 1:
        raise ValueError(f"the models of {run} read pictures of different sizes ({sizes}): export them one by one")
    return members


def write_program(module: nn.Module, size: int, path: Path) -> None:
    """A program of torch.export for any number of pictures."""
    pictures = torch.randn(2, 3, size, size)
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    program = torch.export.export(module, (pictures,), dynamic_shapes=shapes)
    torch.export.save(program, path)


def check_program(module: nn.Module, size: int, path: Path) -> None:
    """Run what was written.

    Raises:
        ValueError: it gives other outputs.
    """
    program = torch.export.load(path).module()
    for batch in (1, 3):
        _compare(program, module, batch, size, path)


def check_weights(module: nn.Module, size: int, path: Path, rebuilt: nn.Module) -> None:
    """Load what was written into new models, which must be the same ones.

    Raises:
        ValueError: they give other outputs.
    """
    rebuilt.load_state_dict(torch.load(path, weights_only=True))
    _compare(rebuilt.eval(), module, 2, size, path)


def _compare(found: Any, module: nn.Module, batch: int, size: int, path: Path) -> None:
    pictures = torch.randn(batch, 3, size, size)
    with torch.no_grad():
        difference = float((found(pictures) - module(pictures)).abs().max())
    if not difference <= 1e-4:
        raise ValueError(f"{path} gives outputs that differ from the model's by {difference}")


def _join(modules: Sequence[nn.Module], *, alone: bool) -> nn.Module:
    return modules[0] if alone else Ensemble(modules)


def export(
    run: Path, *, model: int | None, form: str, output: Path, weights: str = "last", size: int | None = None
) -> str:
    """Export one model, or without ``model`` the ensemble; what was done, in a line.

    Raises:
        ValueError: the run has no such model, or what was written does not do the same.
    """
    members = load_ensemble(run, weights, size) if model is None else [load_trained(run, model, weights, size)]
    module = _join([member.module for member in members], alone=model is not None).eval()
    side = members[0].size
    output.absolute().parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.absolute().parent, prefix=f".{output.name}.") as scratch:
        path = Path(scratch) / output.name  # it comes to its place when it has been checked
        if form == "torch_export":
            write_program(module, side, path)
            check_program(module, side, path)
        else:
            torch.save(module.state_dict(), path)
            check_weights(module, side, path, _join([member.build() for member in members], alone=model is not None))
        os.replace(path, output)
    what = f"model {model}" if model is not None else f"ensemble of {len(members)}"
    names = ", ".join(member.words for member in members)
    return f"{output}: {form} of {what} ({names}), pictures of {side}x{side}, read again and compared"


def build_parser() -> argparse.ArgumentParser:
    parser = Parser(prog="vision.export", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, metavar="RUN", help="the --output-dir of a run")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", type=int, metavar="INDEX", help="one model, from 0")
    which.add_argument("--ensemble", action="store_true", help="all models of the run, as one")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--weights", choices=WEIGHTS, default="last", help="default: last, the newest checkpoint")
    parser.add_argument("--size", type=at_least(1), help="of the pictures (default: of the training crops)")
    parser.add_argument("--format", choices=FORMATS, default="state_dict", help="default: state_dict")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    parser = build_parser()
    args = parser.parse_args(argv)
    try:
        print(
            export(
                args.run, model=args.model, form=args.format, output=args.output, weights=args.weights, size=args.size
            )
        )
    except (ValueError, OSError) as error:
        parser.exit(1, f"vision.export: {error}\n")


if __name__ == "__main__":
    main()
