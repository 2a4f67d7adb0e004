"""SIGKILL in the middle of real jobs: they end with the same bits as one that nothing happened to."""

import shutil
from pathlib import Path

import pytest

from tests.fairseq_plugin.commands import CRITERION, SMALL, train
from tests.faults.commands import Fault, job
from tests.faults.states import assert_same_run
from tests.ranks import run_ranks
from tests.vision.small import PLAIN, run, run_rank

TWO = ["--codistill-models", "2"]
IN_FLIGHT = ["--codistill-exchange", "checkpoints", "--codistill-period", "4", "--codistill-lag", "3"]  # in 2 pieces


@pytest.mark.parametrize(
    ("options", "faults"),
    [
        ([], [(3, "step", 5), (2, "save", 2)]),
        (IN_FLIGHT, [(0, "step", 6), (2, "save", 1)]),  # weights of update 4 are on their way
    ],
    ids=["predictions", "checkpoints in flight"],
)
def test_pictures_two_models_on_four_ranks_restart_by_themselves(
    options: list[str], faults: list[Fault], tmp_path: Path
) -> None:
    options = [*PLAIN, *TWO, *options, "--save-every-updates", "2"]
    run_ranks(4, run_rank, [*options, "--output-dir", str(tmp_path / "whole")])
    killed = [*options, "--output-dir", str(tmp_path / "killed"), "--resume", "auto"]
    output = job(4, "vision", *killed, faults=faults, restarts=2)
    assert output.count("exitcode  : -9") == 0 and "ensemble  top-1" in output, "torchrun restarted them"
    assert_same_run(tmp_path / "whole", tmp_path / "killed", "vision")
    assert not list((tmp_path / "killed").glob("model*/.*.tmp")), "half a file is cleared away"


@pytest.mark.real_python
def test_a_job_of_two_ranks_beside_the_files_of_its_peer_restarts_by_itself(tmp_path: Path) -> None:
    files = ["--codistill-exchange", "files", "--codistill-period", "4", "--codistill-lag", "2"]
    options = [*PLAIN, *TWO, *files, "--save-every-updates", "2"]

    def jobs_options(name: str, index: int) -> list[str]:
        place = ["--codistill-dir", str(tmp_path / name / "weights"), "--output-dir", str(tmp_path / name)]
        return [*options, *place, "--codistill-model-index", str(index)]

    run([*jobs_options("whole", 1)])
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    run_ranks(2, run_rank, jobs_options("whole", 0))
    faults: list[Fault] = [(1, "step", 8), (0, "save", 2)]
    job(2, "vision", *jobs_options("killed", 0), "--resume", "auto", faults=faults, restarts=2)
    assert_same_run(tmp_path / "whole", tmp_path / "killed", "vision", but_for=("dir",))


@pytest.mark.parametrize(
    ("options", "faults"),
    [
        (["--ddp-backend", "legacy_ddp"], [(2, "save", 2)]),
        ([*IN_FLIGHT, "--ddp-backend", "pytorch_ddp"], [(2, "save", 3), (3, "step", 2)]),
    ],
    ids=["predictions", "checkpoints in flight"],
)
def test_translation_two_models_on_four_ranks_restart_by_themselves(
    options: list[str], faults: list[Fault], data_bin: Path, tmp_path: Path
) -> None:
    """Model 1 dies while it writes, when model 0 may have saved already; then a worker dies between."""
    options = [*CRITERION, *TWO, *options, "--save-interval-updates", "3", "--max-update", "10", "--update-freq", "2"]
    options += ["--no-epoch-checkpoints", "--keep-interval-updates", "1"]
    train(data_bin, tmp_path / "whole", *options, processes=4)
    command = [str(data_bin), "--user-dir", "codistill_ext", *SMALL, *options, "--save-dir", str(tmp_path / "killed")]
    output = job(4, "fairseq", *command, faults=faults, restarts=2)
    assert "model1/checkpoint_last.pt (epoch" in output, "it did resume"
    assert_same_run(tmp_path / "whole", tmp_path / "killed", "fairseq")
    for index in range(2):
        assert len(list((tmp_path / f"whole/model{index}").glob("checkpoint_*_*.pt"))) == 1, "--keep-interval-updates 1"
