"""The benchmark of fairseq's throughput, on something small. What it measures is not tested."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import fairseq_throughput
from tests.commands import run


def test_fairseq_throughput(data_bin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of its commands, and what it makes of the measurements of all."""
    args = argparse.Namespace(data=str(data_bin), rounds=2, updates=16, max_tokens=200, width=16)
    coupled = fairseq_throughput.TWO["predictions, top 64"]
    run(fairseq_throughput.command(args, coupled, tmp_path, 2))
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2))
    assert first["words"] == second["words"] and len(first["words"]) == len(first["seconds"]) == 2

    def measured(_: Any, options: list[str], directory: Path, processes: int) -> list[dict[str, Any]]:
        summary = {"models": [{"updates": 16, "traffic": {"sent/predictions": 160}}]}
        (directory / "run").mkdir(parents=True)
        (directory / "run/summary.json").write_text(json.dumps(summary))
        second = 0.5 if options == fairseq_throughput.ALONE["stock"] else 0.625
        return [{"seconds": [second, second], "words": [10, 30], "peak_mb": 7}] * processes

    monkeypatch.setattr(fairseq_throughput, "train", measured)
    one = fairseq_throughput.one_model(args, tmp_path)
    assert one["ours_to_stock"] == one["ours_to_stock_of_totals"] == 0.8
    assert one["words_a_second"] == {"stock": [40, 40], "one model": [32, 32]}
    for case in fairseq_throughput.two_models(args, tmp_path).values():
        assert case["words_a_second_a_model"] == [32, 32] and case["bytes_an_update"] == 10
