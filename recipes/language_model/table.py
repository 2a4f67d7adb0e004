"""Runs side by side: ``python -m recipes.language_model.table RUN...``."""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

HEADINGS = ["run", "predicts", "ranks", "updates", "pieces read", "valid perplexity", "test perplexity"]


def rows(run: Path) -> Iterator[list[Any]]:
    """Each model of a run, their mean and their ensemble."""
    summary = json.loads((run / "summary.json").read_text())
    models = summary["models"]
    of_all = [run.name, None, summary["ranks"], summary["updates"], summary["pieces"]]
    for figures in models:
        name = f"model {figures['model']}"
        of_one = [summary["ranks"] // len(models), summary["updates"], summary["pieces"] // len(models)]
        yield [run.name, name, *of_one, figures["valid_perplexity"], figures["test_perplexity"]]
    for name in ("mean", "ensemble") if len(models) > 1 else ():
        figures = [summary[f"{name}_{split}_perplexity"] for split in ("valid", "test")]
        yield [run.name, name, *of_all[2:], *figures]


def table(runs: Sequence[Path]) -> str:
    lines = [row for run in runs for row in rows(run)]
    return tabulate(lines, HEADINGS, tablefmt="pipe", floatfmt=".2f", intfmt=",")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="recipes.language_model.table", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    print(table(parser.parse_args(argv).runs))


if __name__ == "__main__":
    main()
