"""What a server is asked and answers, and an interpreter that asks: ``client.py PYTHON SOCKET ARGUMENTS``.

The standard library alone, and little of it: it starts once for each process of a test.
"""

import marshal
import os
import select
import signal
import socket
import struct
import sys
from typing import Any, NoReturn

_STATUS = struct.Struct("!i")
_LENGTH = struct.Struct("!Q")
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)


def ask(address: str, request: dict[str, Any], fds: list[int]) -> socket.socket:
    """Have a process started; hanging up kills it.

    Args:
        request: ``argv`` of a command with its ``environ``, ``cwd``, ``umask`` and the signals ``ignored``; or
            ``call``, a pickled function with arguments.
        fds: its standard input, output and error.
    """
    server = socket.socket(socket.AF_UNIX)
    server.connect(address)
    data = marshal.dumps(request)
    socket.send_fds(server, [_LENGTH.pack(len(data))], fds)
    server.sendall(data)
    return server


def receive_request(client: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """The server's side of ``ask``. EOFError: the client has gone."""
    length, fds, _, _ = socket.recv_fds(client, _LENGTH.size, 3)
    try:
        return marshal.loads(_exactly(client, *_LENGTH.unpack(length))), fds
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def send_status(client: socket.socket, status: int) -> None:
    client.sendall(_STATUS.pack(status))


def receive_status(server: socket.socket) -> int:
    """Waits for the end of the process; as ``subprocess`` has it, a signal is negative. EOFError: the server died."""
    return _STATUS.unpack(_exactly(server, _STATUS.size))[0]


def _exactly(connection: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        part = connection.recv(size - len(data))
        if not part:
            raise EOFError("the other end has gone")
        data += part
    return bytes(data)


def main() -> NoReturn:
    python, address, *argv = sys.argv[1:]
    if not _is_known(argv):
        os.execv(python, [python, *argv])
    umask = os.umask(0o77)
    os.umask(umask)
    ignored = [int(number) for number in FORWARDED if signal.getsignal(number) is signal.SIG_IGN]
    request = {"argv": argv, "environ": dict(os.environ), "cwd": os.getcwd(), "umask": umask, "ignored": ignored}
    status = _status_of(request, address)
    if status < 0:
        signal.signal(-status, signal.SIG_DFL) if -status not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -status)
    os._exit(status)


def _status_of(request: dict[str, Any], address: str) -> int:
    """Hand on each signal from the very beginning; one that came just before a blocking read would not end it."""
    came, comes = socket.socketpair()
    comes.setblocking(False)
    signal.set_wakeup_fd(comes.fileno())
    for number in FORWARDED:
        signal.signal(number, lambda number, frame: None)
    server = ask(address, request, [0, 1, 2])
    while server not in select.select([server, came], [], [])[0]:
        server.sendall(came.recv(64))
    return receive_status(server)


def _is_known(argv: list[str]) -> bool:
    """``[-u] -m MODULE ...`` or ``[-u] SCRIPT ...``; a real interpreter does the rest."""
    rest = argv[1:] if argv[:1] == ["-u"] else argv
    return len(rest) > 1 if rest[:1] == ["-m"] else bool(rest) and not rest[0].startswith("-")


if __name__ == "__main__":
    main()
