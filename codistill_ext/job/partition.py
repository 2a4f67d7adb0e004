"""Proof that the models cut the same data in the same way, so that no sample is in two parts."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codistill_ext.config import CodistillConfig
from codistill_ext.exchange.wire.foreign_files import open_directory, open_file
from codistill_ext.exchange.wire.whole_files import write_text
from codistill_ext.groups import ModelGroups, model_directory

_FILE = "partition.json"
_MOST_BYTES = 1 << 16


def check_partition(
    samples: Sequence[int] | Tensor | int, config: CodistillConfig, groups: ModelGroups, seed: int
) -> None:
    """Compare what ``own_part`` is given with the other models, in this job or in jobs of their own.

    Without disjoint data there is nothing to compare. Every rank of the job must call it.

    Raises:
        ValueError: on every rank: it differs, so that the parts would overlap.
    """
    if not config.disjoint:
        return
    mine = {"models": config.models, "seed": seed} | _describe(samples)
    groups.check_equal("what disjoint data is cut from (--seed and the data)", mine)
    if groups.separate_jobs:
        groups.ask_leads(lambda: _compare_jobs(mine, Path(config.dir), groups))


def _describe(samples: Sequence[int] | Tensor | int) -> dict[str, Any]:
    if isinstance(samples, int):
        return {"samples": samples}
    indices = torch.as_tensor(samples, dtype=torch.int64)
    return {"samples": len(indices), "sha256": hashlib.sha256(indices.numpy().tobytes()).hexdigest()}


def _compare_jobs(mine: dict[str, Any], directory: Path, groups: ModelGroups) -> None:
    """Write before reading: of two jobs that start at once one at least sees the other."""
    own = model_directory(directory, groups.model_index)
    own.mkdir(parents=True, exist_ok=True)
    write_text(own / _FILE, json.dumps(mine) + "\n")
    for peer in range(groups.num_models):
        path = model_directory(directory, peer) / _FILE
        try:
            theirs = _read(path)
        except FileNotFoundError:
            continue
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): remove it and start that job again") from error
        if theirs != mine:
            raise ValueError(
                f"disjoint data needs jobs that cut the same data in the same way, but {path} says {theirs} and this "
                f"job has {mine}: start all of them with the same --seed and data, or choose another --codistill-dir"
            )


def _read(path: Path) -> Any:
    """What another job wrote, or somebody else in its place."""
    with open_directory(path.parent) as directory, open_file(path.name, directory) as file:
        return json.loads(file.read(min(file.size, _MOST_BYTES)).decode())
