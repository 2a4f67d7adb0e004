"""The shipped corpus is what its NOTICE says, and bad parallel text is refused by name."""

import pytest

from translation.corpus import PACKED, SPLITS, read_lines, read_pairs, shipped_prefix, side_path


def test_shipped_counts_are_the_notices():
    counts = {split: len(read_pairs(shipped_prefix(split), "en", "de")) for split in SPLITS}
    assert counts == {"train": 38_232, "valid": 1_932, "test": 1_674}


def test_no_test_sentence_is_in_train():
    train = read_pairs(shipped_prefix("train"), "en", "de")
    test = read_pairs(shipped_prefix("test"), "en", "de")
    for side in (0, 1):
        assert not {pair[side] for pair in train} & {pair[side] for pair in test}


def test_only_a_newline_ends_a_line(tmp_path):
    (tmp_path / "a.en").write_bytes("one\u2028still one\r\ntwo".encode())
    assert read_lines(tmp_path / "a.en") == ["one\u2028still one\r", "two"]


@pytest.mark.parametrize("ending", ["", ".xz", ".gz"])
def test_packed_text_is_the_same(tmp_path, ending):
    path = tmp_path / f"t.en{ending}"
    with PACKED.get(ending, open)(path, "wb") as file:
        file.write("eins\nzwei ü\n".encode())
    assert side_path(tmp_path / "t", "en") == path
    assert read_lines(path) == ["eins", "zwei ü"]


@pytest.mark.parametrize("ending", [".xz", ".gz"])
def test_damaged_packed_text_is_named(tmp_path, ending):
    path = tmp_path / f"t.en{ending}"
    with PACKED[ending](path, "wb") as file:
        file.write(b"a long line\n" * 99)
    for damaged in (path.read_bytes()[:-9], b"text"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"t\.en\{ending} cannot be unpacked: "):
            read_lines(path)


def test_missing_file_names_all_candidates(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\.en, .*train\.en\.xz, .*train\.en\.gz exists"):
        read_pairs(tmp_path / "train", "en", "de")


def test_unequal_sides_name_counts_and_files(tmp_path):
    (tmp_path / "t.en").write_text("a\nb\nc\n")
    (tmp_path / "t.de").write_text("a\nb\n")
    with pytest.raises(ValueError, match=r"t\.en has 3 lines, .*t\.de has 2"):
        read_pairs(tmp_path / "t", "en", "de")


def test_empty_line_is_named(tmp_path):
    (tmp_path / "t.en").write_text("a\nb\n")
    (tmp_path / "t.de").write_text("a\n \n")
    with pytest.raises(ValueError, match=r"t\.de line 2 is empty"):
        read_pairs(tmp_path / "t", "en", "de")


def test_no_line_at_all(tmp_path):
    for language in ("en", "de"):
        (tmp_path / f"t.{language}").write_text("")
    with pytest.raises(ValueError, match="hold no pairs"):
        read_pairs(tmp_path / "t", "en", "de")


def test_not_utf8(tmp_path):
    (tmp_path / "t.en").write_bytes(b"caf\xe9\n")
    with pytest.raises(ValueError, match="not UTF-8: byte 3"):
        read_lines(tmp_path / "t.en")


def test_unknown_split():
    with pytest.raises(ValueError, match="train, valid, test, not 'dev'"):
        shipped_prefix("dev")
