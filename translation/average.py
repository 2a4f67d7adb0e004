"""The mean of several checkpoints of one model, as an ordinary checkpoint.

`python -m translation.average --inputs a.pt b.pt --output mean.pt`, or the last ten epochs of a run (as for
the WMT'16 figures of Ott et al.): `python -m translation.average --dir SAVE_DIR --last 10 --output mean.pt`.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

import torch
from torch import Tensor

from codistill_ext.job.failures import Parser
from codistill_ext.job.option_types import at_least
from codistill_ext.job.storage import save_whole
from translation.safe_load import load_checkpoint

NAMES = {"epoch": re.compile(r"checkpoint(\d+)\.pt"), "update": re.compile(r"checkpoint_\d+_(\d+)\.pt")}
RESUME_ONLY = ("last_optimizer_state",)  # belongs to one checkpoint, not to a mean of several


def last_checkpoints(directory: Path, count: int, by: str = "epoch") -> list[Path]:
    """The `count` newest `checkpointE.pt` (by epoch) or `checkpoint_E_U.pt` (by update), oldest first."""
    if count < 1:
        raise ValueError(f"--last must be at least 1, got {count}")
    found = ((NAMES[by].fullmatch(path.name), path) for path in directory.iterdir())
    numbered = sorted((int(match[1]), path) for match, path in found if match)
    if len(numbered) < count:
        raise ValueError(f"{directory} holds {len(numbered)} checkpoints by {by}, --last asks for {count}")
    return [path for _, path in numbered[-count:]]


def check_same_shapes(path: Path, model: dict[str, Tensor], first: Path, expected: dict[str, Tensor]) -> None:
    """Raises ValueError naming the first tensor in which two checkpoints differ."""
    for name in sorted(model.keys() ^ expected.keys()):
        where, other = (path, first) if name in model else (first, path)
        raise ValueError(f"checkpoints of different models: {where} has {name!r}, {other} has not")
    for name, tensor in model.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"checkpoints of different models: {name!r} is {list(tensor.shape)} in {path}, "
                f"{list(expected[name].shape)} in {first}"
            )


def average(paths: list[Path]) -> dict[str, object]:
    """The last checkpoint with its floating-point tensors replaced by the mean, summed in float64."""
    if not paths:
        raise ValueError("no checkpoints to average")
    sums: dict[str, Tensor] = {}
    for path in paths:
        state = load_checkpoint(path)
        model: dict[str, Tensor] = state["model"]
        if sums:
            check_same_shapes(path, model, paths[0], sums)
        for name, tensor in model.items():
            if not tensor.is_floating_point():
                sums[name] = tensor  # counters: the last one's
            elif name in sums:
                sums[name] += tensor.double()
            else:
                sums[name] = tensor.to(torch.float64, copy=True)
    state["model"] = {
        name: (sums[name] / len(paths)).to(tensor.dtype) if tensor.is_floating_point() else tensor
        for name, tensor in model.items()
    }
    return {name: value for name, value in state.items() if name not in RESUME_ONLY}


def save(state: dict[str, object], path: Path) -> None:
    """Writes a checkpoint whole; nothing of what was there before is kept."""
    save_whole(state, path)


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m translation.average", description=__doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--inputs", type=Path, nargs="+", help="the checkpoints")
    source.add_argument("--dir", type=Path, help="a save directory; with --last")
    parser.add_argument("--last", type=at_least(1), default=10, help="how many of --dir (default: %(default)s)")
    parser.add_argument("--by", choices=tuple(NAMES), default="epoch", help="checkpointE.pt or checkpoint_E_U.pt")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        paths = options.inputs or last_checkpoints(options.dir, options.last, options.by)
        save(average(paths), options.output)
    except (ValueError, OSError) as error:
        sys.exit(f"translation.average: {error}")
    print(f"{options.output}: the mean of {', '.join(str(path) for path in paths)}")


if __name__ == "__main__":
    main()
