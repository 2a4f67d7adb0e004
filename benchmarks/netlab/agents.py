"""One torchrun agent on each host of a lab, with a rendezvous across them."""

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.netlab.hosts import INTERFACE, Host, LabError

ROOT = Path(__file__).parents[2]
_PORT = 29400
_LAST_LINES = 4000  # characters of an agent's output that an error shows


def run_on(hosts: Sequence[Host], arguments: Sequence[str], *, ranks: int, deadline_s: float, pin: bool) -> None:
    """Run ``torchrun ... arguments`` on all hosts to the end.

    Args:
        arguments: the program, such as ``-m NAME``, and its arguments.
        ranks: processes a host.
        pin: each host has a core to itself, by turns where there are fewer cores than hosts.

    Raises:
        LabError: a host's agent failed, or took longer than ``deadline_s``; shows the end of what it wrote.
    """
    with tempfile.TemporaryDirectory(prefix="netlab") as directory:
        logs = [Path(directory, f"host{host.index}.txt") for host in hosts]
        with _started(hosts, logs, arguments, ranks, pin) as agents:
            deadline = time.monotonic() + deadline_s
            while any(agent.poll() is None for agent in agents):
                if time.monotonic() > deadline or any(agent.poll() for agent in agents):
                    break
                time.sleep(0.05)
            statuses = [agent.poll() for agent in agents]
        if any(statuses):
            failed = next(index for index, status in enumerate(statuses) if status)
            raise LabError(f"host {failed} ended with status {statuses[failed]}:\n{_end_of(logs[failed])}")
        if None in statuses:
            stuck = statuses.index(None)
            raise LabError(f"host {stuck} did not end within {deadline_s:g} s:\n{_end_of(logs[stuck])}")


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-_LAST_LINES:]


@contextlib.contextmanager
def _started(
    hosts: Sequence[Host], logs: Sequence[Path], arguments: Sequence[str], ranks: int, pin: bool
) -> Iterator[list[subprocess.Popen[bytes]]]:
    agents: list[subprocess.Popen[bytes]] = []
    try:
        for host, log in zip(hosts, logs, strict=True):
            with log.open("wb") as output:
                command = host.ends_with_lab(*_pinned(host, pin), *_agent(hosts, host, ranks), *arguments)
                agents.append(
                    subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_environment(host))
                )
        yield agents
    finally:
        for agent in agents:
            agent.terminate()
        for agent in agents:
            with contextlib.suppress(subprocess.TimeoutExpired):
                agent.wait(timeout=30)  # torchrun ends its workers first; the lab ends what is left


def _agent(hosts: Sequence[Host], host: Host, ranks: int) -> list[str]:
    first = hosts[0].address
    return [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--nnodes", str(len(hosts)), "--nproc-per-node", str(ranks), "--local-addr", host.address),
        *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first}:{_PORT}", "--rdzv-id", "netlab"),
        # The host's name is the machine's, which is in no namespace's network.
        *("--rdzv-conf", f"is_host={int(host.address == first)}"),
    ]


def _pinned(host: Host, pin: bool) -> list[str]:
    cores = sorted(os.sched_getaffinity(0))
    return ["taskset", "-c", str(cores[host.index % len(cores)])] if pin else []


def _environment(host: Host) -> dict[str, str]:
    path = os.pathsep.join(part for part in (str(ROOT), os.environ.get("PYTHONPATH", "")) if part)
    return os.environ | {
        "PYTHONPATH": path,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": INTERFACE,
        "TP_SOCKET_IFNAME": INTERFACE,
        "NETLAB_ADDRESS": host.address,
    }
