"""An archive in the campaign's own format: which lines become text, and what is said of a wrong one."""

import io
import tarfile
from pathlib import Path

import pytest

from translation.iwslt import TEST_SETS, extract, main

TRAIN = """\
<url>http://www.example.org/talks/{0}</url>
<keywords>talks, {0}</keywords>
<talkid>1</talkid>
<title>{0}: A title</title>
<description>{0}: What it is about.</description>
 {0} one & two.

 {0} three.
"""
SEGMENTS = '<doc docid="1">\n<seg id="1"> {0} it’s. </seg>\n<seg id="2">{0} end.</seg>\n</doc>\n'


def archive_of(path: Path, files: dict[str, str]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, text in files.items():
            member = tarfile.TarInfo(f"de-en/{name}")
            member.size = len(text.encode())
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def campaign(drop: str = "") -> dict[str, str]:
    files = {f"train.tags.de-en.{language}": TRAIN.format(language) for language in ("de", "en")}
    for test in TEST_SETS:
        files |= {f"IWSLT14.{test}.de-en.{language}.xml": SEGMENTS.format(language) for language in ("de", "en")}
    return {name: text for name, text in files.items() if name != drop}


def test_text_without_tags_and_test_sets_behind_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([str(archive_of(tmp_path / "de-en.tgz", campaign())), "--dest", str(tmp_path / "text")])
    assert "{'train': 5, 'test': 10}" in capsys.readouterr().out
    assert (tmp_path / "text/train.de").read_text().split("\n") == [
        *("de: A title", "de: What it is about.", "de one & two.", "", "de three.", "")
    ]
    assert (tmp_path / "text/test.en").read_text() == "en it's.\nen end.\n" * 5


@pytest.mark.parametrize(
    ("drop", "message"),
    [
        ("train.tags.de-en.en", "has no train.tags.de-en.en"),
        ("IWSLT14.TEDX.dev2012.de-en.en.xml", "has no IWSLT14.TEDX.dev2012.de-en.en.xml"),
    ],
)
def test_what_is_missing_is_said(tmp_path: Path, drop: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        extract(archive_of(tmp_path / "de-en.tgz", campaign(drop)), tmp_path / "text", "de", "en")


def test_no_archive(tmp_path: Path) -> None:
    (tmp_path / "de-en.tgz").write_text("<html>not found</html>")
    with pytest.raises(SystemExit, match=r"translation\.iwslt: .*de-en\.tgz is no readable archive"):
        main([str(tmp_path / "de-en.tgz"), "--dest", str(tmp_path / "text")])
    with pytest.raises(SystemExit, match="No such file"):
        main([str(tmp_path / "missing.tgz"), "--dest", str(tmp_path / "text")])
