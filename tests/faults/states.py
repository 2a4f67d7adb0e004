"""What two runs left behind, compared bit by bit, but for what the clock puts into it."""

from pathlib import Path

from codistill_ext.job.storage import load_whole
from tests.states import assert_same, without

_CLOCKS = ("seconds", "taken_at", "previous_training_time", "metrics", "valid")
_FILES = {"vision": "checkpoint.pt", "fairseq": "checkpoint_last.pt"}


def assert_same_run(first: Path, second: Path, trainer: str, models: int = 2, *, but_for: tuple[str, ...] = ()) -> None:
    """Compare the last checkpoints: models, optimizers, schedules, teachers, data position, random state."""
    for index in range(models):
        states = [load_whole(run / f"model{index}" / _FILES[trainer]) for run in (first, second)]
        for state in states:
            state.pop("cfg", None)  # fairseq's, with the directory
            state["optimizer_history"] = state.get("optimizer_history", [])[-1:]  # it adds one every time it resumes
        assert_same(*(without(state, _CLOCKS + but_for) for state in states), f"model{index}")
