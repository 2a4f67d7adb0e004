"""The examples as torchrun starts them, on ranks that are there already."""

import contextlib
import importlib
import io
import sys

from tests.integrations.tiny import like_torchrun


def example(rank: int, world_size: int, module: str, options: list[str]) -> str:
    """What the rank prints."""
    like_torchrun(rank, world_size)
    sys.argv = [module, *options]
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        importlib.import_module(module).main()
    return printed.getvalue()
