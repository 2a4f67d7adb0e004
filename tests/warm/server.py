"""Imports the libraries, then forks: ``-m tests.warm.server DIRECTORY SOCKET SOCKET``, until its standard input ends.

A client asks once (``client.ask``) and gets the exit status; what it sends meanwhile are numbers of signals,
and when it hangs up its process is killed. So nothing outlives the one that asked for it. The sockets are
of commands, and of ranks, whose server has imported codistill_ext too.
"""

import contextlib
import gc
import importlib
import logging
import os
import selectors
import shutil
import signal
import socket
import sys
import tempfile
import warnings

from tests.warm import child
from tests.warm.client import receive_request, send_status

# Not fairseq_cli: the command imports it, and gets its logging from it.
LIBRARIES = [
    "numpy",
    "pytest",
    "safetensors.torch",
    "yaml",
    "torch.distributed.checkpoint",
    "torch.distributed.run",
    "torch.distributed.tensor",
    "torch._dynamo",  # the first optimizer imports it
    "torch.utils.tensorboard",
    "torchvision",
    "torchvision.transforms.v2",
    "sacrebleu",
    "sentencepiece",
    "fairseq.checkpoint_utils",
    "fairseq.criterions",
    "fairseq.distributed",
    "fairseq.models",
    "fairseq.options",
    "fairseq.tasks",
    "fairseq.trainer",
    "accelerate",
    "lightning_fabric",
    "transformers.trainer_seq2seq",
]
OURS = ["codistill_ext", "tests.core.training"]


def main() -> None:
    directory, *fds = sys.argv[1:]
    commands, ranks = (socket.socket(fileno=int(fd)) for fd in fds)
    variables = _import_libraries()
    of_commands = os.fork() != 0
    if not of_commands:
        _import(OURS)
    mine, other = (commands, ranks) if of_commands else (ranks, commands)
    other.close()  # so that its clients are told if its server has died
    gc.disable()
    gc.freeze()  # a collection would write to what the processes share
    Server(mine, variables, python=os.path.join(directory, "python")).serve()
    if of_commands:
        shutil.rmtree(directory)


def _import(modules: list[str]) -> None:
    for name in modules:
        with contextlib.suppress(Exception):  # it is told to those who need it
            importlib.import_module(name)


def _import_libraries() -> dict[str, str]:
    """What they put into the environment. Nothing else of them shows before a command imports them itself."""
    before = dict(os.environ)
    errors = os.dup(2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    with warnings.catch_warnings():
        _import(LIBRARIES)
    os.dup2(errors, 2)
    os.close(errors)
    logging.root.handlers.clear()  # modules of fairseq's configure it
    logging.root.setLevel(logging.WARNING)
    tempfile.tempdir = None
    return {name: value for name, value in os.environ.items() if before.get(name) != value}


class Server:
    """Forks a process for each client, and tells it how that ended."""

    def __init__(self, listener: socket.socket, variables: dict[str, str], python: str) -> None:
        self._listener, self._variables, self._python = listener, variables, python
        self._path = sys.path[1:]  # without the place that -m put there
        self._clients: dict[int, socket.socket] = {}  # by process
        self._woken, self._wakes = socket.socketpair()  # by SIGCHLD
        for end in (self._woken, self._wakes):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()

    def serve(self) -> None:
        """Until the standard input ends; the processes end with it."""
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        signal.set_wakeup_fd(self._wakes.fileno())
        for source in (sys.stdin, self._listener, self._woken):
            self._selector.register(source, selectors.EVENT_READ)
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is sys.stdin:
                    return self._end()
                if key.fileobj is self._listener:
                    self._start()
                elif key.fileobj is self._woken:
                    self._report()
                elif key.data in self._clients:
                    self._signal(key.data)

    def _start(self) -> None:
        client, _ = self._listener.accept()
        try:
            client.settimeout(60)
            request, fds = receive_request(client)
        except (OSError, EOFError):  # it is not there any more
            client.close()
            return
        pid = os.fork()
        if pid == 0:
            self._leave()
            client.close()
            child.become(request, fds, self._variables, self._path, self._python)
        for fd in fds:
            os.close(fd)
        self._clients[pid] = client
        self._selector.register(client, selectors.EVENT_READ, pid)

    def _leave(self) -> None:
        """In a forked process: what belongs to the server alone."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._selector.close()
        for each in (self._listener, self._woken, self._wakes, *self._clients.values()):
            each.close()

    def _report(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._woken.recv(4096)
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                client = self._clients.pop(ended[0], None)
                if client is not None:  # or it is the other server
                    self._forget(client)
                    with contextlib.suppress(OSError):
                        send_status(client, os.waitstatus_to_exitcode(ended[1]))
                    client.close()

    def _forget(self, client: socket.socket) -> None:
        with contextlib.suppress(KeyError):
            self._selector.unregister(client)

    def _signal(self, pid: int) -> None:
        try:
            numbers = self._clients[pid].recv(64)
        except OSError:
            numbers = b""
        for number in numbers:
            os.kill(pid, number)
        if not numbers:
            self._forget(self._clients[pid])
            _kill(pid)

    def _end(self) -> None:
        for pid in self._clients:
            _kill(pid)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()


def _kill(pid: int) -> None:
    """And what it has started; it has a session of its own, or is just about to."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
