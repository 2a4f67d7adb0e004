"""A file server that lapses as it is told."""

import contextlib
import http.server
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass(kw_only=True)
class Served:
    """A file, and what each request for it meets, in order; after these all is well.

    A status code refuses, ``"cut"`` ends the connection half-way, ``"whole"`` knows no ranges.

    Attributes:
        ranges: the Range header of each request that came.
    """

    content: bytes
    mishaps: list[int | str] = field(default_factory=list)
    ranges: list[str | None] = field(default_factory=list)
    url: str = ""


@contextlib.contextmanager
def file_server(content: bytes, mishaps: Sequence[int | str] = ()) -> Iterator[Served]:
    served = Served(content=content, mishaps=list(mishaps))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.ranges.append(self.headers["Range"])
            mishap = served.mishaps.pop(0) if served.mishaps else None
            if isinstance(mishap, int):
                self.send_error(mishap)
                return
            start = 0 if mishap == "whole" else int((self.headers["Range"] or "bytes=0-")[6:-1])
            if start >= len(served.content):
                self.send_error(416)
                return
            rest = served.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: len(rest) // 2] if mishap == "cut" else rest)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served.url = f"http://127.0.0.1:{server.server_address[1]}/archive"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
