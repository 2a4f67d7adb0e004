"""WMT'16 and IWSLT'14 from a sample in their own formats: prepared, trained to the first checkpoints, evaluated."""

import io
import json
import lzma
import os
import shlex
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests import warm
from tests.commands import ROOT, run, script
from tests.shipped import short_pairs
from translation.corpus import Pair
from translation.cutting import cut_tokens, learned, tokens_of
from translation.databin import Settings
from translation.iwslt import TEST_SETS

SIZES = {"train": 300, "valid": 20, "test": 12}
TINY = [
    *("--cpu", "--num-workers", "0", "--max-epoch", "1", "--log-interval", "1"),
    *(f"--{side}-{part}" for side in ("encoder", "decoder") for part in ("layers 1", "embed-dim 16")),
    *(f"--{side}-{part}" for side in ("encoder", "decoder") for part in ("ffn-embed-dim 32", "attention-heads 2")),
]


def sentences() -> dict[str, list[Pair]]:
    return {split: short_pairs(split, size) for split, size in SIZES.items()}


def pack(path: Path, files: Mapping[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def as_google_has_it(path: Path) -> Path:
    """Tokens with split dashes, cut by codes that lie beside them."""
    wanted = Settings(
        source_lang="en", target_lang="de", vocab_size=300, pieces="subword-nmt", moses=True, split_dashes=True
    )
    languages, text = ("en", "de"), sentences()
    tokens = {
        split: [
            tuple(
                function(pair[side])
                for side, function in enumerate(map(lambda one: tokens_of(wanted, one), languages))
                if function
            )
            for pair in pairs
        ]
        for split, pairs in text.items()
    }
    pieces, codes = learned(tokens["train"], wanted)  # type: ignore[arg-type]
    files = {"bpe.32000": codes["bpe.codes"].decode()}
    names = {
        "train": "train.tok.clean.bpe.32000",
        "valid": "newstest2013.tok.bpe.32000",
        "test": "newstest2014.tok.bpe.32000",
    }
    for split, name in names.items():
        for side, language in enumerate(languages):
            cut = [cut_tokens(pieces, language)(pair[side]) for pair in tokens[split]]
            files[f"{name}.{language}"] = "\n".join(cut) + "\n"
    return pack(path, files)


def as_the_campaign_has_it(path: Path) -> Path:
    files, text = {}, sentences()
    for side, language in ((1, "de"), (0, "en")):
        train = "\n".join(pair[side] for pair in text["train"])
        files[f"de-en/train.tags.de-en.{language}"] = f"<url>http://example.org</url>\n<title>Titel</title>\n{train}\n"
        for place, name in enumerate(TEST_SETS):
            pairs = text["test"][place :: len(TEST_SETS)]
            segments = "\n".join(f'<seg id="{n}"> {pair[side]} </seg>' for n, pair in enumerate(pairs, 1))
            files[f"de-en/IWSLT14.{name}.de-en.{language}.xml"] = f"<doc>\n{segments}\n</doc>\n"
    return pack(path, files)


@pytest.fixture
def recipes(tmp_path: Path) -> "Recipes":
    return Recipes(tmp_path)


class Recipes:
    """The scripts of a directory, on a sample and with a tiny model."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        words = " ".join(TINY).split()
        self.variables = {
            "PATH": f"{self._commands()}:{os.environ['PATH']}",
            "TORCHRUN": str(folder / "commands/torchrun"),
            "DATA": str(folder / "bin"),
            "RUNS": str(folder / "runs"),
            "EXTRA": " ".join(words),
            **{"PRECISION": "", "WORKERS": "1", "PER_NODE": "2", "BATCHES": "2", "TOKENS": "400", "PERIOD": "2"},
            "VOCAB_SIZE": "300",
        }

    def _commands(self) -> Path:
        """python and torchrun, which start warm."""
        commands = self.folder / "commands"
        commands.mkdir()
        for name, words in {"python": [warm.python()], "torchrun": [warm.python(), script("torchrun")]}.items():
            (commands / name).write_text(f'#!/usr/bin/env bash\nexec {shlex.join(words)} "$@"\n')
            (commands / name).chmod(0o755)
        return commands

    def __call__(self, name: str, *arguments: str, **variables: str) -> str:
        command = [script("bash"), str(ROOT / "recipes" / name), *arguments]
        return run(command, variables=self.variables | variables)


@pytest.mark.slow
def test_wmt16_from_googles_archive(recipes: Recipes) -> None:
    archive = as_google_has_it(recipes.folder / "wmt16_en_de.tar.gz")
    assert "'train': 300, 'valid': 20, 'test': 12" in recipes("wmt16_en_de/prepare.sh", ARCHIVE=str(archive))
    data = recipes.folder / "bin"
    assert (data / "dict.en.txt").read_bytes() == (data / "dict.de.txt").read_bytes()
    assert "@@" not in (data / "raw/test.de").read_text()
    recipes("wmt16_en_de/allreduce.sh", ONLY="all_reduce")
    assert (recipes.folder / "runs/all_reduce-s1/model0/checkpoint1.pt").is_file()
    recipes("wmt16_en_de/codistill.sh", ONLY="codistilled predictions_top_64_lowered")
    assert (recipes.folder / "runs/codistilled-s1/model1/checkpoint1.pt").is_file()
    directory = recipes.folder / "runs/predictions_top_64_lowered-s1"
    assert (directory / "model1/checkpoint1.pt").is_file()
    reference = recipes.folder / "newstest2014.de"
    reference.write_text("".join(f"{target}\n" for _, target in sentences()["test"]))
    printed = recipes("wmt16_en_de/evaluate.sh", str(directory), "--last", "1", "--cpu", REFERENCE=str(reference))
    assert "en-de, 12 sentences" in printed and "of moses tokens, compounds split" in printed


def test_wmt16_from_raw_text(recipes: Recipes) -> None:
    """Packed, with a sentence of the test set in it and a pair of which one side is too long."""
    text = recipes.folder / "text"
    text.mkdir()
    splits = sentences()
    splits["train"] += [splits["test"][0], ("one word", "ein Wort " * 9)]
    for split, pairs in splits.items():
        for side, language in enumerate(("en", "de")):
            with lzma.open(text / f"{split}.{language}.xz", "wt", encoding="utf-8") as file:
                file.writelines(f"{pair[side]}\n" for pair in pairs)
    printed = recipes("wmt16_en_de/prepare.sh", TEXT=str(text))
    assert "'valid': 20, 'test': 12" in printed and "of which one side is more than 1.5 times the other" in printed
    assert "with a sentence of validation or test" in printed
    assert (recipes.folder / "bin/raw/test.de").read_text() == "".join(f"{pair[1]}\n" for pair in splits["test"])


@pytest.mark.slow
def test_iwslt14_from_the_campaigns_archive_in_the_other_direction(recipes: Recipes) -> None:
    archive = as_the_campaign_has_it(recipes.folder / "de-en.tgz")
    # 301 lines with the title, of which the filters leave some out; every 23rd goes to validation.
    prepared = recipes("iwslt14_de_en/prepare.sh", ARCHIVE=str(archive))
    stamp = json.loads((recipes.folder / "bin/prepare.json").read_text())
    kept = stamp["pairs"]["train"] + stamp["pairs"]["valid"]
    assert stamp["pairs"]["valid"] == kept // 23 and stamp["pairs"]["test"] == 12 and "the first is line" in prepared
    recipes("iwslt14_de_en/allreduce.sh", ONLY="all_reduce")
    assert (recipes.folder / "runs/all_reduce-s1/model0/checkpoint1.pt").is_file()
    recipes("iwslt14_de_en/codistill.sh", ONLY="codistilled")
    directory = recipes.folder / "runs/codistilled-s1"
    assert {path.name for path in directory.glob("model*")} == {"model0", "model1"}
    printed = recipes("iwslt14_de_en/evaluate.sh", str(directory), "--last", "1", "--cpu")
    assert "de-en, 12 sentences" in printed and "case:lc" in printed
    other = {language: recipes.folder / f"other.{language}" for language in ("de", "en")}
    for side, path in enumerate((other["en"], other["de"])):
        path.write_text("".join(f"{pair[side]}\n" for pair in short_pairs("valid", 5)))
    files = ["--source", str(other["de"]), "--reference", str(other["en"])]
    assert "de-en, 5 sentences" in recipes("iwslt14_de_en/evaluate.sh", str(directory), "--last", "1", "--cpu", *files)


@pytest.mark.slow
def test_libreoffice_from_the_shipped_corpus_to_its_table(recipes: Recipes) -> None:
    variables = {"ALL_DATA": str(recipes.folder / "data"), "UPDATES": "16", "BATCHES": "2", "PART": "1/8"}
    variables["EXTRA"] = recipes.variables["EXTRA"].replace("--max-epoch 1", "")
    recipes("libreoffice_en_de/prepare.sh", ALL_DATA=variables["ALL_DATA"])
    few = [recipes.folder / "few.en", recipes.folder / "few.de"]  # so weak a model writes on and on
    for side, path in enumerate(few):
        path.write_text("".join(f"{pair[side]}\n" for pair in short_pairs("test", 3)))
    for recipe, name in (("allreduce", "all_reduce"), ("codistill", "codistilled")):
        recipes(f"libreoffice_en_de/{recipe}.sh", ONLY=name, EVALUATE="", **variables)
        directory = str(recipes.folder / f"runs/{name}-s1")
        files = ["--source", str(few[0]), "--reference", str(few[1])]
        assert "en-de, 3 sentences" in recipes("libreoffice_en_de/evaluate.sh", directory, *files)
    command = [warm.python(), "-m", "recipes.tables", str(recipes.folder / "runs")]
    command += [
        "--findings",
        str(ROOT / "recipes/libreoffice_en_de/findings.yaml"),
        "--out",
        str(recipes.folder / "out"),
    ]
    printed = run(command)
    rows = [line for line in printed.splitlines() if line.startswith(("| all_reduce ", "| codistilled "))]
    assert len(rows) >= 2 and all("| 1 " in row for row in rows)
