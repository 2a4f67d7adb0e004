"""From parallel text to a data-bin: complete, reproducible, reused, replaced whole, never half made."""

import dataclasses
import hashlib
import json

import pytest
import sentencepiece
from fairseq.data import Dictionary, data_utils

from translation import prepare as module
from translation.corpus import read_lines
from translation.prepare import main, prepare


def checksums(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_pieces_in_the_data_bin_are_the_text(data_bin):
    assert (data_bin / "dict.en.txt").read_bytes() == (data_bin / "dict.de.txt").read_bytes()
    dictionary = Dictionary.load(str(data_bin / "dict.de.txt"))
    processor = sentencepiece.SentencePieceProcessor(model_file=str(data_bin / "spm.model"))
    raw = read_lines(data_bin / "raw" / "test.en")
    binary = data_utils.load_indexed_dataset(str(data_bin / "test.en-de.en"), dictionary)
    assert len(binary) == len(raw) == 13
    known = [number for number, line in enumerate(binary) if dictionary.unk() not in line]
    assert len(known) > 8
    for number in known:
        assert processor.decode_pieces(dictionary.string(binary[number]).split()) == raw[number]


def test_same_input_same_bytes(data_bin, settings, prefixes, tmp_path):
    prepare(tmp_path / "again", settings, prefixes)
    assert checksums(tmp_path / "again") == checksums(data_bin)


def test_reused_until_settings_or_text_change(data_bin, settings, prefixes, tmp_path, monkeypatch):
    dest = tmp_path / "bin"
    calls = []

    def build(work, settings, pairs):
        calls.append(settings)
        (work / "data-bin").mkdir()
        return work / "data-bin"

    monkeypatch.setattr(module, "build", build)
    assert prepare(dest, settings, prefixes)
    assert not prepare(dest, settings, prefixes)
    assert prepare(dest, dataclasses.replace(settings, vocab_size=300), prefixes)
    changed = tmp_path / "changed"
    for language in ("en", "de"):
        text = prefixes["train"].with_name(f"train.{language}").read_text()
        changed.with_name(f"changed.{language}").write_text(text + "one more\n")
    assert prepare(dest, dataclasses.replace(settings, vocab_size=300), prefixes | {"train": changed})
    assert len(calls) == 3
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_failure_leaves_the_old_data_bin(settings, prefixes, tmp_path):
    dest = tmp_path / "bin"
    dest.mkdir()
    (dest / "prepare.json").write_text("{}")
    with pytest.raises(ValueError, match="do not make 100000 sentencepiece pieces"):
        prepare(dest, dataclasses.replace(settings, vocab_size=100_000), prefixes)
    assert checksums(tmp_path) == {"bin/prepare.json": hashlib.sha256(b"{}").hexdigest()}


def test_a_foreign_folder_is_not_touched(settings, prefixes, tmp_path):
    (tmp_path / "thesis.tex").write_text("do not delete")
    with pytest.raises(ValueError, match="was not made by translation.prepare"):
        prepare(tmp_path, settings, prefixes)
    assert (tmp_path / "thesis.tex").exists()


def test_equal_languages(settings, prefixes, tmp_path):
    with pytest.raises(ValueError, match="both 'en'"):
        prepare(tmp_path / "bin", dataclasses.replace(settings, target_lang="en"), prefixes)


@pytest.mark.real_python
def test_command_line(prefixes, tmp_path, capsys):
    text = [f"--{split}-prefix={prefix}" for split, prefix in prefixes.items() if split != "test"]
    arguments = [*text, "--dest", str(tmp_path / "bin"), "--vocab-size", "300", "--model-type", "unigram"]
    main(arguments)
    main(arguments)
    made, reused = capsys.readouterr().out.strip().split("\n")
    assert "made" in made and "reused" in reused
    assert json.loads((tmp_path / "bin" / "prepare.json").read_text())["pairs"] == {"train": 400, "valid": 21}


def test_command_line_errors(prefixes, tmp_path, capsys):
    with pytest.raises(SystemExit, match="no parallel text"):
        main(["--dest", str(tmp_path / "bin"), "--train-prefix", "nowhere", "--valid-prefix", "nowhere"])
    with pytest.raises(SystemExit):
        main(["--dest", str(tmp_path / "bin"), "--train-prefix", str(prefixes["train"])])
    assert "needs --train-prefix and --valid-prefix" in capsys.readouterr().err
