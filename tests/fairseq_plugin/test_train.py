"""fairseq-train with the plug-in: real fairseq, real sentences, real processes."""

import json
import math
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from fairseq import checkpoint_utils, tasks, utils
from fairseq import options as fairseq_options

from codistill_ext.criterions.codistill_label_smoothed_ce import regularisation
from codistill_ext.fairseq_plugin import launch
from codistill_ext.tasks import codistill_translation  # noqa: F401  registers the criterion
from tests.commands import run, script, torchrun
from tests.fairseq_plugin.commands import CRITERION, SMALL, STOCK, same_bits, train, weights

LAST = "checkpoint_last.pt"
TWO = [*CRITERION, "--codistill-models", "2"]


@pytest.fixture(scope="module")
def stock(data_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of fairseq's own criterion, in one process."""
    folder = tmp_path_factory.mktemp("stock")
    train(data_bin, folder, *STOCK, "--max-update", "12")
    return folder


@pytest.fixture(scope="module")
def codistilled(data_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Two models in two processes that exchange predictions: their directory, and the output."""
    folder = tmp_path_factory.mktemp("codistilled")
    return folder, train(data_bin, folder, *TWO, "--max-update", "12", "--task", "codistill_translation", processes=2)


def test_one_model_is_the_stock_run_bit_for_bit(data_bin: Path, stock: Path, tmp_path: Path) -> None:
    train(data_bin, tmp_path, *CRITERION, "--max-update", "12")
    assert same_bits(tmp_path / "model0" / LAST, stock / LAST)


@pytest.mark.real_python
def test_weight_zero_is_the_stock_run_bit_for_bit(data_bin: Path, stock: Path, tmp_path: Path) -> None:
    train(data_bin, tmp_path, *TWO, "--codistill-alpha", "0", "--max-update", "12", processes=2)
    assert same_bits(tmp_path / "model0" / LAST, stock / LAST)
    assert not same_bits(tmp_path / "model1" / LAST, stock / LAST)


@pytest.mark.parametrize("backend", ["pytorch_ddp", "legacy_ddp"])
def test_weight_zero_of_two_ranks_is_one_model_on_two_ranks(data_bin: Path, tmp_path: Path, backend: str) -> None:
    options = ["--max-update", "8", "--ddp-backend", backend, "--update-freq", "2"]
    train(data_bin, tmp_path / "one", *CRITERION, *options, processes=2)
    train(data_bin, tmp_path / "two", *TWO, "--codistill-alpha", "0", *options, processes=4)
    assert same_bits(tmp_path / "one/model0" / LAST, tmp_path / "two/model0" / LAST)


def test_every_model_is_visible(codistilled: tuple[Path, str], stock: Path) -> None:
    folder, output = codistilled
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    for index in range(2):
        assert re.search(rf"model{index} \| INFO \| valid .* nll_loss", output)
        assert re.search(rf"model{index} \| INFO \| train_inner .* codistill_loss=", output)
        assert any(f"model{index}/train/codistill_loss" in line for line in lines)
        valid = [line for line in lines if f"model{index}/valid/nll_loss" in line]
        assert valid and not any(f"model{index}/valid/codistill_loss" in line for line in valid)
        assert summary["models"][index]["updates"] == 12
        assert not same_bits(folder / f"model{index}" / LAST, stock / LAST)
    assert (folder / "config.yaml").exists()
    assert len(list(folder.rglob("events.out.tfevents.*"))) == 1, "one run of TensorBoard"


def test_distance_from_the_first_weights_and_bytes_come_with_each_validation(codistilled: tuple[Path, str]) -> None:
    """The first weights are built again, as fairseq's main does it."""
    folder, _ = codistilled
    summary = json.loads((folder / "summary.json").read_text())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for index in range(2):
        name = f"model{index}/train/distance_from_start"
        *_, last = (line for line in lines if name in line)
        cfg = checkpoint_utils.load_checkpoint_to_cpu(str(folder / f"model{index}" / LAST))["cfg"]
        utils.set_torch_seed(cfg.common.seed)
        first = tasks.setup_task(cfg.task).build_model(cfg.model)
        end = weights(folder / f"model{index}" / LAST)
        begun = {key: value.detach() for key, value in first.named_parameters()}
        squares = sum(float((end[key] - value).double().square().sum()) for key, value in begun.items())
        assert last[name] == pytest.approx(math.sqrt(squares), rel=1e-5) and last[name] > 0.1
        traffic = summary["models"][index]["traffic"]
        sent = sum(count for kind, count in traffic.items() if kind.startswith("sent/"))
        assert last[f"model{index}/train/bytes_sent"] == pytest.approx(sent, rel=1e-4)  # control messages follow
        assert any(line.get(f"model{index}/train/weight_decay") == 0 for line in lines)


def test_bytes_of_predictions_are_those_of_the_tokens(codistilled: tuple[Path, str]) -> None:
    folder, output = codistilled
    summary = json.loads((folder / "summary.json").read_text())
    tokens = sum(
        round(float(match)) * 2  # words a batch times the updates of the interval
        for match in re.findall(r"model0 \| INFO \| train_inner .* wpb=([\d.]+)", output)
    )
    vocabulary = weights(folder / "model0" / LAST)["decoder.embed_tokens.weight"].size(0)
    sent = summary["models"][0]["traffic"]["sent/predictions"]
    assert sent == pytest.approx(tokens * vocabulary * 4, rel=0.01)  # wpb is printed rounded


@pytest.mark.slow
def test_validation_counts_every_sentence(codistilled: tuple[Path, str], data_bin: Path) -> None:
    """Against a count by hand, a sentence at a time."""
    path = str(codistilled[0] / "model0" / LAST)
    (model,), _, task = checkpoint_utils.load_model_ensemble_and_task([path], arg_overrides={"data": str(data_bin)})
    task.load_dataset("valid")
    dataset = task.dataset("valid")
    assert len(dataset) % 8, "fairseq would drop some"
    total, tokens = 0.0, 0
    model.eval()
    for index in range(len(dataset)):
        sample = dataset.collater([dataset[index]])
        with torch.no_grad():
            logits = model(**sample["net_input"])[0]
        total += torch.nn.functional.cross_entropy(logits[0], sample["target"][0], reduction="sum").item()
        tokens += sample["ntokens"]
    valid = json.loads((codistilled[0] / "summary.json").read_text())["models"][0]["valid"]
    assert valid["nll_loss"] == pytest.approx(total / tokens / math.log(2), abs=1e-3)


@pytest.mark.real_python
def test_stock_commands_read_the_checkpoints(codistilled: tuple[Path, str], data_bin: Path, tmp_path: Path) -> None:
    folder, _ = codistilled
    first, second = (str(folder / f"model{index}" / "checkpoint_best.pt") for index in range(2))
    generate = [script("fairseq-generate"), str(data_bin), "--cpu", "--beam", "2", "--max-len-b", "10"]
    for path in first, f"{first}:{second}":
        output = run([*generate, "--path", path], cwd=tmp_path)
        assert len(re.findall(r"^H-\d+\t", output, re.MULTILINE)) == 40
    extra = torch.load(first, weights_only=True)["extra_state"]
    assert "codistill" in extra and extra["codistill"]["config"]["models"] == 2


def test_a_run_stopped_and_made_longer_ends_with_the_same_bits(data_bin: Path, tmp_path: Path) -> None:
    options = (*TWO, "--update-freq", "2", "--save-interval-updates", "8")
    train(data_bin, tmp_path / "whole", *options, "--max-update", "20", processes=2)
    train(data_bin, tmp_path / "parts", *options, "--max-update", "8", processes=2)
    output = train(data_bin, tmp_path / "parts", *options, "--max-update", "20", processes=2)
    for index in range(2):
        assert f"model{index}/checkpoint_last.pt (epoch" in output, "it did resume"
        assert same_bits(tmp_path / f"whole/model{index}" / LAST, tmp_path / f"parts/model{index}" / LAST)
    # Started again model 1 has nothing to do, where fairseq would train one more update.
    (tmp_path / "parts/model0" / LAST).write_bytes(b"half a file")
    output = train(data_bin, tmp_path / "parts", *options, "--max-update", "20", processes=2)
    assert "checkpoint_last.pt: not whole" in output
    assert "the newest whole one is update 16 in checkpoint_previous.pt" in output
    for index in range(2):
        assert same_bits(tmp_path / f"whole/model{index}" / LAST, tmp_path / f"parts/model{index}" / LAST)


def test_uneven_shards_and_a_short_last_update(data_bin: Path, tmp_path: Path) -> None:
    """An odd number of batches: the second rank of each model ends an epoch with fairseq's dummy batch."""
    launch = tmp_path / "launch.py"
    launch.write_text(
        "import os\n"
        "from fairseq.trainer import Trainer\n"
        "from fairseq_cli import train\n"
        "prepare = Trainer._prepare_sample\n"
        "def reported(self, sample, is_dummy=False):\n"
        "    if is_dummy and self.model.training:\n"
        "        os.write(1, f\"dummy batch on rank {os.environ['RANK']}\\n\".encode())  # at once\n"
        "    return prepare(self, sample, is_dummy)\n"
        "Trainer._prepare_sample = reported\n"
        "train.cli_main()\n"
    )
    options = ["--max-epoch", "2", "--update-freq", "3", "--codistill-timeout", "60", "--log-interval", "1"]
    options += ["--save-dir", str(tmp_path / "run"), "--no-epoch-checkpoints"]
    command = [*torchrun(4, str(launch)), str(data_bin), "--user-dir", "codistill_ext", *SMALL, *TWO, *options]
    output = run(command)
    assert set(re.findall(r"dummy batch on rank (\d)", output)) == {"1", "3"}
    (batches,) = {int(count) for count in re.findall(r"epoch 001: +\d+ / (\d+) ", output)}
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [model["updates"] for model in summary["models"]] == [2 * batches, 2 * batches]
    sent, received = summary["models"][0]["traffic"], summary["models"][1]["traffic"]
    assert sent["sent/predictions"] == received["received/predictions"] > 0


def test_gradients_that_are_not_numbers_end_the_job_with_their_message(data_bin: Path, tmp_path: Path) -> None:
    """fairseq then repeats the batch on one model alone, to find the layer: without the peers."""
    launch = tmp_path / "launch.py"
    launch.write_text(
        "import os, torch\n"
        "from fairseq_cli import train\n"
        "from codistill_ext.fairseq_plugin import trainer\n"
        "from codistill_ext.tasks import codistill_translation\n"
        "step = trainer.CodistillTrainer.train_step\n"
        "def poisoned(self, samples, raise_oom=False):\n"
        "    if os.environ['RANK'] == '1' and self.get_num_updates() == 3:\n"
        "        next(self._model.parameters()).data.fill_(float('nan'))\n"
        "    return step(self, samples, raise_oom)\n"
        "trainer.CodistillTrainer.train_step = poisoned\n"
        "train.cli_main()\n"
    )
    command = torchrun(2, str(launch), str(data_bin))
    options = ["--max-update", "10", "--codistill-timeout", "60", "--save-dir", str(tmp_path / "run")]
    output = run([*command, "--user-dir", "codistill_ext", *SMALL, *TWO, *options], fails=True)
    assert "gradients are Nan/Inf" in output


@pytest.mark.real_python
def test_hydra_trains_from_the_configuration_in_the_repository(data_bin: Path, tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    command = torchrun(2, "-m", "codistill_ext.hydra_train")
    overrides = [
        *("--config-dir", str(root / "translation/config"), "--config-name", "codistill_transformer"),
        *(f"task.data={data_bin}", f"checkpoint.save_dir={tmp_path}/run", f"hydra.run.dir={tmp_path}/hydra"),
        *("optimization.max_update=4", "common.cpu=true", "dataset.max_tokens=400", "dataset.num_workers=0"),
    ]
    run([*command, *overrides])
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert [model["updates"] for model in summary["models"]] == [4, 4]
    assert summary["models"][0]["traffic"]["sent/predictions"] > 0


@pytest.mark.parametrize(
    ("options", "processes", "message"),
    [
        (TWO, 1, "2 models need a multiple of 2 processes, but the world size is 1: start with torchrun"),
        (
            [*CRITERION, "--codistill-models", "3"],
            2,
            "3 models need a multiple of 3 processes, but the world size is 2",
        ),
        ([*TWO, "--ddp-backend", "slowmo"], 1, "--ddp-backend slowmo works on the whole job and would mix"),
        ([*TWO, "--use-bmuf"], 1, "--use-bmuf works on the whole job and would mix"),
        ([*TWO, "--codistill-alpha", "inf"], 1, "--codistill-alpha: expected finite numbers of 0 or more"),
        ([*STOCK, "--codistill-models", "2"], 1, "options of codistillation need --criterion codistill_label_smoothed"),
    ],
)
def test_mistakes_are_refused_before_anything_starts(
    data_bin: Path, tmp_path: Path, options: list[str], processes: int, message: str
) -> None:
    output = train(data_bin, tmp_path / "run", *options, "--max-update", "1", processes=processes, fails=True)
    assert f"error: {message}" in output.splitlines()[-1 if processes == 1 else -2]
    assert output.count(message) == processes, "under torchrun one rank says it, and the summary"
    assert len(output.splitlines()) <= 8 + 40 * (processes > 1)
    assert not (tmp_path / "run").exists()


def test_a_wrong_flag_is_refused_while_parsing(capsys: pytest.CaptureFixture[str]) -> None:
    """As fairseq-train parses it, in this process."""
    parser = fairseq_options.get_training_parser()
    argv = ["data", "--arch", "transformer", *TWO, "--codistill-perod", "5"]
    with pytest.raises(SystemExit) as stop:
        launch.parse_args_and_arch(parser, argv)
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2
    assert line.endswith("unrecognized arguments: --codistill-perod 5; did you mean --codistill-period? (see --help)")
    for options, message in (
        (["--codistill-divergence", "kl"], "--codistill-divergence is one of kl_teacher_student"),
        (["--codistill-period", "5"], "--codistill-period 5 has no effect"),
        (["--codistill-period", "x"], "argument --codistill-period: invalid int value: 'x'"),
        (["--arch", "transfomer"], "argument --arch/-a: invalid choice: 'transfomer'; did you mean transformer"),
    ):
        with pytest.raises(SystemExit):
            launch.parse_args_and_arch(fairseq_options.get_training_parser(), [*argv[:-2], *options])
        assert f"error: {message}" in capsys.readouterr().err


def test_a_wrong_override_of_hydra_is_one_sentence(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "codistill_ext.hydra_train", "criterion.codistill_perod=5"]
    root = Path(__file__).parents[2]
    config = ["--config-dir", str(root / "translation/config"), "--config-name", "codistill_transformer"]
    last = run([*command, *config], fails=True, cwd=tmp_path).splitlines()[-1]
    assert last.startswith("codistill_ext.hydra_train: error: Could not override 'criterion.codistill_perod'.")


@pytest.mark.parametrize(
    ("options", "processes", "message"),
    [
        ([*TWO, "--codistill-alpha", "0.5"], 2, "saved with other codistillation options (alpha: 1.0 then, 0.5 now)"),
        (TWO, 4, "saved with another number of ranks a model (1 then, 2 now): resume it with as many processes"),
        (
            [*CRITERION, "--codistill-models", "3"],
            3,
            "model0/checkpoint_last.pt is of a run of 2 models, but there are 3 now: resume it with as many",
        ),
    ],
    ids=["alpha", "ranks", "models"],
)
def test_resuming_another_run_is_refused(
    data_bin: Path,
    codistilled: tuple[Path, str],
    tmp_path: Path,
    options: list[str],
    processes: int,
    message: str,
) -> None:
    shutil.copytree(codistilled[0], tmp_path / "run")
    assert message in train(data_bin, tmp_path / "run", *options, "--max-update", "14", processes=processes, fails=True)


def test_alpha_label_smoothing_and_dropout_follow_their_schedules(data_bin: Path, tmp_path: Path) -> None:
    schedules = ["--codistill-alpha", "0~1@10up", "--codistill-label-smoothing", "0.1,0@50%", "--label-smoothing", "0"]
    schedules += ["--codistill-dropout", "0.5~0@10up"]
    train(data_bin, tmp_path, *TWO, *schedules, "--max-update", "12", processes=2)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for index in range(2):
        trained = [line for line in lines if f"model{index}/train/alpha" in line]
        alphas = {line["update"]: line[f"model{index}/train/alpha"] for line in trained}
        assert alphas == pytest.approx({2: 0.1, 4: 0.3, 6: 0.5, 8: 0.7, 10: 0.9, 12: 1})
        gaps = {
            line["update"]: line[f"model{index}/train/loss"] - line[f"model{index}/train/nll_loss"]
            for line in lines
            if f"model{index}/train/loss" in line
        }
        assert all(gaps[update] != 0 for update in (2, 4, 6)) and gaps[8] == gaps[10] == gaps[12] == 0
        smoothing = [line[f"model{index}/train/label_smoothing"] for line in trained]
        assert smoothing == [0.1] * 3 + [0] * 3
        dropout = [line[f"model{index}/train/dropout"] for line in trained]
        assert dropout == pytest.approx([0.45, 0.35, 0.25, 0.15, 0.05, 0])
        (valid,) = [line for line in lines if f"model{index}/valid/loss" in line]
        assert valid[f"model{index}/valid/loss"] == valid[f"model{index}/valid/nll_loss"]


def test_a_dropout_schedule_is_what_the_model_trains_with(data_bin: Path, tmp_path: Path) -> None:
    train(data_bin, tmp_path / "scheduled", *CRITERION, "--codistill-dropout", "0", "--max-update", "4")
    train(data_bin, tmp_path / "constant", *CRITERION, "--dropout", "0", "--max-update", "4")
    assert same_bits(*(tmp_path / name / "model0" / LAST for name in ("scheduled", "constant")))


def test_a_weight_decay_schedule_is_what_the_optimizer_uses(data_bin: Path, tmp_path: Path) -> None:
    """The first half of a run with decay and one without; and the log says which is in force."""
    options = ["--codistill-weight-decay", "0.5,0@2up", "--log-interval", "1"]
    train(data_bin, tmp_path / "scheduled", *CRITERION, *options, "--max-update", "4")
    lines = [json.loads(line) for line in (tmp_path / "scheduled/metrics.jsonl").read_text().splitlines()]
    assert [line[key] for line in lines if (key := "model0/train/weight_decay") in line] == [0.5, 0.5, 0, 0]
    for name, decay in (("half", "0.5"), ("none", "0")):
        train(data_bin, tmp_path / name, *CRITERION, "--weight-decay", decay, "--max-update", "2")
    continued = ["--codistill-weight-decay", "0.5,0@2up", "--max-update", "4"]
    train(data_bin, tmp_path / "half", *CRITERION, *continued)
    assert same_bits(*(tmp_path / name / "model0" / LAST for name in ("scheduled", "half")))
    assert not same_bits(*(tmp_path / name / "model0" / LAST for name in ("scheduled", "none")))


def test_a_label_smoothing_that_does_not_fit_is_refused(data_bin: Path, tmp_path: Path) -> None:
    options = ["--codistill-label-smoothing", "0.1,0", "--max-update", "2"]
    message = "--codistill-label-smoothing 0.1,0: 2 values without places change where"
    assert message in train(data_bin, tmp_path, *CRITERION, *options, fails=True)
    for text, message in [("fast", "expected finite numbers"), ("1,0@5up", "must be less than 1 throughout")]:
        with pytest.raises(ValueError, match=f"--codistill-label-smoothing.*{message}"):
            regularisation(
                SimpleNamespace(codistill_label_smoothing=text, codistill_dropout="", codistill_weight_decay="")
            )
