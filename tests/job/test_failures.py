"""Errors on one screen: who speaks, what the others do, and what torchrun's summary ends with."""

import json
import os
import sys
from pathlib import Path
from typing import NoReturn

import pytest

from codistill_ext.errors import Mistake, PeerTimeoutError
from codistill_ext.job import failures
from codistill_ext.job.failures import Parser, command, end, mistakes, nearest
from codistill_ext.job.storage import StorageError
from tests.commands import run, torchrun


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What torchrun gives its workers on a node of two; nobody has the patience to wait."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setattr(failures, "_PATIENCE_S", 0)
    monkeypatch.setattr(failures, "_GATHERING_S", 0)
    for rank in range(2):
        (tmp_path / str(rank)).mkdir()
    return tmp_path


def as_rank(rank: int, attempt: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process is now that worker; its file for errors."""
    file = attempt / str(rank) / "error.json"
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setenv("TORCHELASTIC_ERROR_FILE", str(file))
    return file


def sentence_in(file: Path) -> str:
    return json.loads(file.read_text())["message"]["extraInfo"]["py_callstack"]


def test_the_first_rank_speaks_and_all_leave_their_sentence(
    attempt: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in (1, 0):
        file = as_rank(rank, attempt, monkeypatch)
        with pytest.raises(SystemExit) as stop:
            end(f"it is\n  wrong on {rank}", status=2)
        assert stop.value.code == 2 and sentence_in(file) == f"it is wrong on {rank}"
    assert capsys.readouterr().err == "it is wrong on 1\n"


def test_without_torchrun_everybody_speaks(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        with pytest.raises(SystemExit):
            end("wrong")
    assert capsys.readouterr().err == "wrong\nwrong\n"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (Mistake("more"), 2, "trainer: error: more\n"),
        (StorageError("the disk is full"), 1, "trainer: error: the disk is full\n"),
        (PeerTimeoutError("nobody came"), 1, "trainer: error: PeerTimeoutError: nobody came\n"),
    ],
)
def test_what_the_user_can_mend_is_one_sentence(
    error: Exception, status: int, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @command("trainer")
    def main() -> NoReturn:
        raise error

    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == status and capsys.readouterr().err == text


def test_a_bug_keeps_its_traceback(attempt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = as_rank(0, attempt, monkeypatch)

    @command("trainer")
    def main() -> NoReturn:
        raise ValueError("ours")

    with pytest.raises(ValueError, match="ours"):
        main()
    assert "Traceback" in sentence_in(file) and "ValueError: ours" in sentence_in(file)


def test_mistakes_are_the_value_errors_of_a_block() -> None:
    with pytest.raises(Mistake, match="wrong"), mistakes():
        raise ValueError("wrong")
    with pytest.raises(KeyError), mistakes():
        raise KeyError("ours")


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--epochz", "3"], "unrecognized arguments: --epochz 3; did you mean --epochs? (see --help)"),
        (["--zzz"], "unrecognized arguments: --zzz (see --help)"),
        (["--epochs", "x"], "argument --epochs: invalid int value: 'x' (see --help)"),
        (["--name", "net21"], "argument --name: invalid choice: 'net21'; did you mean net20? (see --help)"),
        (["--name", "x"], "argument --name: invalid choice: 'x', which is none of 9 (see --help)"),
        (["--kind", "x"], "argument --kind: invalid choice: 'x' (choose from 'a', 'b') (see --help)"),
    ],
)
def test_a_parser_says_one_sentence(argv: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    parser = Parser(prog="trainer")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--name", choices=["net20", *(name * 4 for name in "abcdefgh")])
    parser.add_argument("--kind", choices=("a", "b"))
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(argv)
    assert stop.value.code == 2 and capsys.readouterr().err == f"trainer: error: {text}\n"


def test_the_nearest_names() -> None:
    assert set(nearest("resnet21", ["vgg11", "resnet20", "resnet32"]).split(" or ")) == {"resnet20", "resnet32"}
    assert nearest("x", ["resnet20"]) == ""


SCRIPT = """
import os, sys
from codistill_ext.errors import Mistake, PeerTimeoutError
from codistill_ext.job.failures import command

@command("trainer")
def main():
    if sys.argv[1] == "mistake":
        raise Mistake("too many")
    if os.environ["RANK"] == "2":
        raise KeyError("a bug")
    raise PeerTimeoutError("somebody has ended")

main()
"""


@pytest.mark.parametrize("kind", ["mistake", "bug"])
def test_torchruns_summary_ends_with_the_cause(kind: str, tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    output = run(torchrun(3, str(tmp_path / "script.py"), kind), fails=True)
    lines = output.splitlines()
    assert "somebody has ended" not in output, "who was left by another rank waits for that one's error"
    assert "<NO_OTHER_FAILURES>" in output, "no rank is listed that only was ended"
    if kind == "mistake":
        assert lines.count("trainer: error: too many") == 1 and "script.py" not in lines[0]
        assert lines[-2] == "  traceback : trainer: error: too many"
        assert len(lines) <= 40
    else:
        assert lines[-3:-1] == ["  KeyError: 'a bug'", "  "] and "rank      : 2 " in output


def test_a_process_without_torchrun_says_one_line(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    assert "TORCHELASTIC_RUN_ID" not in os.environ
    assert run([sys.executable, str(tmp_path / "script.py"), "mistake"], fails=True) == "trainer: error: too many\n"
