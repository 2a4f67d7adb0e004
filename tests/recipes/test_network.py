"""The tables of what communication costs, of made-up measurements, and what is to be measured."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.netlab.accuracy import Training, draw
from benchmarks.netlab.others import WAYS
from benchmarks.netlab.ways import NAMES, options_of
from codistill_ext import CodistillConfig
from recipes.network import SEEDS, SHORT_UPDATES, jobs, trainings
from recipes.network_page import report


def test_every_way_that_is_measured_exists() -> None:
    names = [name for name, _ in jobs()] + [name for name, *_ in trainings()]
    assert len(names) == len(set(names))
    ways = [(way, job.hosts) for _, job in jobs() for way in job.ways]
    for way, hosts in [*ways, *((training.way, training.hosts) for *_, training in trainings())]:
        if way not in NAMES and way not in WAYS and way != "all-reduce":
            options, hosts_a_model = options_of(way)
            assert CodistillConfig(models=hosts // hosts_a_model, **options).active


def _way(median_ms: float) -> dict[str, Any]:
    return {"median_ms": median_ms, "mean_ms": 2.0, "worst_ms": 3.0, "waited_ms": 0.5, "sent_mb": 1.0, "ready_s": 0.1}


def test_the_page_has_what_has_been_measured(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    found: dict[str, Any] = {
        "talk_8x10": {"ways": {"ddp": _way(1500.0), "predictions-topk-ring/1": _way(415.0)}},
        "others_slowmo-16": {"ways": {"slowmo-16": {"error": "ImportError: no fairscale"}}},
        "links_2x1": {"ways": {"all-reduce": {"median_s": 0.5, "formula_s": 0.4, "ratio": 1.25}}},
    }
    for seed in SEEDS:
        run = {"top1": 80.0 + seed, "mean_top1": 81.0, "seconds": 100.0, "sent_mb": 7.0}
        found[f"accuracy_predictions-full_1_{seed}"] = run
        found[f"accuracy_checkpoints-t50_2_{seed}"] = run
    found["seconds_predictions-full_1"] = {"seconds": SHORT_UPDATES * 0.1}
    found["seconds_checkpoints-t50_2"] = {"seconds": SHORT_UPDATES * 0.1}  # then each update is twice as long
    found["seconds_checkpoints-t50_2_twice"] = {"seconds": SHORT_UPDATES * 0.3}
    for name, result in found.items():
        (raw / f"{name}.json").write_text(json.dumps(result))
    text = report(tmp_path)
    assert (
        "| predictions-topk/1 |  |  |  | 415 |" in text and "| the talk's, measured | 412 | 956 | 1568 | 1593 |" in text
    )
    assert "- slowmo-16: ImportError: no fairscale" in text
    assert "| 2x1 | 0.500 | 0.400 | 1.25 |" in text
    assert "| predictions-full/1 | 81.00 | 1.00 | 81.00 | 7 | 100 | 150 |" in text
    assert "| checkpoints-t50/2 | 81.00 | 1.00 | 81.00 | 7 | 100 | 290 |" in text, "10 s, and 1400 updates of 0.2 s"
    for name in "talk.png", "accuracy.png":
        assert (tmp_path / name).stat().st_size > 1000


def test_hosts_read_the_same_pictures_only_where_they_should() -> None:
    training = Training(way="ddp", hosts=2, seed=1, updates=10, batch=4)
    data = {
        "train_images": torch.randint(0, 256, (50, 3, 32, 32), dtype=torch.uint8),
        "train_labels": torch.arange(50, dtype=torch.uint8),
    }
    (x, y), (again, _), (other, _) = (draw(data, training, 3, reader) for reader in (0, 0, 1))
    assert x.shape == (4, 3, 32, 32) and y.dtype == torch.int64
    assert torch.equal(x, again) and not torch.equal(x, other)
    assert training.lr(0, 128) == pytest.approx(0.1) and training.lr(5, 256) == pytest.approx(0.1)
