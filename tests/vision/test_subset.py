"""Parts of the training data: balanced, nested, of the seed alone, and as many updates as with all of it."""

import json
import random
from fractions import Fraction
from pathlib import Path

import pytest
import torch

from tests.ranks import run_ranks
from tests.states import assert_same
from tests.vision.small import BATCHES_AN_EPOCH, PLAIN, final_state, run, run_rank
from vision.subset import training_samples
from vision.trainer import Trainer

QUARTER = [*PLAIN, "--train-fraction", "1/4"]
DISJOINT = ["--codistill-models", "2", "--codistill-exchange", "checkpoints", "--codistill-data", "disjoint"]
DISJOINT += ["--codistill-period", "3", "--codistill-lag", "1"]
LABELS = random.Random(3).choices(range(7), weights=range(1, 8), k=5000)


def test_every_class_gives_its_share_and_smaller_parts_are_in_larger_ones() -> None:
    larger = set(range(5000))
    for part in map(Fraction, ("1", "0.9", "1/2", "3/8", "1/4", "1/8", "1/16", "1/700")):
        samples = training_samples(LABELS, part, seed=2)
        chosen = set(samples.tolist())
        assert len(chosen) == len(samples) and chosen <= larger
        larger = chosen
        for label in range(7):
            members, own = LABELS.count(label), sum(LABELS[i] == label for i in chosen)
            assert own == max(1, int(members * part + Fraction(1, 2)))


def test_the_seed_chooses() -> None:
    first, again, other = (training_samples(LABELS, Fraction(1, 8), seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert len(set(first.tolist()) & set(other.tolist())) < 0.3 * len(first)


def test_a_quarter_of_the_data_takes_as_many_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """10 of 38 pictures, one of each class: each passes 3.8 times an epoch, and the run resumes in the middle."""
    seen: list[int] = []
    original = Trainer._train_batch

    def train_batch(self: Trainer, images: torch.Tensor, labels: torch.Tensor) -> None:
        seen.append(len(labels))
        original(self, images, labels)

    monkeypatch.setattr(Trainer, "_train_batch", train_batch)
    run([*QUARTER, "--output-dir", str(tmp_path / "whole")])
    assert seen == 3 * [8, 8, 8, 8, 6] and len(seen) == 3 * BATCHES_AN_EPOCH
    assert "model 0  trains on 10 of 38 pictures, 3.8 passes over them an epoch" in capsys.readouterr().out
    stopped = [*QUARTER, "--output-dir", str(tmp_path / "stopped"), "--resume", "auto", "--max-updates"]
    for updates in ("7", "15"):
        run([*stopped, updates])
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "stopped"))
    with pytest.raises(ValueError, match="train_fraction: '1/4' then, '1/2' now"):
        run([*stopped, "15", "--train-fraction", "1/2"])


def test_two_models_with_disjoint_data_resume_bit_for_bit(tmp_path: Path) -> None:
    options = [*PLAIN, *DISJOINT]
    whole = [*options, "--output-dir", str(tmp_path / "whole")]
    stopped = [*options, "--output-dir", str(tmp_path / "stopped"), "--resume", "auto"]
    run_ranks(2, run_rank, whole, [*stopped, "--max-updates", "7"], stopped)
    for model in (0, 1):
        assert_same(final_state(tmp_path / "whole", model), final_state(tmp_path / "stopped", model))
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["updates"] == 3 * BATCHES_AN_EPOCH, "as many as with the data in common"


def test_jobs_cut_the_data_alike_or_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts: list[set[int]] = []
    original = Trainer.train

    def train(self: Trainer) -> None:
        parts.append(set(self.sampler.samples.tolist()))
        original(self)

    monkeypatch.setattr(Trainer, "train", train)
    files = [*PLAIN, "--codistill-models", "2", "--codistill-exchange", "files", "--codistill-data", "disjoint"]
    files += ["--codistill-dir", str(tmp_path / "weights"), "--max-updates", "1", "--output-dir", str(tmp_path / "run")]
    run([*files, "--codistill-model-index", "0"])
    with pytest.raises(ValueError, match="cut the same data in the same way.*'seed': 0.*'seed': 4"):
        run([*files, "--codistill-model-index", "1", "--seed", "4"])
    run([*files, "--codistill-model-index", "1"])
    assert [len(part) for part in parts] == [19, 19] and parts[0] | parts[1] == set(range(38))
