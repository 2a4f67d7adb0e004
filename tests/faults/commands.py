"""Training jobs in which processes die as planned."""

import json
from typing import TypeAlias

from tests.commands import ROOT, run, torchrun
from tests.faults.job import DYING

Fault: TypeAlias = tuple[int, str, int]
"""A rank, where it dies (``step`` or ``save``), and in which of these."""


def job(processes: int, *command: str, faults: list[Fault], restarts: int = 0) -> str:
    """Run ``tests/faults/job.py`` under torchrun, with a fault an attempt; its output."""
    launcher = torchrun(processes, "--max-restarts", str(restarts), str(ROOT / "tests/faults/job.py"))
    output = run([*launcher, *command], variables={"FAULTS": json.dumps(faults)})
    assert output.count(DYING.decode()) == len(faults), output[-6000:]
    return output
