"""Parsing of generate's output, BLEU against its closed form, and a stock checkpoint scored end to end."""

import json
import math

import pytest

from translation.score import bleu, compound_split, in_order, main, parse_hypotheses

OUTPUT = """\
Hint: a warning that begins with H
H-warning\t-1.0\tnot a hypothesis
S-1\t▁the ▁cat
T-1\t▁die ▁Katze
H-1\t-0.5\t▁die ▁Katze
D-1\t-0.5\tdie Katze
P-1\t-0.5 -0.5
H-0\t-1.25\t
H-2\t-0.9\t▁schlecht er
H-2\t-0.3\t▁bess er
"""


def test_hypotheses_are_parsed_by_number_and_best_score():
    hypotheses = parse_hypotheses(OUTPUT.splitlines(keepends=True))
    assert hypotheses == {0: [], 1: ["▁die", "▁Katze"], 2: ["▁bess", "er"]}
    assert in_order(hypotheses, 3) == [[], ["▁die", "▁Katze"], ["▁bess", "er"]]


@pytest.mark.parametrize("count", [2, 4])
def test_a_missing_or_extra_sentence_is_an_error(count):
    with pytest.raises(ValueError, match=f"answered 3 sentences, the reference has {count}"):
        in_order(parse_hypotheses(OUTPUT.splitlines()), count)


def test_bleu_closed_form():
    result = bleu(["a b c d e f g h"], ["a b c d e f g x"])
    precisions = [7 / 8, 6 / 7, 5 / 6, 4 / 5]
    assert result["bleu"] == pytest.approx(100 * math.prod(precisions) ** 0.25)
    assert "tok:13a" in result["signature"]
    short = bleu(["a b c d"], ["a b c d e"])["bleu"]
    assert short == pytest.approx(100 * math.exp(1 - 5 / 4))


def test_compounds_are_split():
    assert compound_split("Die E-Mail.") == "Die E ##AT##-##AT## Mail ."
    assert compound_split("ein - Strich") == "ein - Strich"


@pytest.mark.parametrize(
    "checkpoints",
    [["checkpoint_best.pt"], pytest.param(["checkpoint2.pt", "checkpoint3.pt"], marks=pytest.mark.real_python)],
)
def test_stock_checkpoints_and_ensembles_score(data_bin, stock_run, tmp_path, capsys, checkpoints):
    path = ":".join(str(stock_run / name) for name in checkpoints)
    main([str(data_bin), "--path", path, "--output", str(tmp_path / "out.txt"), "--cpu", "--compound-split"])
    result = json.loads(capsys.readouterr().out)
    assert result["sentences"] == len((tmp_path / "out.txt").read_text().splitlines()) == 13
    assert 0 <= result["bleu"] < 50 and "tok:13a" in result["signature"]
    assert "tok:none" in result["compound_split_tokenized"]["signature"]


def test_errors(data_bin, tmp_path, stock_run):
    with pytest.raises(SystemExit, match=r"no checkpoint .*missing\.pt"):
        main([str(data_bin), "--path", f"{stock_run}/checkpoint_best.pt:{tmp_path}/missing.pt"])
    with pytest.raises(SystemExit, match="make it with python -m translation.prepare"):
        main([str(tmp_path), "--path", str(stock_run / "checkpoint_best.pt")])
    (tmp_path / "broken.pt").write_bytes(b"broken")
    with pytest.raises(SystemExit, match=r"^translation\.score: .*/broken\.pt is not a checkpoint: it is no"):
        main([str(data_bin), "--path", str(tmp_path / "broken.pt")])
