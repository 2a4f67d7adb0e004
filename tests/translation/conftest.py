"""A data-bin of a few hundred real pairs and, on it, a stock fairseq run of a few updates."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import commands, warm
from tests.commands import run
from tests.shipped import short_pairs
from translation.databin import Settings, prepare

SIZES = {"train": 400, "valid": 21, "test": 13}  # the last two are no multiples of 8


@pytest.fixture(scope="package", autouse=True)
def _starts_warm() -> Iterator[None]:
    """fairseq's commands, which the functions of ``translation`` start with ``sys.executable``."""
    with pytest.MonkeyPatch.context() as patch:
        if not commands.real_python:
            patch.setattr(sys, "executable", warm.python())
        yield


@pytest.fixture(scope="session")
def settings() -> Settings:
    return Settings(source_lang="en", target_lang="de", vocab_size=400, max_words=12)


@pytest.fixture(scope="session")
def prefixes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Plain-text parallel text cut from the shipped corpus."""
    folder = tmp_path_factory.mktemp("text")
    for split, size in SIZES.items():
        pairs = short_pairs(split, size)
        for side, language in enumerate(("en", "de")):
            text = "".join(f"{pair[side]}\n" for pair in pairs)
            (folder / f"{split}.{language}").write_text(text, encoding="utf-8")
    return {split: folder / split for split in SIZES}


@pytest.fixture(scope="session")
def data_bin(tmp_path_factory: pytest.TempPathFactory, settings: Settings, prefixes: dict[str, Path]) -> Path:
    dest = tmp_path_factory.mktemp("data") / "bin"
    assert prepare(dest, settings, prefixes)
    return dest


@pytest.fixture(scope="session")
def stock_run(tmp_path_factory: pytest.TempPathFactory, data_bin: Path) -> Path:
    """The save directory of stock fairseq-train: 3 epochs of a very small Transformer."""
    folder = tmp_path_factory.mktemp("stock")
    command = [sys.executable, "-m", "fairseq_cli.train", str(data_bin), "--save-dir", str(folder), "--cpu"]
    command += ["--arch", "transformer", "--encoder-layers", "1", "--decoder-layers", "1"]
    command += [
        "--encoder-embed-dim",
        "16",
        "--encoder-ffn-embed-dim",
        "16",
        "--encoder-attention-heads",
        "1",
    ]
    command += [
        "--decoder-embed-dim",
        "16",
        "--decoder-ffn-embed-dim",
        "16",
        "--decoder-attention-heads",
        "1",
    ]
    command += ["--share-all-embeddings", "--criterion", "label_smoothed_cross_entropy"]
    command += ["--optimizer", "adam", "--lr", "1e-2", "--max-tokens", "2000", "--max-epoch", "3"]
    command += ["--num-workers", "0"]
    run(command)
    return folder
