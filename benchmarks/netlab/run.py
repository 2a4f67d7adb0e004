"""Measures jobs in a lab of their own."""

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.netlab.accuracy import Training
from benchmarks.netlab.agents import run_on
from benchmarks.netlab.hosts import lab
from benchmarks.netlab.job import Job


def run_job(job: Job, *, deadline_s: float = 600.0) -> dict[str, Any]:
    """Make the hosts, measure, remove them; what ``measure.py`` wrote, and the job.

    Raises:
        LabError: no lab can be made here, or a host failed.
    """
    program = "benchmarks.netlab.measure"
    measured = _run(job, program, job.bits_per_second, ranks=job.ranks, deadline_s=deadline_s, pin=not job.compute_ms)
    return {"job": dataclasses.asdict(job), **measured}


def run_training(training: Training, bits_per_second: float, *, deadline_s: float) -> dict[str, Any]:
    """The same for a run to the end; what ``accuracy.py`` wrote, and the links' rate."""
    program = "benchmarks.netlab.accuracy"
    measured = _run(training, program, bits_per_second, ranks=1, deadline_s=deadline_s, pin=True)
    return {"bits_per_second": bits_per_second, **measured}


def _run(
    task: Job | Training, program: str, bits_per_second: float, *, ranks: int, deadline_s: float, pin: bool
) -> dict[str, Any]:
    """Run a program on the hosts of a lab; what it wrote."""
    with tempfile.TemporaryDirectory(prefix="netlab") as directory:
        path = Path(directory, "result.json")
        with lab(task.hosts, bits_per_second) as hosts:
            arguments = ["-m", program, dataclasses.replace(task, result=str(path)).to_json()]
            run_on(hosts, arguments, ranks=ranks, deadline_s=deadline_s, pin=pin)
        measured: dict[str, Any] = json.loads(path.read_text())
    return measured


def table(*results: dict[str, Any]) -> str:
    """A Markdown table of the ways of jobs; steps as multiples of the job's way ``alone`` if it is among them."""
    of_alone = any("alone" in result["ways"] for result in results)
    unit = "of alone" if of_alone else "ms"
    columns = ("way", f"median {unit}", f"mean {unit}", f"worst {unit}", f"of it waiting {unit}")
    rows: dict[str, Sequence[object]] = {}
    failed = []
    for result in results:
        one = result["ways"].get("alone", {}).get("median_ms", 1)  # where it is missing, all others failed too
        for name, way in result["ways"].items():
            if "error" in way:
                failed.append(f"- {name}: {way['error']}")
            elif name not in rows:
                steps = [way[key] / one for key in ("median_ms", "mean_ms", "worst_ms", "waited_ms")]
                rows[name] = (name, *(f"{step:.2f}" for step in steps), f"{way['sent_mb']:.3f}", way["ready_s"])
    lines = [(*columns, "MB sent a step", "ready in s"), ("---",) * 7, *rows.values()]
    cells = ["| " + " | ".join(map(str, row)) + " |" for row in lines]
    return "\n".join([*cells, *(["", "Does not run here:", "", *failed] if failed else [])])
