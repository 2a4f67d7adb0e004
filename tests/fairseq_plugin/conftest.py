"""A small data-bin of real sentence pairs, made once."""

import sys
from pathlib import Path

import pytest

from tests.commands import run
from tests.shipped import short_pairs

PAIRS = {"train": 600, "valid": 60, "test": 40}


@pytest.fixture(scope="session")
def data_bin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for split, count in PAIRS.items():
        pairs = short_pairs(split, count)
        for language, sentences in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
            (folder / f"{split}.{language}").write_text("\n".join(sentences) + "\n")
    prefixes = [f"--{split}-prefix={folder / split}" for split in PAIRS]
    command = [sys.executable, "-m", "translation.prepare", "--dest", str(folder / "bin"), "--vocab-size", "500"]
    run([*command, *prefixes])
    return folder / "bin"
