"""Measures in the network lab what communication costs, and writes results/network (``recipes/communication.sh``)."""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from benchmarks.netlab.hosts import LabError
from benchmarks.netlab.run import run_job, run_training
from recipes.network import jobs, trainings
from recipes.network_page import report
from recipes.tables import write_page

OUT = Path(__file__).parents[1] / "results/network"


def train(out: Path, pattern: str) -> None:
    """Run what has no file yet."""
    runs = {name: (training, bits_per_second) for name, bits_per_second, training in trainings()}
    for name, path in _missing(out, pattern, runs):
        path.write_text(json.dumps(run_training(*runs[name], deadline_s=4 * 3600)) + "\n")


def measure(out: Path, pattern: str) -> None:
    """Measure what has no file yet."""
    named = dict(jobs())
    for name, path in _missing(out, pattern, named):
        job = named[name]
        try:
            result = run_job(job, deadline_s=1200)
        except LabError as error:
            if len(job.ways) > 2 or job.ways[0] != "alone":
                raise
            result = {"job": json.loads(job.to_json()), "ways": {job.ways[1]: {"error": _last_line(error)}}}
        path.write_text(json.dumps(result) + "\n")


def _missing(out: Path, pattern: str, names: Iterable[str]) -> Iterator[tuple[str, Path]]:
    """Those with the pattern in their name and without a file, which the caller then writes."""
    (out / "raw").mkdir(parents=True, exist_ok=True)
    for name in names:
        path = out / "raw" / f"{name}.json"
        if not path.exists() and pattern in name:
            print(f"== {name}", flush=True)
            yield name, path


def _last_line(error: Exception) -> str:
    """Of a traceback the line that says what went wrong."""
    lines = [text.strip() for text in str(error).splitlines() if "Error" in text]
    return (lines or [str(error)])[-1][:300]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("steps", "accuracy", "report"), nargs="?", default="steps")
    parser.add_argument("--only", default="", help="measurements with this in their name")
    parser.add_argument("--out", type=Path, default=OUT)
    args = parser.parse_args(argv)
    try:
        if args.what != "report":
            measure(args.out, args.only)
        if args.what == "accuracy":
            train(args.out, args.only)
    except LabError as error:
        sys.exit(str(error))
    print(write_page(args.out, report(args.out)))


if __name__ == "__main__":
    main()
