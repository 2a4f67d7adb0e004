"""Whether a model's likelihood suffers from what it chooses or from how sure it is of that.

`python -m translation.calibration DATA_BIN --path a.pt [b.pt ...]` shows each model the reference up to each position
of a split. It prints how often the most likely next piece is the right one, the NLL in bits a piece, also where that
piece is right and where it is wrong, and the least NLL that a temperature, by which all logits are divided, can give
(Guo et al., 2017). A model that overfits is too sure: its NLL can be worse than another's although its choices, and
so its translations, are better.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import torch
from tabulate import tabulate
from torch import Tensor

from codistill_ext.job.failures import Parser
from translation.decode import load, reference_batches

# The NLL is convex in 1/T, so the best of a grid is within a step of the best of all.
TEMPERATURES = tuple(2 ** (step / 16) for step in range(-16, 49))


def likelihoods(logits: Tensor, target: Tensor) -> tuple[int, Tensor, Tensor]:
    """How often the largest logit is the target's, and summed NLL in nats: at each of ``TEMPERATURES``, and at 1 over
    the positions where it is.

    Args:
        logits: (positions, vocabulary); ``target``: (positions,).
    """
    logits = logits.float()
    of_target = logits.gather(1, target[:, None]).squeeze(1)
    nats = [torch.logsumexp(logits / t, dim=1) - of_target / t for t in TEMPERATURES]
    is_right = logits.argmax(dim=1) == target
    sums = torch.stack([of_positions.double().sum() for of_positions in nats])
    return int(is_right.sum()), sums, nats[TEMPERATURES.index(1.0)][is_right].double().sum()


@torch.no_grad()
def measure(model: Any, task: Any, subset: str, max_tokens: int = 4000) -> dict[str, float | int]:
    """``accuracy`` of the next piece, ``nll`` in bits, also where it is right and where it is wrong, and the best
    ``temperature`` and the NLL at it.
    """
    correct, positions = 0, 0
    sums, of_right = torch.zeros(len(TEMPERATURES), dtype=torch.float64), 0.0
    for batch in reference_batches(task, subset, max_tokens):
        mask: Tensor = batch["target"] != task.target_dictionary.pad()
        logits = model(**batch["net_input"])[0]
        found, nats, nats_of_right = likelihoods(logits[mask], batch["target"][mask])
        correct, positions = correct + found, positions + int(mask.sum())
        sums, of_right = sums + nats, of_right + nats_of_right.item()
    bits = (sums / positions / math.log(2)).tolist()
    best = min(range(len(bits)), key=bits.__getitem__)
    nll, bits_of_right = bits[TEMPERATURES.index(1.0)], of_right / math.log(2)
    return {
        "accuracy": correct / positions,
        "nll": nll,
        "nll_where_right": bits_of_right / max(correct, 1),
        "nll_where_wrong": (nll * positions - bits_of_right) / max(positions - correct, 1),
        "temperature": TEMPERATURES[best],
        "nll_at_temperature": bits[best],
        "positions": positions,
    }


def main(arguments: list[str] | None = None) -> None:
    parser = Parser(prog="python -m translation.calibration", description=__doc__)
    parser.add_argument("data", type=Path, help="a data-bin")
    parser.add_argument("--path", type=Path, required=True, nargs="+", help="checkpoints, measured one by one")
    parser.add_argument("--subset", default="valid")
    options = parser.parse_args(arguments)
    try:
        models, task = load(options.path, options.data)
        rows = [
            {"checkpoint": str(path), **measure(model, task, options.subset)}
            for path, model in zip(options.path, models, strict=True)
        ]
    except (ValueError, OSError, RuntimeError) as error:
        sys.exit(f"translation.calibration: {error}")
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".3f"))


if __name__ == "__main__":
    main()
