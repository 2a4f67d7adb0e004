"""The figures of a translation run: validation NLL at its best update and at the end, and test scores.

All in the units of their files: NLL in bits a piece, as fairseq logs it; BLEU and chrF in points, from
``translation.evaluate``, which the runs of a plan end with.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

Curve = list[tuple[float, float]]
MEANS = ("valid_nll", "best_valid_nll", "train_nll", "bleu", "chrf", "compound_split_bleu")
_SCORES = ("bleu", "chrf", "compound_split_bleu")


def model_figures(directory: Path, curves: Mapping[str, Curve], index: int) -> dict[str, Any]:
    """Of one model; empty if the run is none of translation."""
    figures: dict[str, Any] = {}
    if valid := curves.get(f"model{index}/valid/nll_loss"):
        best = min(valid, key=lambda point: point[1])
        figures |= {"valid_nll": valid[-1][1], "best_valid_nll": best[1], "best_update": best[0]}
    if train := curves.get(f"model{index}/train/nll_loss"):
        figures["train_nll"] = train[-1][1]
    return figures | _scores(directory).get(f"model{index}", {})


def run_figures(directory: Path, models: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the models, and the ensemble's scores."""
    known = [name for name in MEANS if all(name in model for model in models)]
    figures = {f"mean_{name}": statistics.fmean(model[name] for model in models) for name in known}
    ensemble = _scores(directory).get("ensemble", {})
    figures |= {f"ensemble_{name}": value for name, value in ensemble.items()}
    if any("traffic" in model for model in models):
        figures["bytes"] = dict(sum((Counter(model.get("traffic", {})) for model in models), Counter()))
    return figures


def _scores(directory: Path) -> dict[str, dict[str, float]]:
    """On the data-bin's own test split, or on the one other test set that the run was evaluated on."""
    folder = directory / "evaluation"
    written = [path for path in folder.glob("*.json") if ".against." not in path.name]
    paths = [path for path in written if path.name == "test.json"] or written
    if len(paths) != 1:
        return {}
    systems = json.loads(paths[0].read_text(encoding="utf-8"))["systems"]
    return {name: {score: system[score] for score in _SCORES} for name, system in systems.items()}


def run_options(directory: Path) -> dict[str, Any]:
    """What a run of fairseq was told, as far as tables show it or its seeds must have it in common."""
    path = directory / "config.yaml"
    config = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if "criterion" not in config or "task" not in config:
        return {}
    criterion, optimization = config["criterion"], config["optimization"]
    options = {name: value for name, value in criterion.items() if name.startswith("codistill_")}
    options |= {name: optimization.get(name) for name in ("max_update", "lr")}
    options |= {"arch": config["model"].get("arch"), "dropout": config["model"].get("dropout")}
    options |= {"label_smoothing": criterion.get("label_smoothing")}
    if tokens := config["dataset"].get("max_tokens"):  # however many processes share them
        processes = config["distributed_training"]["distributed_world_size"]
        options["tokens_an_update"] = tokens * processes * optimization["update_freq"][0]
    stamp = Path(str(config["task"].get("data"))) / "prepare.json"
    if stamp.is_file():
        options["train_fraction"] = json.loads(stamp.read_text(encoding="utf-8"))["settings"]["train_part"]
    return options
