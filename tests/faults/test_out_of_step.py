"""Models that leave step: none hangs its peer, and a kill among it changes nothing."""

import json
import re
from pathlib import Path

import pytest

from tests.fairseq_plugin.commands import CRITERION, SMALL
from tests.faults.commands import job
from tests.faults.states import assert_same_run

CHECKPOINTS = ["--codistill-exchange", "checkpoints", "--codistill-period", "3", "--codistill-lag", "1"]


def _run_whole_and_killed(
    data_bin: Path, tmp_path: Path, own: str, options: list[str], fault: tuple[int, str, int]
) -> tuple[str, list[int]]:
    """Model 1 has options of its own. The output of the run without a kill, and each model's updates."""
    settings = tmp_path / "settings.yaml"
    settings.write_text(f"1: {own}")
    command = [str(data_bin), "--user-dir", "codistill_ext", *SMALL, *CRITERION, "--codistill-models", "2", *options]
    command += ["--codistill-settings", str(settings), "--codistill-timeout", "60", "--max-update", "12"]
    command += ["--validate-interval-updates", "2", "--save-interval-updates", "2", "--keep-interval-updates", "1"]
    output = job(2, "fairseq", *command, "--save-dir", str(tmp_path / "whole"), faults=[])
    again = job(2, "fairseq", *command, "--save-dir", str(tmp_path / "killed"), faults=[fault], restarts=1)
    assert "Loaded checkpoint" in again, "it did resume"
    # A model that has finished says so again to peers that were restarted: these bytes did cross.
    but_for = ("sent/control", "received/control")
    assert_same_run(tmp_path / "whole", tmp_path / "killed", "fairseq", but_for=but_for)
    summary = json.loads((tmp_path / "whole/summary.json").read_text())
    return output, [model["updates"] for model in summary["models"]]


@pytest.mark.parametrize(
    ("own", "updates", "exchange"),
    [
        ("{patience: 1, lr: 0}", 4, CHECKPOINTS),  # its validation never gets better
        ("{stop_time_hours: 1.0e-9}", 1, []),
    ],
    ids=["early stopping", "stop-time"],
)
def test_a_model_ends_and_the_other_goes_on_also_after_a_kill(
    data_bin: Path, tmp_path: Path, own: str, updates: int, exchange: list[str]
) -> None:
    _, done = _run_whole_and_killed(data_bin, tmp_path, own, exchange, (0, "step", 8))
    assert done == [12, updates]


@pytest.mark.parametrize(
    "options", [["--fp16"], ["--amp"], ["--amp", *CHECKPOINTS]], ids=["fp16", "amp", "amp, checkpoints"]
)
def test_overflow_in_one_model(data_bin: Path, tmp_path: Path, options: list[str]) -> None:
    """Real float16: model 1 begins with a loss scale that is far too large, and with --fp16 often doubles it.

    With weights exchanged --amp tries a batch up to three times and then skips it, which is one update to the peer.
    """
    own = "{fp16_init_scale: 1048576, fp16_scale_window: 3}"
    output, done = _run_whole_and_killed(data_bin, tmp_path, own, options, (1, "step", 8))
    overflows = len(re.findall(r"(gradient|AMP:) overflow detected", output))
    assert overflows > 4 and done == [12, 12]
