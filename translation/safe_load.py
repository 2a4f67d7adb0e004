"""Stock fairseq under torch's safe loading: `python -m translation.safe_load generate DATA --path ...`.

torch >= 2.6 unpickles tensors and plain containers only. Checkpoints of stock `fairseq-train` also hold an
`argparse.Namespace` and a few records, which are named here one by one; nothing else is let in. Checkpoints
of a codistilled run hold none of them and load without this module.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from codistill_ext.job.storage import load_plain, unreadable

NAME = "translation.safe_load"
COMMANDS = ("generate", "interactive", "train", "validate")


class UnreadableCheckpointError(ValueError):
    """A checkpoint is damaged, or holds what could run code."""


def missing_fairseq(error: ImportError) -> str:
    """What to tell a user whose fairseq cannot be imported."""
    return (
        f"fairseq cannot be imported ({error}). The distribution that works with Python 3.11 and 3.12 is "
        "ve-fairseq 0.12.3: pip install -e .[translation]"
    )


def load_checkpoint(path: Path) -> dict[str, Any]:
    """A fairseq checkpoint on the CPU, without running any code that the file brings along.

    Raises:
        ValueError: it is none, or holds more than tensors and plain values.
    """
    with torch.serialization.safe_globals([argparse.Namespace]):
        state = load_plain(path)
    if not isinstance(state, dict) or "model" not in state:
        raise ValueError(f"{path} is not a fairseq checkpoint: it has no 'model'")
    return state


@contextlib.contextmanager
def named_checkpoints() -> Iterator[None]:
    """A file that fairseq refuses to unpickle in here is named, and torch's advice to do so anyway is not repeated.

    Raises:
        UnreadableCheckpointError: it holds more than tensors, plain values and records that are let in, or is damaged.
    """
    from fairseq import checkpoint_utils

    load = checkpoint_utils.load_checkpoint_to_cpu

    def load_named(path: str, *args: Any, **kwargs: Any) -> Any:
        try:
            return load(path, *args, **kwargs)
        except OSError:
            raise
        except Exception as error:  # torch.load raises many kinds
            raise UnreadableCheckpointError(unreadable(Path(path), error)) from error

    checkpoint_utils.load_checkpoint_to_cpu = load_named
    try:
        yield
    finally:
        checkpoint_utils.load_checkpoint_to_cpu = load


def main(arguments: list[str] | None = None) -> None:
    command, *rest = (sys.argv[1:] if arguments is None else arguments) or [""]
    if command not in COMMANDS:
        sys.exit(f"usage: python -m translation.safe_load {{{','.join(COMMANDS)}}} [fairseq arguments]")
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        cli = importlib.import_module(f"fairseq_cli.{command}")
    except ImportError as error:
        sys.exit(missing_fairseq(error))
    sys.argv = [f"fairseq-{command}", *rest]
    try:
        with named_checkpoints():
            cli.cli_main()
    except UnreadableCheckpointError as error:
        sys.exit(f"{NAME}: {error}")


if __name__ == "__main__":
    main()
