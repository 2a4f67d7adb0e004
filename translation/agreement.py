"""How often two translation models would write the same next piece.

`python -m translation.agreement DATA_BIN --path a.pt:b.pt` shows every model the reference up to each
position of a split and compares their most likely next pieces: the share of equal ones, over all pairs.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from codistill_ext.diagnostics import agreement
from codistill_ext.job.failures import Parser
from translation.decode import load, reference_batches


@torch.no_grad()
def measure(models: list[Any], task: Any, subset: str, max_tokens: int = 4000) -> dict[str, float | int]:
    """The mean agreement over all pairs of models and all target positions, and how many those are."""
    if len(models) < 2:
        raise ValueError(f"agreement is between models: --path names {len(models)}, expected a.pt:b.pt")
    agreeing, positions = 0.0, 0
    for batch in reference_batches(task, subset, max_tokens):
        mask: Tensor = batch["target"] != task.target_dictionary.pad()
        logits = [model(**batch["net_input"])[0] for model in models]
        pairs = [agreement(first, second, mask) for first, second in itertools.combinations(logits, 2)]
        count = int(mask.sum())
        agreeing += count * sum(pairs) / len(pairs)
        positions += count
    return {"agreement": agreeing / positions, "positions": positions}


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m translation.agreement", description=__doc__)
    parser.add_argument("data", type=Path, help="a data-bin")
    parser.add_argument("--path", required=True, help="the checkpoints: a.pt:b.pt")
    parser.add_argument("--subset", default="test")
    options = parser.parse_args(arguments)
    try:
        models, task = load([Path(path) for path in options.path.split(":")], options.data)
        print(json.dumps(measure(models, task, options.subset)))
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"translation.agreement: {error}")


if __name__ == "__main__":
    main()
