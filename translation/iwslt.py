"""The archive of an IWSLT evaluation campaign to parallel text: `python -m translation.iwslt ARCHIVE --dest DIR`.

Writes train.LANG and test.LANG. Training text is what stands outside of tags, with titles and descriptions and without
links, keywords and numbers of talks, as in fairseq's IWSLT'14 example; the test text is that of all dev and tst sets.
"""

from __future__ import annotations

import argparse
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from codistill_ext.job.failures import Parser
from translation.databin import write_side

TEST_SETS = ("TED.dev2010", "TEDX.dev2012", "TED.tst2010", "TED.tst2011", "TED.tst2012")
_LEFT_OUT = ("<url>", "<talkid>", "<keywords>")
_TAGS = re.compile(r"</?(title|description)>")
_SEGMENT = re.compile(r'<seg id="\d+">\s*(.*?)\s*</seg>')


def training_lines(text: str) -> list[str]:
    """One sentence a line of ``train.tags.de-en.de``; empty lines stay, since the other side is counted alike."""
    lines = text.removesuffix("\n").split("\n")
    return [_TAGS.sub("", line).strip() for line in lines if not any(tag in line for tag in _LEFT_OUT)]


def segments(text: str) -> list[str]:
    """The sentences of an XML file of a test set."""
    return [match[1].replace("’", "'") for match in _SEGMENT.finditer(text)]


def members(archive: Path) -> dict[str, str]:
    """The files of an archive by name, without their folders.

    Raises:
        ValueError: it is no archive of text.
    """
    try:
        return dict(_texts(archive))
    except (tarfile.TarError, EOFError, OSError, UnicodeDecodeError) as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ValueError(f"{archive} is no readable archive of text: {error}") from error


def _texts(archive: Path) -> Iterator[tuple[str, str]]:
    with tarfile.open(archive) as tar:
        for member in tar:
            file = tar.extractfile(member) if member.isfile() else None
            name = Path(member.name).name
            if file is not None and name.startswith(("train.tags.", "IWSLT")):
                yield name, file.read().decode("utf-8")


def extract(archive: Path, dest: Path, source_lang: str, target_lang: str) -> dict[str, int]:
    """Write both splits; how many lines each has.

    Raises:
        ValueError: the archive lacks a file, or its sides do not pair up.
    """
    texts, pair, counts = members(archive), f"{source_lang}-{target_lang}", {}
    for language in (source_lang, target_lang):
        train = training_lines(_of(texts, f"train.tags.{pair}.{language}", archive))
        names = [f"IWSLT14.{one}.{pair}.{language}.xml" for one in TEST_SETS]
        test = [line for name in names for line in segments(_of(texts, name, archive))]
        for split, lines in (("train", train), ("test", test)):
            if counts.setdefault(split, len(lines)) != len(lines):
                raise ValueError(
                    f"{archive}: {split} has {counts[split]} lines in {source_lang}, {len(lines)} in {language}"
                )
            write_side(dest / split, language, lines)
    return counts


def _of(texts: dict[str, str], name: str, archive: Path) -> str:
    if name not in texts:
        raise ValueError(f"{archive} has no {name}: is it the archive of this pair of languages (de-en.tgz)?")
    return texts[name]


def main(arguments: list[str] | None = None) -> None:
    form = argparse.RawDescriptionHelpFormatter
    parser = Parser(prog="python -m translation.iwslt", description=__doc__, formatter_class=form)
    parser.add_argument("archive", type=Path, help="de-en.tgz")
    parser.add_argument("--dest", type=Path, required=True)
    parser.add_argument("--source-lang", default="de")
    parser.add_argument("--target-lang", default="en")
    options = parser.parse_args(arguments)
    try:
        print(f"{options.dest}: {extract(options.archive, options.dest, options.source_lang, options.target_lang)}")
    except (ValueError, OSError) as error:
        sys.exit(f"translation.iwslt: {error}")


if __name__ == "__main__":
    main()
