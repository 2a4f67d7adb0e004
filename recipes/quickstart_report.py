"""The quickstart's result: one table, `summary.json` and the curves.

`python -m recipes.quickstart_report RUN_DIR`, after recipes/quickstart.sh has trained and scored into it:
`translation/` and `vision/`, each with `metrics.jsonl`, `summary.json` and `seconds`, and in `translation/`
the files `score-*.json` and `agreement.json`.
"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from recipes import runs
from recipes.runs import Curve, read_curves

PANELS = (  # run, key, title
    ("translation", "train/nll_loss", "translation: training NLL (bits a piece)"),
    ("translation", "valid/nll_loss", "translation: validation NLL (bits a piece)"),
    ("vision", "train/loss", "vision: training loss"),
    ("vision", "valid/top1", "vision: top-1 (%)"),
)


def read_json(path: Path) -> Any:
    return runs.read_json(path, "run recipes/quickstart.sh first")


def curve(path: Path, key: str) -> Curve:
    return read_curves(path).get(key, [])


def translation(run: Path) -> dict[str, Any]:
    """BLEU and validation NLL of each model and BLEU of the ensemble."""
    models = []
    for path in sorted(run.glob("score-model*.json"), key=lambda path: int(path.stem.removeprefix("score-model"))):
        score = read_json(path)
        index = path.stem.removeprefix("score-")
        nll = min((value for _, value in curve(run / "metrics.jsonl", f"{index}/valid/nll_loss")), default=math.nan)
        models.append({"bleu": score["bleu"], "valid_nll": nll})
    ensemble = read_json(run / "score-ensemble.json")
    result = {"models": models, "ensemble_bleu": ensemble["bleu"], "signature": ensemble["signature"]}
    result["sentences"] = ensemble["sentences"]
    result["agreement"] = read_json(run / "agreement.json")["agreement"]
    traffic = [Counter(model["traffic"]) for model in read_json(run / "summary.json")["models"]]
    return result | {"bytes": dict(sum(traffic, Counter()))}


def vision(run: Path) -> dict[str, Any]:
    """What the vision trainer summed up, its models cut down to the figure that is reported."""
    summary = read_json(run / "summary.json")
    result: dict[str, Any] = {"models": [{"top1": model["top1"]} for model in summary["models"]]}
    result["ensemble_top1"] = summary["ensemble_top1"]
    return result | {key: summary[key] for key in ("agreement", "bytes") if summary.get(key) is not None}


def summarise(run: Path) -> dict[str, Any]:
    """The whole of `summary.json`."""
    return {
        "translation": translation(run / "translation"),
        "vision": vision(run / "vision"),
        "seconds": {name: float(read_json(run / name / "seconds")) for name in ("translation", "vision")},
    }


def table(summary: dict[str, Any]) -> str:
    """The same for a terminal: one row a model, one for the ensemble, then what belongs to the pair."""
    text, pictures = summary["translation"], summary["vision"]
    rows: list[tuple[str, ...]] = [("", "translation", "", "vision"), ("", "test BLEU", "valid NLL", "top-1 %")]
    for index, (scored, seen) in enumerate(zip(text["models"], pictures["models"], strict=True)):
        rows.append((f"model {index}", *(f"{value:.2f}" for value in (*scored.values(), seen["top1"]))))
    rows.append(("ensemble", f"{text['ensemble_bleu']:.2f}", "", f"{pictures['ensemble_top1']:.2f}"))
    rows.append(("agreement", _percent(text), "", _percent(pictures)))
    rows.append(("MB sent", _megabytes(text), "", _megabytes(pictures)))
    seconds = summary["seconds"]
    rows.append(("seconds", f"{seconds['translation']:.0f}", "", f"{seconds['vision']:.0f}"))
    lines = [f"{name:<10}{bleu:>12}{nll:>11}{top1:>10}" for name, bleu, nll, top1 in rows]
    return "\n".join([*lines, f"BLEU: {text['sentences']} test pairs, sacrebleu {text['signature']}"])


def _percent(part: dict[str, Any]) -> str:
    return f"{100 * part['agreement']:.1f} %" if "agreement" in part else "-"


def _megabytes(part: dict[str, Any]) -> str:
    sent = [value for kind, value in part.get("bytes", {}).items() if kind.startswith("sent/")]
    return f"{sum(sent) / 1e6:.0f}" if sent else "-"


def draw(run: Path, models: int, path: Path) -> None:
    """Training and validation curves of every model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(11, 7), layout="constrained")
    for axis, (name, key, title) in zip(axes.flat, PANELS, strict=True):
        for index in range(models):
            points = curve(run / name / "metrics.jsonl", f"model{index}/{key}")
            marker = "o" if len(points) < 30 else ""
            axis.plot([x for x, _ in points], [y for _, y in points], marker=marker, label=f"model {index}")
        axis.set(title=title, xlabel="update")
        axis.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def main(run: Path) -> None:
    summary = summarise(run)
    draw(run, len(summary["vision"]["models"]), run / "curves.png")
    (run / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(table(summary))
    print(f"{run}/summary.json has the same, {run}/curves.png the curves")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except (FileNotFoundError, KeyError) as error:
        sys.exit(f"quickstart_report: {error}")
