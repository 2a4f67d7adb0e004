"""Run directories that were made up, with figures that are easy to work out."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

UPDATES = (10, 20, 30, 40)


def write_run(
    parent: Path, arm: str, seed: int, *, top1: float, train_loss: float, models: int = 1, args: Mapping[str, Any] = {}
) -> Path:
    """Model 1 is a point better than model 0; the loss halves with every line of the metrics down to ``train_loss``."""
    directory = parent / f"{arm}-s{seed}"
    directory.mkdir(parents=True)
    lines = []
    for model in range(models):
        for place, update in enumerate(UPDATES):
            loss = train_loss * 2 ** (len(UPDATES) - 1 - place)
            values = {"train/loss": loss, "train/codistill_loss": loss / 10, "train/lr": 0.1}
            lines.append({"update": update, **{f"model{model}/{name}": value for name, value in values.items()}})
            lines.append({"update": update, f"model{model}/valid/top1": top1 + model - 40 + update})
    (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    finals = [
        {"top1": top1 + model, "valid_loss": 1.0, "history": [{"train_loss": 9.0}, {"train_loss": train_loss}]}
        for model in range(models)
    ]
    summary = {
        "models": finals,
        "mean_top1": top1 + (models - 1) / 2,
        "ensemble_top1": top1 + 2 * (models - 1),
        "agreement": 0.75 if models > 1 else None,
        "bytes": {"sent/predictions": 3_000_000, "received/predictions": 3_000_000} if models > 1 else {},
        "updates": UPDATES[-1],
        "args": {"codistill_models": models, **args},
    }
    (directory / "summary.json").write_text(json.dumps(summary))
    return directory
