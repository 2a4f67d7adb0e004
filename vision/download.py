"""A file by HTTP: what an earlier try left half is continued, and the whole is checked."""

from __future__ import annotations

import errno
import hashlib
import http.client
import os
import re
import ssl
import urllib.error
import urllib.request
from pathlib import Path

from tqdm import tqdm

from vision.retrying import Failure, FetchError

SILENCE_S = 15  # without a byte
_CHUNK = 1 << 18
_LATER = {408, 425, 429}  # and everything from 500 on
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


def download(url: str, path: Path, *, md5: str) -> None:
    """Fetch ``url`` into ``path``, by way of ``path`` with ``.part`` behind it, which stays when the connection breaks.

    Raises:
        FetchError: it could not be fetched, or is another file than expected.
    """
    part = path.with_name(path.name + ".part")
    try:
        if not path.exists():
            _append(url, part)
            os.replace(part, path)
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
    except (OSError, http.client.HTTPException) as error:
        raise fetch_error(error) from error
    if found != md5:
        path.unlink()
        raise FetchError(f"{path.name} came with md5 {found[:16]}..., not {md5[:16]}...", Failure.DOUBTFUL)


def _append(url: str, part: Path) -> None:
    """Ask for what is missing of ``part``; a server that cannot continue sends everything."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=SILENCE_S)
    except urllib.error.HTTPError as error:
        if have and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return  # nothing is missing, or it is another file: the checksum will tell
        raise
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            have = 0
        _write(response, part, have)


def _write(response: http.client.HTTPResponse, part: Path, have: int) -> None:
    announced = response.headers["Content-Length"]
    total = None if announced is None else have + int(announced)
    # disable=None: a bar on a terminal, nothing in a log
    with (
        open(part, "ab" if have else "wb") as file,
        tqdm(desc=part.stem, initial=have, total=total, unit="B", unit_scale=True, disable=None, leave=False) as bar,
    ):
        while chunk := response.read(_CHUNK):
            have += file.write(chunk)
            bar.update(len(chunk))
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have / 1e6:.1f} of {total / 1e6:.1f} MB")


def fetch_error(error: BaseException) -> FetchError:
    """Whether another try may help, for what the network or the disk raised."""
    if isinstance(error, urllib.error.HTTPError):
        return FetchError(f"HTTP {error.code} {error.reason}", _answered(error.code))
    if isinstance(error, urllib.error.URLError) and isinstance(error.reason, OSError):
        error = error.reason
    tunnel = re.match(r"Tunnel connection failed: (\d{3})", str(error))  # what a proxy answers has no type of its own
    if tunnel:
        return FetchError(str(error), _answered(int(tunnel[1])))
    final = isinstance(error, ssl.SSLCertVerificationError) or getattr(error, "errno", None) in _NO_ROOM
    return FetchError(str(error) or type(error).__name__, Failure.REFUSED if final else Failure.LAPSED)


def _answered(status: int) -> Failure:
    return Failure.LAPSED if status in _LATER or status >= 500 else Failure.REFUSED
