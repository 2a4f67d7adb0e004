"""A run's scores: fairseq's own command as the second implementation, any test set, two runs, and mistakes."""

import gzip
import json
import re
import shutil
import sys

import pytest
import yaml

from tests.commands import run
from translation.average import average
from translation.corpus import read_lines
from translation.evaluate import main
from translation.metrics import bleu


@pytest.fixture(scope="module")
def two_models(tmp_path_factory, data_bin, stock_run):
    """What codistillation leaves of two models; both are the stock run's, at different ages."""
    folder = tmp_path_factory.mktemp("run")
    for index, epochs in enumerate([(1, 2), (2, 3)]):
        (folder / f"model{index}").mkdir()
        for number, epoch in enumerate(epochs, 1):
            shutil.copy(stock_run / f"checkpoint{epoch}.pt", folder / f"model{index}/checkpoint{number}.pt")
    (folder / "config.yaml").write_text(yaml.safe_dump({"task": {"data": str(data_bin)}}))
    return folder


@pytest.fixture(scope="module")
def evaluated(two_models):
    main([str(two_models), "--last", "2", "--cpu"])
    return two_models / "evaluation"


def test_translations_are_those_of_fairseqs_own_command(evaluated, two_models, data_bin):
    paths = [str(two_models / f"model{index}/average2.pt") for index in range(2)]
    command = [sys.executable, "-m", "translation.safe_load", "generate", str(data_bin), "--path", ":".join(paths)]
    command += ["--beam", "4", "--lenpen", "0.6", "--required-batch-size-multiple", "1", "--cpu", "--num-workers", "0"]
    output = run([*command, "--remove-bpe", "sentencepiece", "--max-tokens", "4000"])
    hypotheses = {int(n): text for n, text in re.findall(r"^H-(\d+)\t\S+\t(.*)$", output, re.MULTILINE)}
    assert [hypotheses[number] for number in range(13)] == read_lines(evaluated / "test.ensemble.txt")


def test_the_json_and_the_table_have_each_system(evaluated, two_models, data_bin):
    result = json.loads((evaluated / "test.json").read_text())
    assert list(result["systems"]) == ["model0", "model1", "ensemble"] and result["sentences"] == 13
    assert result["direction"] == "en-de" and (result["beam"], result["lenpen"], result["averaged"]) == (4, 0.6, 2)
    references = [read_lines(data_bin / "raw/test.de")]
    for name, system in result["systems"].items():
        assert system["bleu"] == pytest.approx(bleu(read_lines(evaluated / f"test.{name}.txt"), references)["bleu"])
        assert "tok:13a" in system["signatures"]["bleu"] and "nc:6" in system["signatures"]["chrf"]
    table = (evaluated / "test.md").read_text()
    assert "| model1 " in table and "tokenised BLEU, compounds split" in table
    assert not list(evaluated.glob("*.partial"))


def test_the_average_is_of_each_models_own_checkpoints(evaluated, two_models):
    import torch

    from translation.safe_load import load_checkpoint

    expected = average([two_models / f"model1/checkpoint{number}.pt" for number in (1, 2)])["model"]
    found = load_checkpoint(two_models / "model1/average2.pt")["model"]
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_any_files_and_another_run(two_models, tmp_path, prefixes, capsys):
    other = tmp_path / "other"
    shutil.copytree(two_models, other, ignore=shutil.ignore_patterns("evaluation", "model1"))
    source = tmp_path / "news.en.gz"
    source.write_bytes(gzip.compress(prefixes["valid"].with_name("valid.en").read_bytes()))
    files = ["--source", str(source), "--reference", str(prefixes["valid"].with_name("valid.de"))]
    main([str(two_models), *files, "--last", "1", "--cpu", "--against", str(other), "--samples", "50"])
    printed = capsys.readouterr().out
    assert "21 sentences" in printed and "by 50 paired bootstrap resamples" in printed
    result = json.loads((two_models / "evaluation/news.en.against.other.json").read_text())
    systems = [row["system"].partition("/")[2] for row in result["systems"]]
    assert systems == ["model0", "model0", "model1", "ensemble"]
    assert result["systems"][0]["bleu_p"] is None and 0 <= result["systems"][1]["bleu_p"] <= 1


def test_runs_that_were_evaluated_unlike_are_not_compared(evaluated, two_models, tmp_path, monkeypatch):
    """And it is said before anything is translated."""
    monkeypatch.setattr("translation.evaluate.translations", None)
    other = tmp_path / "other"
    shutil.copytree(two_models, other)
    written = other / "evaluation/test.json"
    written.write_text(json.dumps(json.loads(written.read_text()) | {"beam": 1}))
    with pytest.raises(SystemExit, match=r"not evaluated on test alike: beam 4 and 1\. Evaluate .*other again"):
        main([str(two_models), "--last", "2", "--cpu", "--against", str(other)])
    with pytest.raises(SystemExit, match=r"none has no model0: name the --save-dir"):
        main([str(two_models), "--last", "2", "--cpu", "--against", str(tmp_path / "none")])


def test_a_job_of_one_model_keeps_its_settings_with_it(two_models, tmp_path, capsys):
    run = tmp_path / "files"
    shutil.copytree(two_models, run, ignore=shutil.ignore_patterns("evaluation", "config.yaml"))
    shutil.copy(two_models / "config.yaml", run / "model1/config.yaml")
    main([str(run), "--last", "1", "--cpu"])
    assert "test, en-de, 13 sentences" in capsys.readouterr().out


def test_checkpoints_by_epoch_and_by_update(two_models, tmp_path):
    run = tmp_path / "both"
    shutil.copytree(two_models, run, ignore=shutil.ignore_patterns("evaluation"))
    shutil.copy(run / "model0/checkpoint1.pt", run / "model0/checkpoint_1_20.pt")
    with pytest.raises(SystemExit, match="has checkpoints by epoch and by update: choose with --by epoch or update"):
        main([str(run), "--last", "1", "--cpu"])
    with pytest.raises(SystemExit, match=r"no .*checkpoint_best\.pt: average the last ones"):
        main([str(run), "--last", "0", "--cpu"])


def test_a_test_set_of_sacrebleu_that_is_there(two_models, tmp_path, monkeypatch, capsys, prefixes):
    from sacrebleu.dataset import DATASETS

    monkeypatch.setattr(DATASETS["wmt14/full"], "_outdir", str(tmp_path))
    arguments = [str(two_models), "--test-set", "wmt14/full", "--last", "1", "--cpu"]
    with pytest.raises(SystemExit, match=r"is not on this machine.*`sacrebleu -t wmt14/full -l en-de --echo src`"):
        main(arguments)
    for language, name in (("en", "src"), ("de", "ref")):
        shutil.copy(prefixes["test"].with_name(f"test.{language}"), tmp_path / f"wmt14_full.en-de.{name}")
    main(arguments)
    assert "wmt14-full, en-de, 13 sentences" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--last", "9"], "holds 2 checkpoints by epoch, --last asks for 9"),
        (["--test-set", "wmt99"], "sacrebleu knows no test set wmt99"),
        (["--test-set", "wmt14/full", "--data", "nowhere"], "nowhere has no prepare.json"),
        (["--test-set", "mtnt1.1/test"], "has no en-de, but"),
        (["--reference", "{run}/config.yaml"], "has 13 sentences to translate, but reference 1 has 2 lines"),
        (["--source", "x"], "--source needs --reference"),
        (["--last", "-1"], "--last: must be a whole number of at least 0, not -1"),
        (["--last", "0", "--by", "epoch"], "--last 0 takes the best checkpoint: leave out --by"),
        (["--samples", "9"], "--samples is of the bootstrap: it needs --against"),
        (["--test-set", "wmt14/full", "--reference", "x"], "--test-set has references of its own"),
    ],
)
def test_mistakes(two_models, capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main([str(two_models), "--cpu", *(word.format(run=two_models) for word in arguments)])
    assert message in str(ended.value) + capsys.readouterr().err


def test_no_run_and_no_data(tmp_path, two_models):
    with pytest.raises(SystemExit, match="has no model0: name the --save-dir"):
        main([str(tmp_path), "--data", str(two_models)])
    (tmp_path / "model0").mkdir()
    with pytest.raises(SystemExit, match="say with --data which data-bin"):
        main([str(tmp_path)])
    (tmp_path / "config.yaml").write_text("task: {data: /nowhere}")
    with pytest.raises(SystemExit, match="the run was trained on /nowhere, which is not there"):
        main([str(tmp_path)])
