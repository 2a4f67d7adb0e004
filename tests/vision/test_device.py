"""Algorithms: the fastest, or those that give the same bits each time."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.states import assert_same
from tests.vision.small import PLAIN, final_state, run
from vision.device import set_algorithms

CUDA = torch.device("cuda")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    yield
    set_algorithms(torch.device("cpu"), deterministic=False)


def test_deterministic_runs_have_the_same_bits(tmp_path: Path) -> None:
    options = [*PLAIN, "--max-updates", "3", "--deterministic", "--output-dir"]
    for name in ("first", "second"):
        run([*options, str(tmp_path / name)])
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert_same(final_state(tmp_path / "first"), final_state(tmp_path / "second"))


def test_the_workspace_of_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(ValueError, match="CUBLAS_WORKSPACE_CONFIG to be :4096:8 or :16:8, .* has :0:0: unset it"):
        set_algorithms(CUDA, deterministic=True)
    set_algorithms(CUDA, deterministic=False)
    assert torch.backends.cudnn.benchmark and not torch.are_deterministic_algorithms_enabled()
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    set_algorithms(CUDA, deterministic=True)
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")  # it was set here
