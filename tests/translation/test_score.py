"""BLEU against its closed form, and a stock checkpoint scored end to end."""

import json
import math

import pytest

from translation.metrics import bleu, chrf, compound_split, compound_split_bleu, paired_bootstrap
from translation.score import main


def test_bleu_closed_form():
    result = bleu(["a b c d e f g h"], [["a b c d e f g x"]])
    precisions = [7 / 8, 6 / 7, 5 / 6, 4 / 5]
    assert result["bleu"] == pytest.approx(100 * math.prod(precisions) ** 0.25)
    assert "tok:13a" in result["signature"]
    short = bleu(["a b c d"], [["a b c d e"]])["bleu"]
    assert short == pytest.approx(100 * math.exp(1 - 5 / 4))


def test_lower_case_is_in_the_signature():
    assert bleu(["A B C D"], [["a b c d"]])["bleu"] < 100
    assert bleu(["A B C D"], [["a b c d"]], lowercase=True)["bleu"] == pytest.approx(100)
    assert "case:lc" in bleu(["A"], [["a"]], lowercase=True)["signature"]
    assert chrf(["A B"], [["a b"]], lowercase=True)["chrf"] == pytest.approx(100)


def test_a_split_compound_counts_by_its_parts():
    hypotheses, references = ["Die E-Mail ist da ."], [["Die E-Post ist da ."]]
    split = compound_split_bleu(hypotheses, references)
    parts = ["Die E ##AT##-##AT## Mail ist da ."], [["Die E ##AT##-##AT## Post ist da ."]]
    assert split["bleu"] == bleu(*parts, tokenize="none")["bleu"] != bleu(hypotheses, references)["bleu"]
    assert split["signature"].endswith("of 13a tokens, compounds split")
    moses = compound_split_bleu(hypotheses, references, ("moses", lambda sentence: sentence))
    assert moses["signature"].endswith("of moses tokens, compounds split")


def test_paired_bootstrap_tells_a_system_from_its_baseline():
    references = [f"a b c d e f {number}" for number in range(60)]
    bad = "a b x d e f y"
    worse = [line if number % 2 else bad for number, line in enumerate(references)]
    like = [references[0], bad, *worse[2:]]  # as many are right, but others
    rows = paired_bootstrap([("base", worse), ("like", like), ("better", references)], [references], 200)
    base, same, better = rows
    assert base["bleu_p"] is None and same["bleu_p"] > 0.2 and better["bleu_p"] < 0.05
    assert better["bleu"] == pytest.approx(100) and base["bleu"] < 90
    assert base["bleu"] == pytest.approx(same["bleu"], abs=0.1)


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
