"""fairseq's own options beside several models: each works and resumes to the same bits, or is refused with its reason.

Several options share a run where none hides another; docs/fairseq.md has the table.
"""

import copy
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from fairseq import options as fairseq_options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from omegaconf import OmegaConf

from codistill_ext.config import CodistillConfig, flag, help_text
from codistill_ext.fairseq_plugin import launch
from codistill_ext.tasks import codistill_translation  # noqa: F401  registers the criterion
from tests.fairseq_plugin.commands import CRITERION, SMALL, SMALL_LM, same_bits, train, weights
from tests.faults.states import assert_same_run

LAST = "checkpoint_last.pt"
TWO = [*CRITERION, "--codistill-models", "2"]
CHECKPOINTS = ["--codistill-exchange", "checkpoints", "--codistill-period", "4", "--codistill-lag", "1"]


def _whole_and_resumed(
    data: str, folder: Path, options: list[str], updates: int, middle: int, small: list[str] = SMALL
) -> str:
    """A run, and one that begins with its checkpoints of ``middle``, end with the same bits; the whole one's output."""
    options = [*options, "--save-interval-updates", str(middle), "--max-update", str(updates)]
    output = train(data, folder / "whole", *options, processes=2, small=small)
    for index in range(2):
        (saved,) = (folder / f"whole/model{index}").glob(f"checkpoint_*_{middle}.pt")
        (folder / f"parts/model{index}").mkdir(parents=True)
        shutil.copy(saved, folder / f"parts/model{index}" / LAST)
    resumed = train(data, folder / "parts", *options, processes=2, small=small)
    assert all(f"model{index}/{LAST} (epoch" in resumed for index in range(2)), "it did resume"
    assert_same_run(folder / "whole", folder / "parts", "fairseq")
    return output


def _metrics(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def shards(data_bin: Path, tmp_path: Path) -> str:
    """Two directories of few training sentences, so that an epoch is a few updates."""
    for shard, train_split in (("shard0", "valid"), ("shard1", "test")):
        folder = tmp_path / shard
        folder.mkdir()
        for path in data_bin.glob("dict.*.txt"):
            shutil.copy(path, folder)
        for split, source in (("train", train_split), ("valid", "valid"), ("test", "test")):
            for path in data_bin.glob(f"{source}.en-de.*"):
                shutil.copy(path, folder / path.name.replace(source, split, 1))
    return f"{tmp_path / 'shard0'}:{tmp_path / 'shard1'}"


def test_sharded_data_two_subsets_bleu_averages_and_workers(shards: str, tmp_path: Path) -> None:
    """Resumed in the second epoch, which reads the second directory."""
    options = ["--update-freq", "2", "--max-tokens", "200", "--required-batch-size-multiple", "1", "--lr", "5e-3"]
    options += ["--num-workers", "1", "--store-ema", "--ema-decay", "0.9", "--ema-update-freq", "3"]
    options += ["--valid-subset", "valid,test", "--fixed-validation-seed", "7"]
    options += ["--eval-bleu", "--eval-bleu-args", '{"beam": 1, "max_len_a": 0, "max_len_b": 8}']
    options += ["--best-checkpoint-metric", "bleu", "--maximize-best-checkpoint-metric", "--keep-best-checkpoints", "2"]
    _whole_and_resumed(shards, tmp_path, [*TWO, *options], 14, 8)
    lines = _metrics(tmp_path / "whole")
    for index in range(2):
        folder = tmp_path / f"whole/model{index}"
        assert (folder / "checkpoint_2_8.pt").exists() and (folder / "checkpoint2.pt").exists()
        bleu = [line[f"model{index}/valid/bleu"] for line in lines if f"model{index}/valid/bleu" in line]
        assert len(bleu) == sum(f"model{index}/valid.test/bleu" in line for line in lines) > 3
        kept = sorted(float(re.search(r"bleu_(\d+\.\d\d)", path.name)[1]) for path in folder.glob("*best_bleu*"))
        assert 1 <= len(kept) <= 2 and kept[-1] == pytest.approx(max(bleu), abs=0.01)  # fairseq gives some one name
        best = torch.load(folder / "checkpoint_best.pt", weights_only=True)["extra_state"]
        assert best["val_loss"] == best["best"] == pytest.approx(max(bleu)) and max(bleu) > 0
        extra = torch.load(folder / LAST, weights_only=True)["extra_state"]
        assert extra["codistill"]["ema_updates"] == 14 % 3
        assert not same_bits(folder / LAST, folder / "checkpoint_2_8.pt")
        assert any(not torch.equal(mean, weights(folder / LAST)[name]) for name, mean in extra["ema"].items())


def test_loading_processes_and_a_seed_of_validation_change_nothing_in_training(shards: str, tmp_path: Path) -> None:
    options = [*TWO, "--max-tokens", "200", "--max-update", "6", "--validate-interval-updates", "2"]
    train(shards, tmp_path / "plain", *options, processes=2)
    train(shards, tmp_path / "more", *options, "--num-workers", "1", "--fixed-validation-seed", "7", processes=2)
    for index in range(2):
        assert same_bits(*(tmp_path / f"{name}/model{index}" / LAST for name in ("plain", "more")))


def test_sharded_data_each_at_its_own_pace_and_in_parts(shards: str, tmp_path: Path) -> None:
    """Checkpoints and disjoint data: each directory is cut, and resumed in the second one."""
    options = [*TWO, *CHECKPOINTS, "--codistill-data", "disjoint", "--max-tokens", "200"]
    options += ["--required-batch-size-multiple", "1"]
    _whole_and_resumed(shards, tmp_path, options, 14, 8)
    epochs = [torch.load(tmp_path / f"whole/model{index}" / LAST, weights_only=True) for index in range(2)]
    assert all(state["extra_state"]["train_iterator"]["epoch"] >= 2 for state in epochs)
    assert not same_bits(*(tmp_path / f"whole/model{index}" / LAST for index in range(2)))


def test_models_that_exchange_predictions_add_up_as_many_batches(data_bin: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("1: {update_freq: '2'}\n")
    options = [*TWO, "--codistill-settings", str(settings), "--max-update", "2"]
    said = train(data_bin, tmp_path / "run", *options, processes=2, fails=True)
    assert "--update-freq of models that exchange predictions must be the same everywhere" in said
    assert "update_freq: [1] and [2]" in said


def test_language_models_in_bfloat16(data_bin: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    shutil.copy(data_bin / "dict.en.txt", data / "dict.txt")
    for split in "train", "valid":
        for ending in "bin", "idx":
            shutil.copy(data_bin / f"{split}.en-de.en.{ending}", data / f"{split}.{ending}")
    _whole_and_resumed(str(data), tmp_path, [*TWO, "--bf16", *CHECKPOINTS], 14, 6, small=SMALL_LM)
    summary = json.loads((tmp_path / "whole/summary.json").read_text())
    assert all(one["valid"]["nll_loss"] < 9 and one["traffic"]["sent/weights"] > 0 for one in summary["models"])
    saved = torch.load(tmp_path / "whole/model0" / LAST, weights_only=True)["extra_state"]["codistill"]
    assert saved["precision"]["masters"][0].dtype == torch.float32


def test_lightconv_beside_transformer_align(data_bin: Path, tmp_path: Path) -> None:
    settings = tmp_path / "settings.yaml"
    settings.write_text("1: {arch: lightconv, encoder_kernel_size_list: '[3]', decoder_kernel_size_list: '[3]'}\n")
    options = ["--arch", "transformer_align", "--codistill-settings", str(settings), "--max-update", "4"]
    train(data_bin, tmp_path / "run", *TWO, *options, processes=2)
    first, second = (weights(tmp_path / f"run/model{index}" / LAST) for index in range(2))
    assert any("self_attn" in name for name in first) and any("conv.weight" in name for name in second)
    (line,) = (line for line in _metrics(tmp_path / "run") if line.get("update") == 4 and "model0/train/loss" in line)
    assert line["model0/train/codistill_loss"] > 0


def test_what_is_refused() -> None:
    parser = fairseq_options.get_training_parser()
    given = convert_namespace_to_omegaconf(launch.parse_args_and_arch(parser, ["data", *SMALL, *TWO]))
    for name, value, message in (
        ("common.tpu", True, "--tpu works on the whole job and would mix the 2 models"),
        ("distributed_training.ddp_backend", "fully_sharded", "--ddp-backend fully_sharded works on the whole job"),
        ("distributed_training.pipeline_model_parallel", True, "--pipeline-model-parallel works on the whole job"),
        ("common.model_parallel_size", 2, "--model-parallel-size works on the whole job"),
        ("common.azureml_logging", True, "--azureml-logging would log all models under the same names"),
        ("common.aim_run_hash", "1", "--aim-run-hash would log all models under the same names"),
        ("checkpoint.write_checkpoints_asynchronously", True, "-asynchronously leaves no whole checkpoint_last.pt"),
        ("task.load_alignments", True, "--load-alignments has no effect: codistill_label_smoothed_ce has no alignment"),
    ):
        cfg = copy.deepcopy(given)
        OmegaConf.update(cfg, name, value)
        with pytest.raises(ValueError, match=message):
            launch.prepare(cfg)
    cfg = copy.deepcopy(given)
    cfg.criterion.codistill_weight_decay, cfg.optimizer.weight_decay = "1e-4,0@50%", None
    with pytest.raises(ValueError, match="replaces --weight-decay, which --optimizer adam does not have: leave it out"):
        launch.prepare(cfg)
    given.model.adaptive_softmax_cutoff = "100,200"
    with pytest.raises(ValueError, match="with --adaptive-softmax-cutoff a model returns no logits"):
        launch.prepare(given)


def test_the_help_has_every_option_with_its_unit_and_range(capsys: pytest.CaptureFixture[str]) -> None:
    parser = fairseq_options.get_training_parser()
    with pytest.raises(SystemExit):
        launch.parse_args_and_arch(parser, ["--help"])
    shown = "".join(capsys.readouterr().out.split())
    for name in CodistillConfig.__dataclass_fields__:
        option = CodistillConfig.__dataclass_fields__[name]
        text = help_text(option).replace("%%", "%")
        assert flag(name) in shown and "".join(text.split()) in shown
        assert re.search(r"\[.+; default: .+\]$", text), name
    assert "[updates, 0 or more; default: 0]" in help_text(CodistillConfig.__dataclass_fields__["burn_in"])
    assert all(f"--codistill-{name}" in shown for name in ("label-smoothing", "dropout", "weight-decay"))
