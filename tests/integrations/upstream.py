"""Accelerate's own test scripts, which its package brings along, run by the ranks of one model among two."""

import importlib
import os

from codistill_ext import CodistillConfig
from codistill_ext.integrations.own_world import join
from tests.integrations.tiny import like_torchrun


def script(rank: int, world_size: int, name: str) -> None:
    """Run it to its end, as one of two models."""
    like_torchrun(rank, world_size)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    join(CodistillConfig(models=2), "cpu")
    from accelerate import PartialState

    PartialState.destroy_process_group = lambda self, group=None: None  # run_ranks ends with a meeting of all
    importlib.import_module(f"accelerate.test_utils.scripts.{name}").main()
