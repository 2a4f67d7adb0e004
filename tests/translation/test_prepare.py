"""From parallel text to a data-bin: complete, reproducible, reused, replaced whole, never half made."""

import dataclasses
import gzip
import hashlib
import json
import lzma
import re

import pytest
import sentencepiece
from fairseq.data import Dictionary, data_utils

from translation import databin as module
from translation.corpus import read_lines, read_pairs
from translation.databin import prepare
from translation.prepare import main


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


def test_reused_until_settings_or_text_change(settings, prefixes, tmp_path, monkeypatch):
    dest = tmp_path / "bin"
    calls = []

    def build(work, settings, text, workers):
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
    arguments = [*text, "--dest", str(tmp_path / "bin"), "--vocab-size", "300", "--pieces", "unigram"]
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


def test_another_direction_filtered_from_packed_text(prefixes, tmp_path, capsys):
    folder = tmp_path / "text"
    folder.mkdir()
    held_out = read_lines(prefixes["valid"].with_name("valid.de"))[0]
    extra = [("kopiert " + held_out, "x"), ("", "leer"), ("kurz", "much longer than the other side is")]
    for language, side in (("de", 0), ("en", 1)):
        lines = read_lines(prefixes["train"].with_name(f"train.{language}")) + [pair[side] for pair in extra]
        lines.append(held_out if language == "de" else "the same source again")
        with lzma.open(folder / f"train.{language}.xz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        with gzip.open(folder / f"valid.{language}.gz", "wt", encoding="utf-8") as file:
            file.write(prefixes["valid"].with_name(f"valid.{language}").read_text())
    arguments = [f"--train-prefix={folder}/train", f"--valid-prefix={folder}/valid", "--dest", str(tmp_path / "bin")]
    arguments += ["--source-lang", "de", "--target-lang", "en", "--vocab-size", "300", "--max-ratio", "6"]
    main(arguments)
    printed = capsys.readouterr().out
    for reason in (
        "1 with an empty side (the first is line 402)",
        "1 with a sentence of validation or test (the first",
    ):
        assert reason in printed
    assert "of which one side is more than 6 times the other (the first is line" in printed
    assert (tmp_path / "bin/train.de-en.de.bin").is_file() and (tmp_path / "bin/pieces/valid.de").is_file()


def test_a_failed_fairseq_preprocess_leaves_nothing(settings, prefixes, tmp_path, monkeypatch):
    def fails(text, dest, *_):
        dest.mkdir(exist_ok=True)
        (dest / "half").write_text("half")
        raise RuntimeError("fairseq-preprocess failed")

    monkeypatch.setattr(module, "binarize", fails)
    with pytest.raises(RuntimeError, match="fairseq-preprocess failed"):
        prepare(tmp_path / "bin", settings, prefixes)
    assert list(tmp_path.iterdir()) == []


def test_a_part_has_the_pieces_of_the_whole_and_is_inside_a_larger_one(data_bin, settings, prefixes, tmp_path):
    kept = {}
    for part in ("1/2", "1/4"):
        dest = tmp_path / part.replace("/", "of")
        own = dataclasses.replace(settings, train_part=part, pieces_of=str(data_bin))
        prepare(dest, own, prefixes)
        for name in ("dict.en.txt", "spm.model"):
            assert (dest / name).read_bytes() == (data_bin / name).read_bytes()
        dictionary = Dictionary.load(str(dest / "dict.en.txt"))
        lines = data_utils.load_indexed_dataset(str(dest / "train.en-de.en"), dictionary)
        kept[part] = {dictionary.string(line) for line in lines}
        assert len(lines) == 400 * int(part[0]) // int(part[2])
    assert kept["1/4"] < kept["1/2"]
    dataset = data_utils.load_indexed_dataset(str(tmp_path / "1of2/valid.en-de.en"), dictionary)
    whole = data_utils.load_indexed_dataset(str(data_bin / "valid.en-de.en"), dictionary)
    assert all((one == other).all() for one, other in zip(dataset, whole, strict=True))


def test_every_so_many_pairs_go_to_validation(settings, prefixes):
    own = dataclasses.replace(settings, valid_every=23, held_out="keep")
    only = {"train": prefixes["train"]}
    text, dropped = module.read_text(own, only, workers=1)
    pairs = read_pairs(prefixes["train"], "en", "de")
    assert text["valid"].raw == pairs[22::23] and dropped == "nothing"
    assert text["train"].raw == [pair for number, pair in enumerate(pairs, 1) if number % 23]


def test_what_goes_is_counted_by_split_and_named_by_the_line_of_its_file(settings, tmp_path):
    # Of the lines 1, 3, 4, 5, 6 that pass the filter every third one, line 4, is for validation; line 6 repeats it.
    train = [("a b", "A B"), ("long " * 5, "L"), ("c d", "C D"), ("e f", "E F"), ("g", "G"), ("e f", "other")]
    texts = {"train": train, "test": [("t", "T"), ("t " * 5, "T T"), ("u " * 5, "U")]}
    for split, pairs in texts.items():
        for side, language in enumerate(("en", "de")):
            (tmp_path / f"{split}.{language}").write_text("".join(f"{pair[side]}\n" for pair in pairs))
    own = dataclasses.replace(settings, valid_every=3, max_words=4)
    text, dropped = module.read_text(own, {split: tmp_path / split for split in texts}, workers=1)
    assert text["valid"].raw == [("e f", "E F")] and text["test"].raw == [("t", "T")]
    assert [source for source, _ in text["train"].raw] == ["a b", "c d", "g"]
    assert dropped == (
        "train: 1 whose source has more than 4 words (the first is line 2), 1 with a sentence of validation or test "
        "(the first is line 6); test: 2 whose source has more than 4 words (the first is line 2)"
    )


def test_another_data_bins_pieces_come_with_their_manners(prefixes, tmp_path):
    """Text in upper case, tokens and all: a part by the pieces of the whole is cut as the whole is."""
    text = [f"--{split}-prefix={prefix}" for split, prefix in prefixes.items()]
    manners = ["--pieces", "subword-nmt", "--moses", "--lowercase", "--vocab-size", "200"]
    main([*text, "--dest", str(tmp_path / "whole"), *manners])
    main([*text, "--dest", str(tmp_path / "part"), "--pieces-of", str(tmp_path / "whole"), "--train-part", "1/2"])
    for name in ("pieces/valid.en", "pieces/test.de", "raw/valid.en", "dict.en.txt", "bpe.codes"):
        assert (tmp_path / "part" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    stamps = [json.loads((tmp_path / name / "prepare.json").read_text())["settings"] for name in ("whole", "part")]
    assert all(stamps[0][name] == stamps[1][name] for name in ("pieces", "moses", "lowercase", "vocab_size"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--pieces", "bpe", "--moses"], "--pieces bpe is of raw text"),
        (["--pieces", "subword-nmt", "--split-dashes"], "--split-dashes is a manner of the tokenizer"),
    ],
)
def test_settings_that_do_not_go_together(prefixes, tmp_path, options, message):
    text = [f"--{split}-prefix={prefixes[split]}" for split in ("train", "valid")]
    with pytest.raises(SystemExit, match=message):
        main([*text, "--dest", str(tmp_path / "bin"), *options])


def test_text_in_given_pieces_and_other_text_with_them(prefixes, tmp_path):
    text = [f"--{split}-prefix={prefix}" for split, prefix in prefixes.items()]
    main([*text, "--dest", str(tmp_path / "own"), "--pieces", "subword-nmt", "--moses", "--vocab-size", "200"])
    cut = [f"--{split}-prefix={tmp_path}/own/pieces/{split}" for split in ("valid", "test")]
    cut += [f"--train-prefix={tmp_path}/own/pieces/valid", "--pieces", "given", "--moses", "--held-out", "keep"]
    main([*cut, "--dest", str(tmp_path / "given"), "--codes", str(tmp_path / "own/bpe.codes")])
    main([*text, "--dest", str(tmp_path / "raw"), "--pieces-of", str(tmp_path / "given")])
    assert (tmp_path / "raw/pieces/test.de").read_bytes() == (tmp_path / "own/pieces/test.de").read_bytes()
    (tmp_path / "given/bpe.codes").unlink()
    with pytest.raises(SystemExit, match="was cut elsewhere and its codes are not known"):
        main([*text, "--dest", str(tmp_path / "more"), "--pieces-of", str(tmp_path / "given")])
    same = [option for option in cut if option not in ("--moses",)]
    main([*same, "--dest", str(tmp_path / "more"), "--pieces-of", str(tmp_path / "given")])
    assert (tmp_path / "more/pieces/test.de").read_bytes() == (tmp_path / "own/pieces/test.de").read_bytes()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--train-part", "2"], "must be a fraction above 0 and at most 1, such as 1/8, not 2"),
        (["--valid-every", "1"], "--valid-every: must be a whole number of at least 2, not 1"),
        (["--workers", "0"], "--workers: must be a whole number of at least 1, not 0"),
        (["--vocab-size", "some"], "--vocab-size: must be a whole number of at least 1, not some"),
        (["--max-ratio", "0.5"], "--max-ratio: must be a finite number of at least 1, not 0.5"),
        (
            ["--pieces-of", "x", "--moses", "--vocab-size", "9"],
            "with --pieces-of the .* leave out --vocab-size, --moses",
        ),
        (["--pieces", "subword-nmt", "--codes", "x", "--vocab-size", "9"], "with --codes .* leave out --vocab-size"),
        (["--pieces", "given", "--vocab-size", "9"], "with --pieces given .* leave out --vocab-size"),
    ],
)
def test_options_that_mean_nothing(tmp_path, capsys, options, message):
    with pytest.raises(SystemExit):
        main(["--dest", str(tmp_path), *options])
    assert re.search(message, capsys.readouterr().err)


def test_nothing_is_left(prefixes, tmp_path):
    same = [f"--{split}-prefix={prefixes['valid']}" for split in ("train", "valid")]
    with pytest.raises(SystemExit, match="nothing is left of the train split .*: 21 with a sentence of validation"):
        main([*same, "--dest", str(tmp_path / "bin")])


def test_the_data_bin_of_the_pieces_was_made_here(tmp_path):
    with pytest.raises(SystemExit, match=r"has no prepare\.json: make it with python -m translation\.prepare"):
        main(["--dest", str(tmp_path / "bin"), "--pieces-of", str(tmp_path)])
