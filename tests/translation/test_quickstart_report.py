"""The quickstart's summary and table, from a run directory that is written here."""

import json

import pytest

from recipes.quickstart_report import curve, main, summarise, table


def write_lines(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def run(tmp_path):
    text, pictures = tmp_path / "translation", tmp_path / "vision"
    text.mkdir()
    pictures.mkdir()
    lines = []
    for index in (0, 1):
        model = f"model{index}"
        lines += [{"update": u, f"{model}/train/nll_loss": 9.0 - u / 10} for u in (10, 20)]
        for update, nll in ((10, 5.0), (20, 4.0 + index)):
            lines.append({"update": update, f"{model}/valid/nll_loss": nll})
        (text / f"score-{model}.json").write_text(json.dumps({"bleu": 15.0 + index}))
    write_lines(text / "metrics.jsonl", lines)
    ensemble = {"bleu": 17.5, "signature": "nrefs:1|tok:13a", "sentences": 1261}
    (text / "score-ensemble.json").write_text(json.dumps(ensemble))
    (text / "agreement.json").write_text(json.dumps({"agreement": 0.625, "positions": 10}))
    models = [{"model": index, "traffic": {"sent/predictions": 20_000_000}} for index in (0, 1)]
    (text / "summary.json").write_text(json.dumps({"models": models}))
    (text / "seconds").write_text("300\n")
    write_lines(pictures / "metrics.jsonl", [{"update": 5, "model0/train/loss": 2.0, "model0/valid/top1": 60.0}])
    summary = {"models": [{"top1": 75.0, "history": []}, {"top1": 76.0}], "ensemble_top1": 77.0}
    summary |= {
        "agreement": 0.875,
        "bytes": {"sent/predictions": 4_000_000, "received/predictions": 4_000_000},
    }
    (pictures / "summary.json").write_text(json.dumps(summary))
    (pictures / "seconds").write_text("200\n")
    return tmp_path


def test_summary_has_the_agreed_structure(run):
    summary = summarise(run)
    assert summary["translation"]["models"] == [
        {"bleu": 15.0, "valid_nll": 4.0},
        {"bleu": 16.0, "valid_nll": 5.0},
    ]
    assert summary["translation"]["ensemble_bleu"] == 17.5
    assert summary["translation"]["signature"] == "nrefs:1|tok:13a"
    assert summary["translation"]["agreement"] == 0.625
    assert summary["translation"]["bytes"] == {"sent/predictions": 40_000_000}
    assert summary["vision"]["models"] == [{"top1": 75.0}, {"top1": 76.0}]
    assert summary["vision"]["ensemble_top1"] == 77.0
    assert summary["seconds"] == {"translation": 300.0, "vision": 200.0}


def test_table_and_files(run, capsys):
    main(run)
    printed = capsys.readouterr().out
    assert table(summarise(run)) in printed
    rows = [line.split() for line in printed.splitlines()]
    assert ["model", "1", "16.00", "5.00", "76.00"] in rows
    assert ["ensemble", "17.50", "77.00"] in rows
    assert ["MB", "sent", "40", "4"] in rows
    assert json.loads((run / "summary.json").read_text()) == summarise(run)
    assert (run / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_a_resumed_runs_later_line_counts(tmp_path):
    write_lines(tmp_path / "m.jsonl", [{"update": u, "k": v} for u, v in ((2, 1.0), (1, 2.0), (2, 3.0))])
    assert curve(tmp_path / "m.jsonl", "k") == [(1, 2.0), (2, 3.0)]


def test_what_is_missing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="run recipes/quickstart.sh first"):
        summarise(tmp_path)
