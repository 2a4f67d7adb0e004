"""pip for recipes/lib/venv.sh: lapses of the network are tried again, and the last message has pip's own errors.

``python -m recipes.pip_install NAME LOG ARGUMENT...``, by the environment's interpreter, which has nothing but pip.
What pip has whole is in its cache for the next try; a newer pip also continues what came half.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from vision.retrying import Failure, FetchError, Pause, first_delivered

# pip often names them in warnings alone: its error is then that there is no such version, or that versions conflict.
_LAPSES = re.compile(
    r"connection broken by|Connection(Error|ResetError)|[Cc]onnection (reset|refused|aborted|interrupted)|timed out"
    r"|(Read|Connect)Timeout|Max retries exceeded|ProtocolError|IncompleteRead|RemoteDisconnected|Remote end closed"
    r"|SSLEOFError|name resolution|Network is unreachable|No route to host"
    r"|error: (connection-\w+|proxy-connection-failed|incomplete-download)"
    r"|HTTP error (408|425|429|5\d\d)|(408|425|429|5\d\d) (Client|Server) Error"
)
_REFUSALS = re.compile(
    r"No space left on device|Disk quota exceeded|Permission denied|Read-only file system|CERTIFICATE_VERIFY_FAILED"
    r"|error: ssl-\w+|HTTP error 40[134]|40[134] Client Error"
)
_DOUBTS = re.compile(r"DO NOT MATCH THE HASHES|BadZipFile|zlib\.error")
_TOO_LONG = re.compile(r" \(from versions: .*\)|<pip\._vendor[^>]*>: ")


def pip_install(name: str, log: Path, arguments: Sequence[str], *, pause: Pause = time.sleep) -> None:
    """Install by the interpreter's own pip; its output is appended to ``log``.

    Raises:
        FetchError: pip failed for good, or too often.
    """
    first_delivered(name, {"pip": lambda: _once(log, arguments)}, pause)


def _once(log: Path, arguments: Sequence[str]) -> None:
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *arguments]
    with open(log, "a+", encoding="utf-8", errors="replace") as file:
        start = file.tell()
        result = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={"PIP_RESUME_RETRIES": "20", "PIP_PROGRESS_BAR": "off"} | os.environ,
        )
        if result.returncode != 0:
            file.seek(start)
            raise pip_error(file.read())


def pip_error(output: str) -> FetchError:
    """What pip's error lines say, or the broken connection that it only warned of before it drew wrong conclusions."""
    failure = _kind(output)
    said = re.findall(r"^ *((?:ERROR|error): .*|[×╰].*)$", output, re.MULTILINE)
    said += re.findall(r"^((?:\w+\.)+\w*(?:Error|Exception): .*)$", output, re.MULTILINE)[-1:]  # of a trace
    broken = re.findall(r"(connection broken by .*)$", output, re.MULTILINE)[-1:]
    if broken and failure is Failure.LAPSED:
        said = broken
    lines = [_TOO_LONG.sub("", line) for line in dict.fromkeys(said)]
    lines = lines or output.strip().splitlines()[-1:] or ["no message"]
    return FetchError(" ".join(lines[:2] + lines[2:][-2:]), failure)


def _kind(output: str) -> Failure:
    if _REFUSALS.search(output):
        return Failure.REFUSED
    if _LAPSES.search(output):
        return Failure.LAPSED
    return Failure.DOUBTFUL if _DOUBTS.search(output) else Failure.REFUSED


def main(name: str, log: str, *arguments: str) -> None:
    try:
        pip_install(name, Path(log), arguments)
    except FetchError as error:
        sys.exit(
            f"\nstopped: {error}\nIs there a network, or a package index that pip is configured for? "
            f"All of pip's output: {log}. The same command goes on from here."
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
