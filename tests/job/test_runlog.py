"""Two models of one job are one run of TensorBoard and of W&B."""

import json
import platform
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

from codistill_ext.errors import Mistake
from codistill_ext.job.runlog import RunLog


def _groups(index: int, *, apart: bool = False) -> Any:
    return SimpleNamespace(
        is_lead=True, model_index=index, rank=0 if apart else index, num_models=2, separate_jobs=apart
    )


def _log(log: RunLog, update: int, loss: float) -> None:
    log.log({"train/loss": loss}, update=update)


def _events(directory: Path) -> set[tuple[str, int, float]]:
    (path,) = directory.glob("events.out.tfevents.*")
    values = [(event.step, value) for event in EventFileLoader(str(path)).Load() for value in event.summary.value]
    return {(value.tag, step, value.tensor.float_val[0]) for step, value in values}


class _Run:
    """Stands in for a run of W&B: wandb brings 15 packages and took a minute offline, where it was tried by hand."""

    def __init__(self, **options: Any) -> None:
        self.options, self.config = options, {}
        self.axes: dict[str, str | None] = {}
        self.logged: list[dict[str, float]] = []
        self.finished = False

    def define_metric(self, name: str, step_metric: str | None = None) -> None:
        self.axes[name] = step_metric

    def log(self, values: dict[str, float]) -> None:
        self.logged.append(values)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def wandb_runs(monkeypatch: pytest.MonkeyPatch) -> list[_Run]:
    runs: list[_Run] = []

    def init(**options: Any) -> _Run:
        run = _Run(**options)
        run.config = SimpleNamespace(update=lambda values, allow_val_change: runs[0].options.update(config=values))
        runs.append(run)
        return run

    module = ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_NAME", "WANDB_RUN_ID", "WANDB_MODE", "WANDB_RESUME"):
        monkeypatch.delenv(name, raising=False)
    return runs


def test_models_are_apart_by_prefix_in_one_run(tmp_path: Path, wandb_runs: list[_Run]) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"update": 1, "model0/train/loss": 9}) + "\nhalf a li\n")
    logs = [RunLog(tmp_path, _groups(index), wandb_project="texts") for index in range(2)]
    logs[0].write_config({"lr": 0.5})
    _log(logs[0], 2, 1.5)
    _log(logs[1], 1, 2.5)  # the models need not be in step
    _log(logs[0], 4, 0.5)
    for log in reversed(logs):
        log.close()
    expected = {("model0/train/loss", 2, 1.5), ("model1/train/loss", 1, 2.5), ("model0/train/loss", 4, 0.5)}
    assert _events(tmp_path) == expected
    (run,) = wandb_runs
    identity = {"id": (tmp_path / "wandb_run_id").read_text(), "resume": "allow"}
    assert run.options == {"project": "texts", "name": tmp_path.name, "config": {"lr": 0.5}, **identity}
    assert run.finished
    assert run.axes["model1/*"] == "model1/update"
    assert {
        (key, line[f"{key[:6]}/update"], value) for line in run.logged for key, value in line.items() if "train" in key
    } == (expected)


def test_a_job_that_was_started_again_goes_on_in_its_run(
    tmp_path: Path, wandb_runs: list[_Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    for own in ("", "", "mine"):
        monkeypatch.setenv("WANDB_RUN_ID", own)
        RunLog(tmp_path, _groups(0), wandb_project="texts").close()
    first, second, third = (run.options["id"] for run in wandb_runs)
    assert len(first) == 8 and first == second and third == "mine"
    monkeypatch.setenv("WANDB_RUN_ID", "")
    monkeypatch.setenv("WANDB_MODE", "offline")
    RunLog(tmp_path, _groups(0), wandb_project="texts").close()
    assert wandb_runs[-1].options["id"] is None


def test_jobs_that_share_a_directory_show_their_own_model(tmp_path: Path) -> None:
    logs = [RunLog(tmp_path, _groups(index, apart=True), tensorboard=tmp_path / "events") for index in range(2)]
    for index, log in enumerate(logs):
        _log(log, 1, index)
    for index, log in enumerate(logs):
        log.close()
        assert _events(tmp_path / f"events/model{index}") == {(f"model{index}/train/loss", 1, index)}


def test_a_project_without_wandb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(Mistake, match="needs wandb .*: pip install wandb, or leave --wandb-project out"):
        RunLog(tmp_path, _groups(0), wandb_project="texts")


def test_a_summary_says_what_the_run_was_made_with(tmp_path: Path) -> None:
    for index in reversed(range(2)):
        RunLog(tmp_path, _groups(index)).write_summary({"model": index})
    summary = json.loads((tmp_path / "summary.json").read_text())
    environment = summary.pop("environment")
    assert summary == {"model": 0}, "model 1's ranks are not the job's first"
    assert (environment["torch"], environment["threads"]) == (torch.__version__, torch.get_num_threads())
    assert environment["python"] == platform.python_version()
    assert torch.backends.cpu.get_cpu_capability() in environment["processor"]
