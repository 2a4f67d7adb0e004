"""``npm pack``: the archive of a package; nothing of it is run."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from vision.retrying import Failure, FetchError

TIMEOUT_S = 3600
# One try and no pauses of npm's own: those would be silent, and npm repeats neither a name that is not resolved nor a
# download that was cut. fetch-timeout is how long a connection may be silent, in ms.
_OPTIONS = ["--ignore-scripts", "--loglevel=error", "--fetch-retries=0", "--fetch-timeout=60000"]
_LAPSES = re.compile(
    r"E(408|420|425|429|5\d\d)|ECONN\w+|E\w*TIMEDOUT|E\w*TIMEOUT|EAI_AGAIN|ENOTFOUND|ENET\w+|EHOST\w+|EPIPE|EPROTO"
    r"|ERR_SOCKET_\w+|ERR_STREAM_PREMATURE_CLOSE"
)
_REFUSALS = re.compile(
    r"E4\d\d|ETARGET|ENOVERSIONS|E\w*AUTH\w*|ENOSPC|EDQUOT|EROFS|EACCES|EPERM|ENOTDIR|\w*CERT\w*|UNABLE_TO_\w+"
)
_NETWORK_WORDS = re.compile(r"network|socket|aborted|terminated|premature", re.IGNORECASE)
_ADVICE = re.compile(
    r"$|404\s*$|network$|code |syscall|errno|A complete log"
    r"|.*(In most cases|If you are behind|problem related to|Note that you)"
)
_MOST_LINES = 4


def npm_pack(package: str, directory: Path) -> Path:
    """Download ``package`` into an empty ``directory``.

    What came half is thrown away, as npm cannot continue it; what came whole stays in npm's own cache.

    Raises:
        FetchError: it did not come.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise FetchError("npm is not installed", Failure.REFUSED)
    shutil.rmtree(directory, ignore_errors=True)
    try:
        directory.mkdir(parents=True)
        result = subprocess.run(
            [npm, "pack", package, *_OPTIONS],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise FetchError(f"npm had not ended after {TIMEOUT_S} s", Failure.DOUBTFUL) from error
    except OSError as error:
        raise FetchError(str(error), Failure.REFUSED) from error
    if result.returncode != 0:
        raise npm_error(result.stderr)
    archives = list(directory.glob("*.tgz"))
    if len(archives) != 1:
        raise FetchError(f"npm left {len(archives)} archives, not 1", Failure.DOUBTFUL)
    return archives[0]


def npm_error(output: str) -> FetchError:
    """What npm's ``npm error`` lines say; warnings, traces and general advice are left out."""
    lines = [match[1].rstrip() for match in re.finditer(r"^npm (?:error|ERR!) ?(.*)$", output, re.MULTILINE)]
    code = next((line.removeprefix("code ") for line in lines if line.startswith("code ")), "")
    trace = next((place for place, line in enumerate(lines) if re.match(r"\s+at ", line)), len(lines))
    said = [line for line in lines[:trace] if not _ADVICE.match(line)][:_MOST_LINES]
    if not lines:
        said = output.strip().splitlines()[-1:] or ["no message"]
    return FetchError(" ".join([code, *said]).strip(), _kind(code, said))


def _kind(code: str, said: list[str]) -> Failure:
    if _LAPSES.fullmatch(code):
        return Failure.LAPSED
    if _REFUSALS.fullmatch(code):
        return Failure.REFUSED
    return Failure.LAPSED if _NETWORK_WORDS.search(" ".join(said)) else Failure.DOUBTFUL
