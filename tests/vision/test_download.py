"""Downloads that break are continued; what cannot get better is not tried again."""

import errno
import hashlib
import ssl
import urllib.error
from pathlib import Path

import pytest

from tests.vision.servers import file_server
from vision.download import download, fetch_error
from vision.retrying import Failure, FetchError

CONTENT = bytes(range(256)) * 4000
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The servers are on this machine, whatever the environment says of the way to others."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")


def _try(url: str, path: Path, md5: str = MD5) -> Failure | None:
    try:
        download(url, path, md5=md5)
    except FetchError as error:
        return error.failure
    return None


def test_a_download_that_was_cut_is_continued(tmp_path: Path) -> None:
    path, half, quarters = tmp_path / "archive", len(CONTENT) // 2, len(CONTENT) * 3 // 4
    with file_server(CONTENT, ["cut", "cut", 503]) as served:
        with pytest.raises(FetchError, match=r"the connection ended after 0.5 of 1.0 MB"):
            download(served.url, path, md5=MD5)
        assert [_try(served.url, path) for _ in range(3)] == [Failure.LAPSED, Failure.LAPSED, None]
    assert served.ranges == [None, f"bytes={half}-", f"bytes={quarters}-", f"bytes={quarters}-"]
    assert path.read_bytes() == CONTENT and list(tmp_path.iterdir()) == [path]


def test_a_server_without_ranges_sends_everything(tmp_path: Path) -> None:
    with file_server(CONTENT, ["cut", "whole"]) as served:
        assert [_try(served.url, tmp_path / "archive") for _ in range(2)] == [Failure.LAPSED, None]
    assert (tmp_path / "archive").read_bytes() == CONTENT


def test_a_whole_part_and_a_whole_archive_are_used(tmp_path: Path) -> None:
    (tmp_path / "archive.part").write_bytes(CONTENT)  # killed before it was renamed
    with file_server(CONTENT) as served:
        assert [_try(served.url, tmp_path / "archive") for _ in range(2)] == [None, None]
    assert served.ranges == [f"bytes={len(CONTENT)}-"]


def test_another_file_is_thrown_away(tmp_path: Path) -> None:
    with file_server(CONTENT) as served, pytest.raises(FetchError, match="came with md5") as caught:
        download(served.url, tmp_path / "archive", md5="0" * 32)
    assert caught.value.failure is Failure.DOUBTFUL and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("mishap", "failure"),
    [(404, Failure.REFUSED), (403, Failure.REFUSED), (429, Failure.LAPSED), (500, Failure.LAPSED)],
)
def test_what_a_server_answers(mishap: int, failure: Failure, tmp_path: Path) -> None:
    with file_server(CONTENT, [mishap]) as served, pytest.raises(FetchError, match=f"HTTP {mishap}") as caught:
        download(served.url, tmp_path / "archive", md5=MD5)
    assert caught.value.failure is failure


def test_nobody_listens(tmp_path: Path) -> None:
    with file_server(CONTENT) as served:
        pass
    assert _try(served.url, tmp_path / "archive") is Failure.LAPSED


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), Failure.REFUSED),
        (urllib.error.URLError(ssl.SSLCertVerificationError("self-signed")), Failure.REFUSED),
        (urllib.error.URLError(TimeoutError("timed out")), Failure.LAPSED),
        (urllib.error.URLError(OSError("Tunnel connection failed: 403 Forbidden")), Failure.REFUSED),
        (urllib.error.URLError(OSError("Tunnel connection failed: 502 Bad Gateway")), Failure.LAPSED),
        (ConnectionResetError(errno.ECONNRESET, "reset by peer"), Failure.LAPSED),
    ],
)
def test_what_else_goes_wrong(error: OSError, failure: Failure) -> None:
    assert fetch_error(error).failure is failure
