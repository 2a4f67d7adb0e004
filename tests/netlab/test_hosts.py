"""Hosts of the network lab: made, shaped and removed, whatever happens. Needs no torch."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.netlab import hosts
from benchmarks.netlab.hosts import Host, LabError, lab, remove_leftovers

ROOT = Path(__file__).parents[2]
DEADLINE_S = 60


def needs_a_lab() -> None:
    if problem := hosts.missing():
        pytest.skip(problem)


@pytest.mark.parametrize(
    ("tools", "user", "message"),
    [((), 0, "needs ip and tc: install iproute2"), (("ip", "tc"), 1000, "needs root: use sudo")],
)
def test_it_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tools: tuple[str, ...], user: int, message: str
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: name if name in tools else None)
    monkeypatch.setattr(os, "geteuid", lambda: user)
    with pytest.raises(LabError, match=message), lab(2, 1e9):
        pass


def test_leftovers_are_those_of_processes_that_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = hosts._owner()
    later = f"{os.getpid()}-1"  # the number of this process, but of another one that had it before
    names = [f"netlab-{owner}-{host}" for owner in (mine, later, "999999999-7") for host in ("switch", "host0")]
    removed: list[str] = []
    monkeypatch.setattr(hosts, "_namespaces", lambda: [*names, "somebody-else"])
    monkeypatch.setattr(hosts, "remove", removed.append)
    assert remove_leftovers() == removed == sorted(["netlab-999999999-7", f"netlab-{later}"])


SENDER = """
import socket, sys, time
sender, bytes_ = socket.create_connection((sys.argv[1], 5000)), int(sys.argv[2])
start = time.monotonic()
sender.sendall(bytes(bytes_))
sender.shutdown(socket.SHUT_WR)
sender.recv(1)
print(time.monotonic() - start)
"""
RECEIVER = """
import socket
with socket.create_server(("", 5000)) as server:
    print("listens", flush=True)
    connection, _ = server.accept()
    while connection.recv(1 << 16):
        pass
    connection.sendall(b"x")
from benchmarks.netlab.hosts import interface_bytes
print(interface_bytes()[1])
"""


def _python(host: Host, program: str, *arguments: str) -> "subprocess.Popen[str]":
    command = host.ends_with_lab(sys.executable, "-c", program, *arguments)
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_link_is_as_slow_as_asked_and_counts_bytes() -> None:
    needs_a_lab()
    size, bits_per_second = 2_000_000, 40e6
    with lab(2, bits_per_second) as (first, second):
        with _python(second, RECEIVER) as receiver:
            assert receiver.stdout is not None and receiver.stdout.readline() == "listens\n"
            with _python(first, SENDER, second.address, str(size)) as sender:
                output, _ = sender.communicate(timeout=DEADLINE_S)
            received, _ = receiver.communicate(timeout=DEADLINE_S)
    assert float(output) >= 0.9 * size * 8 / bits_per_second, "a burst at the beginning is all it may be faster by"
    assert size <= int(received) <= 1.1 * size


LAB = """
import subprocess, sys
from benchmarks.netlab.hosts import lab
with lab(2, 1e9) as made:
    processes = [subprocess.Popen(host.command("sleep", "600")) for host in made]
    print(made[0].namespace.rsplit("-", 1)[0], flush=True)
    processes[0].wait()
"""


@pytest.fixture
def running() -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """A lab in a process of its own, and its name."""
    needs_a_lab()
    with subprocess.Popen([sys.executable, "-c", LAB], stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def _left(name: str) -> list[str]:
    return [namespace for namespace in hosts._namespaces() if namespace.startswith(f"{name}-")]


def _runs(pid: int) -> bool:
    """Whether there is such a process, and not only its status that nobody has read."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


@pytest.mark.real_python
def test_a_lab_that_is_ended_removes_itself(running: tuple["subprocess.Popen[str]", str]) -> None:
    process, name = running
    assert len(_left(name)) == 3
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=DEADLINE_S) == 128 + signal.SIGTERM
    assert not _left(name)


@pytest.mark.real_python
def test_what_a_killed_lab_left_the_next_one_removes(running: tuple["subprocess.Popen[str]", str]) -> None:
    process, name = running
    on_host = hosts._pids([f"{name}-host1"])
    assert len(on_host) == 1
    process.kill()
    process.wait(timeout=DEADLINE_S)
    with lab(1, 1e9):
        assert not _left(name)
        assert not _runs(on_host[0])
