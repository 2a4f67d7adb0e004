"""The figures of a translation run in tables: validation NLL at best and at the end, test scores, bytes, options."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from recipes.frames import load_runs
from recipes.runs import raw_summary


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """What two models leave that were best in the middle, as translation.evaluate has scored them."""
    run = tmp_path / "codistilled-s3"
    (run / "evaluation").mkdir(parents=True)
    models = [{"model": index, "traffic": {"sent/weights": 1e6}, "valid": {"nll_loss": 5.0}} for index in range(2)]
    (run / "summary.json").write_text(json.dumps({"models": models, "reported_model": 0}))
    lines = [
        {"update": update, "seconds": update, f"model{index}/valid/nll_loss": value + index}
        for index in range(2)
        for update, value in ((10, 4.0), (20, 3.0), (30, 3.5))
    ]
    lines.append({"update": 30, "seconds": 30, "model0/train/nll_loss": 1.5, "model1/train/nll_loss": 2.5})
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    names = {"model0": 20.0, "model1": 22.0, "ensemble": 25.0}
    scores = {name: {"bleu": bleu, "chrf": 2 * bleu, "compound_split_bleu": bleu + 1} for name, bleu in names.items()}
    (run / "evaluation/test.json").write_text(json.dumps({"systems": scores}))
    data = tmp_path / "data"
    data.mkdir()
    (data / "prepare.json").write_text(json.dumps({"settings": {"train_part": "1/8"}}))
    config = {"task": {"data": str(data)}, "criterion": {"codistill_period": 40, "label_smoothing": 0.1}}
    config |= {"optimization": {"max_update": 30, "lr": [0.1], "update_freq": [4]}}
    config |= {"model": {"arch": "transformer", "dropout": 0.3}, "dataset": {"max_tokens": 100}}
    config |= {"distributed_training": {"distributed_world_size": 2}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    return run


def test_figures(directory: Path) -> None:
    (row,) = load_runs(directory).table.to_dict("records")
    expected = {
        **{"valid_nll": 3.5, "best_valid_nll": 3.0, "best_update": 20, "mean_valid_nll": 4.0},
        **{"mean_best_valid_nll": 3.5, "mean_train_nll": 2.0, "bleu": 20.0, "mean_bleu": 21.0, "ensemble_bleu": 25.0},
        **{"mean_chrf": 42.0, "mb_sent": 2.0, "train_fraction": "1/8", "codistill_period": 40, "max_update": 30},
        **{"arch": "transformer", "dropout": 0.3, "label_smoothing": 0.1, "tokens_an_update": 800},
        **{"arm": "codistilled", "seed": 3},
    }
    assert {name: row[name] for name in expected} == expected


def test_a_raw_summary_gives_the_same_row(directory: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    about = {"name": "codistilled-s3", "arm": "codistilled", "seed": 3}
    (kept / "codistilled-s3.json").write_text(json.dumps(raw_summary(directory, about)))
    (row,), (again,) = (load_runs(path).table.to_dict("records") for path in (directory, kept))
    assert again == row


def test_seeds_of_one_arm_must_have_the_network_and_the_batch_in_common(directory: Path) -> None:
    other = directory.with_name("codistilled-s4")
    shutil.copytree(directory, other)
    config = yaml.safe_load((other / "config.yaml").read_text())
    config["distributed_training"]["distributed_world_size"], config["optimization"]["update_freq"] = 8, [1]
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    assert len(load_runs(directory.parent).table) == 2, "as many tokens, on more processes"
    config["optimization"]["update_freq"] = [2]
    (other / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(ValueError, match="have tokens_an_update 800 and 1600: move one"):
        load_runs(directory.parent)


def test_scores_of_one_other_test_set(directory: Path) -> None:
    """As recipes/wmt16_en_de/evaluate.sh leaves them. Of two others it would be a guess."""
    folder = directory / "evaluation"
    (folder / "test.json").rename(folder / "wmt14-full.json")
    (folder / "wmt14-full.against.other.json").write_text("{}")
    assert load_runs(directory).table["mean_bleu"].to_list() == [21.0]
    shutil.copy(folder / "wmt14-full.json", folder / "wmt16.json")
    assert "mean_bleu" not in load_runs(directory).table


def test_without_scores_there_is_the_nll(directory: Path) -> None:
    (directory / "evaluation/test.json").unlink()
    (row,) = load_runs(directory).table.to_dict("records")
    assert row["mean_valid_nll"] == 4.0 and "mean_bleu" not in row
