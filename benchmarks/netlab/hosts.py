"""Hosts as network namespaces on a bridge, each behind a link that is shaped in both directions.

Everything is in namespaces of its own, the bridge as well, so that no address and no interface is seen outside. Their
names carry the process that made them: what a killed lab left behind is removed by the next one.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = "netlab"
INTERFACE = "eth0"
_NETWORK = "10.99.0"
_MOST_HOSTS = 250
_BURST_S = 0.004  # of the link's rate: 500 kB at 1 Gbit/s
_LEAST_BURST_BYTES = 32_000
_QUEUE_MS = 100
_GRACE_S = 10.0


class LabError(RuntimeError):
    """The lab cannot be made here, or what ran in it failed; says what to change."""


@dataclass(frozen=True)
class Host:
    """One host of a lab.

    Attributes:
        namespace: its network namespace.
        address: in the lab's network.
    """

    index: int
    namespace: str
    address: str

    def command(self, *command: str) -> list[str]:
        """The command as it is started on this host."""
        return ["ip", "netns", "exec", self.namespace, *command]

    def ends_with_lab(self, *command: str) -> list[str]:
        """The same, and a process that ends when the one that started it does, however that ended."""
        setpriv = shutil.which("setpriv")
        return [*([setpriv, "--pdeathsig", "TERM"] if setpriv else []), *self.command(*command)]


def missing() -> str | None:
    """Why no lab can be made here, as a sentence; None if it can."""
    if os.uname().sysname != "Linux":
        return "the network lab needs Linux: it is made of network namespaces"
    if tools := [name for name in ("ip", "tc") if shutil.which(name) is None]:
        return f"the network lab needs {' and '.join(tools)}: install iproute2 (apt install iproute2, or dnf)"
    if os.geteuid() != 0:
        return "the network lab makes network namespaces and needs root: use sudo, or a privileged container"
    probe = f"{PREFIX}-{_owner()}-probe"
    try:
        _ip("netns", "add", probe)
        _shape(probe, "lo", 1e9)
    except LabError as error:
        return f"the network lab cannot make a namespace with a shaped link here: {error}"
    finally:
        subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return None


@contextlib.contextmanager
def lab(hosts: int, bits_per_second: float) -> Iterator[list[Host]]:
    """Make the hosts; whatever happens, end what runs on them and remove them.

    SIGTERM and SIGHUP end the lab as ctrl-C does. A lab that was killed is removed by the next one.

    Args:
        bits_per_second: of each host's link, in each direction.

    Raises:
        LabError: it cannot be made here.
    """
    if not 1 <= hosts <= _MOST_HOSTS:
        raise LabError(f"a lab has 1 to {_MOST_HOSTS} hosts, not {hosts}")
    if problem := missing():
        raise LabError(problem)
    remove_leftovers()
    name = f"{PREFIX}-{_owner()}"
    with _signals_raise():
        try:
            _ip("netns", "add", f"{name}-switch")
            _ip("-n", f"{name}-switch", "link", "add", "bridge", "type", "bridge")
            _ip("-n", f"{name}-switch", "link", "set", "bridge", "up")
            yield [_add_host(name, index, bits_per_second) for index in range(hosts)]
        finally:
            remove(name)


def _add_host(lab_name: str, index: int, bits_per_second: float) -> Host:
    host = Host(index, f"{lab_name}-host{index}", f"{_NETWORK}.{index + 1}")
    switch, port = f"{lab_name}-switch", f"port{index}"
    _ip("netns", "add", host.namespace)
    _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "name", INTERFACE, "netns", host.namespace)
    _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
    _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", INTERFACE)
    for interface in "lo", INTERFACE:
        _ip("-n", host.namespace, "link", "set", interface, "up")
    _shape(host.namespace, INTERFACE, bits_per_second)
    _shape(switch, port, bits_per_second)
    return host


def _shape(namespace: str, interface: str, bits_per_second: float) -> None:
    """What leaves by the interface goes through a token bucket; netem is not in every kernel."""
    burst = int(max(_LEAST_BURST_BYTES, bits_per_second / 8 * _BURST_S))
    rate = ["rate", f"{bits_per_second:.0f}bit", "burst", str(burst), "latency", f"{_QUEUE_MS}ms"]
    _run(["tc", "-n", namespace, "qdisc", "add", "dev", interface, "root", "tbf", *rate])


def remove_leftovers() -> list[str]:
    """Remove the labs whose process is gone; their names."""
    found = {name.rsplit("-", 1)[0] for name in _namespaces() if name.startswith(f"{PREFIX}-")}
    gone = sorted(name for name in found if not _is_alive(name))
    for name in gone:
        remove(name)
    return gone


def remove(lab_name: str) -> None:
    """End what runs on a lab's hosts, and remove them; their interfaces go with them."""
    namespaces = [name for name in _namespaces() if name.startswith(f"{lab_name}-")]
    for wanted in signal.SIGTERM, signal.SIGKILL:
        deadline = time.monotonic() + _GRACE_S
        for pid in _pids(namespaces):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, wanted)
        while _pids(namespaces) and time.monotonic() < deadline:
            time.sleep(0.05)
    for namespace in namespaces:
        subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def interface_bytes(interface: str = INTERFACE) -> tuple[int, int]:
    """Bytes sent and received by an interface of the host that this process is on, by the kernel's counters."""
    for line in Path("/proc/self/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == interface:
            fields = counts.split()
            return int(fields[8]), int(fields[0])
    raise LabError(f"this host has no interface {interface}")


def _owner() -> str:
    return f"{os.getpid()}-{_started(os.getpid())}"


def _started(pid: int) -> str | None:
    """When a process was started, in the kernel's ticks: a number may be given to another process later."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return None


def _is_alive(lab_name: str) -> bool:
    _, pid, started = lab_name.split("-")[:3]
    return pid.isdigit() and _started(int(pid)) == started


def _namespaces() -> list[str]:
    return [line.split()[0] for line in _ip("netns", "list").splitlines() if line.strip()]


def _pids(namespaces: list[str]) -> list[int]:
    return [int(pid) for namespace in namespaces for pid in _ip("netns", "pids", namespace).split()]


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    def raise_exit(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, raise_exit) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ip(*arguments: str) -> str:
    return _run(["ip", *arguments])


def _run(command: list[str]) -> str:
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise LabError(f"`{' '.join(command)}`: {result.stderr.strip() or f'status {result.returncode}'}")
    return result.stdout
