"""Runs a function on several ranks in real processes over gloo, and ends what it started."""

import datetime
import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

DEADLINE_S = 120


class RankError(AssertionError):
    """A rank raised; ``errors`` has the text of each that did."""

    def __init__(self, errors: dict[int, str]) -> None:
        super().__init__("\n".join(f"rank {rank}: {text}" for rank, text in sorted(errors.items())))
        self.errors = errors


def _entry(rank: int, world_size: int, directory: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    folder = Path(directory)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{directory}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=datetime.timedelta(seconds=DEADLINE_S),
        )
        result = function(rank, *args)
        dist.barrier()  # a rank that ends early would break its peers' connections
        torch.save(result, folder / f"result{rank}.pt")
    except BaseException:
        (folder / f"error{rank}.txt").write_text(traceback.format_exc())
        # The others may be waiting for this rank: leave at once, with the connections closed.
        os._exit(1)
    os._exit(0)


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any, deadline_s: float = DEADLINE_S) -> list[Any]:
    """Call ``function(rank, *args)`` in ``world_size`` processes; the list of what they return.

    Raises:
        RankError: a rank raised. TimeoutError: they took longer than ``deadline_s``.
    """
    # A server that has imported torch and runs no threads forks the ranks: importing takes seconds
    # (the first optimizer imports torch._dynamo).
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch.distributed", "torch._dynamo", "torchvision", "codistill_ext"])
    with tempfile.TemporaryDirectory() as directory:
        processes = [
            context.Process(target=_entry, args=(rank, world_size, directory, function, args), daemon=True)
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            limit = datetime.datetime.now() + datetime.timedelta(seconds=deadline_s)
            for process in processes:
                process.join(max(0.0, (limit - datetime.datetime.now()).total_seconds()))
            errors = {
                rank: (Path(directory) / f"error{rank}.txt").read_text()
                for rank in range(world_size)
                if (Path(directory) / f"error{rank}.txt").exists()
            }
            if errors:
                raise RankError(errors)
            stuck = [rank for rank, process in enumerate(processes) if process.is_alive()]
            if stuck:
                raise TimeoutError(f"ranks {stuck} did not end within {deadline_s} s")
            return [torch.load(Path(directory) / f"result{rank}.pt", weights_only=False) for rank in range(world_size)]
        finally:
            for process in processes:
                if process.is_alive():
                    process.kill()
                process.join()
