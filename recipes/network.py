"""What is measured in the network lab for results/network: jobs of a few steps, and trainings to the end."""

from collections.abc import Iterator

from benchmarks.netlab.accuracy import Training
from benchmarks.netlab.job import Job

HOSTS, GBITS = (1, 2, 4, 8), (1, 10, 25)
SCALE = 100  # of the talk's setting: 8 hosts of 229 M parameters are played on two cores
COMPUTE_MS = 412  # [talk]
PARAMETERS = 229_000_000
TALK_GBITS = 10  # the talk says Ethernet; at this rate its two nodes are ours
TALK_MS = {1: 412, 2: 956, 4: 1568, 8: 1593}
# Hosts alone, as the control, and with one and two hosts a model; checkpoints cross as often as in Anil et al., because
# the runs are short. SlowMo is missing: the table of steps has the error.
ACCURACY = ("alone", "ddp", "ddp-fp16", "ddp-powersgd", "local-sgd-4", "local-sgd-16", "torchft-local-sgd-16")
ACCURACY += ("torchft-diloco-16", "predictions-full/1", "predictions-full/2", "checkpoints-t50/1", "checkpoints-t50/2")
SEEDS, UPDATES, SHORT_UPDATES = (0, 1, 2), 1500, 100  # 7.7 passes of four hosts over CIFAR-10
_STEPS, _SLOW_STEPS, _WARM_UP = 10, 4, 9  # slow ones are at 1 Gbit/s; teachers are there from the 8th on
_ONE_NODE = ("predictions-topk", "predictions-half", "predictions-full", "checkpoints-t2500")


def jobs() -> Iterator[tuple[str, Job]]:
    """Every measurement of the tables of steps, by the name of its file."""
    for hosts in (2, 4, 8):
        for gbits in (0.01, 0.1, 1.0, 2.5):
            yield (
                f"links_{hosts}x{gbits:g}",
                Job(ways=("all-reduce",), hosts=hosts, bits_per_second=gbits * 1e9, steps=5),
            )
    yield f"talk_1x{TALK_GBITS}", _talk(1, TALK_GBITS)  # no link is used
    for hosts in HOSTS[1:]:
        for gbits in GBITS:
            yield f"talk_{hosts}x{gbits}", _talk(hosts, gbits)
    for hosts in HOSTS[1:]:
        for gbits in GBITS:
            yield f"every50_{hosts}x{gbits}", _often(hosts, gbits)
    real = {"hosts": 2, "rows": 192, "steps": 44, "warm_up": 32}
    yield (
        "two_hosts",
        Job(ways=("alone", "ddp", "ddp-fp16", *_ONE_NODE[:3], "checkpoints", "checkpoints-every4"), **real),
    )
    local = {"hosts": 2, "rows": 192, "steps": 48, "warm_up": 32}
    yield "others", Job(ways=("alone", "ddp-powersgd", "local-sgd-4", "local-sgd-16"), **local)
    for name in ("slowmo-16", "torchft-local-sgd-16", "torchft-diloco-16"):
        yield f"others_{name}", Job(ways=("alone", name), **local)
    large = {"rows": 512, "vocabulary": 32768, "dim": 768, "layers": 8, "steps": 12, "warm_up": 2}
    yield "vocabulary", Job(ways=("alone", "predictions-topk"), hosts=2, **large)
    for models in (2, 4, 8):
        yield f"growth_{models}", _growth(models)


def _talk(hosts: int, gbits: float) -> Job:
    """Way after way, in a few steps each."""
    ways = ["alone", "ddp"] if hosts > 1 else ["alone"]
    for hosts_a_model in (1, 2, 4):
        if hosts >= 2 * hosts_a_model:
            names = _ONE_NODE if hosts_a_model == 1 else ("predictions-topk", "checkpoints-t2500")
            ways += [_of_models(name, hosts, hosts_a_model) for name in names]
    return _played(ways, hosts, gbits, steps=_STEPS if gbits > 1 else _SLOW_STEPS)


def _often(hosts: int, gbits: float) -> Job:
    """Weights every 50 updates, in as many steps, so that they cross in one of them."""
    return _played(["alone", _of_models("checkpoints-t50", hosts, 1)], hosts, gbits, steps=50)


def _of_models(name: str, hosts: int, hosts_a_model: int) -> str:
    """The way with so many hosts a model; more than two models form a ring."""
    ring = "-ring" if hosts > 2 * hosts_a_model else ""
    return f"{name}{ring}/{hosts_a_model}"


def _played(ways: list[str], hosts: int, gbits: float, *, steps: int) -> Job:
    """The talk's setting, divided by SCALE."""
    return Job(
        ways=tuple(ways),
        hosts=hosts,
        bits_per_second=gbits * 1e9 / SCALE,
        scale=SCALE,
        compute_ms=COMPUTE_MS,
        parameters=PARAMETERS // SCALE,
        rows=3584 // SCALE,
        vocabulary=32768,
        steps=steps,
        warm_up=_WARM_UP,
    )


def _growth(models: int) -> Job:
    """Many models: what each further one adds, to a step and to the start."""
    ways = ("alone", "predictions-topk", "predictions-topk-ring", "checkpoints-ring")
    sizes = {"compute_ms": 200.0, "parameters": 2_000_000, "rows": 64, "vocabulary": 8192}
    return Job(ways=ways, hosts=models, bits_per_second=1e8, steps=20, warm_up=14, **sizes)


def trainings() -> Iterator[tuple[str, float, Training]]:
    """Short runs on a slower link, for its seconds, and runs to the end, for accuracy."""
    for way in ACCURACY:
        for name, updates in short_runs(way):
            yield name, 1e8, Training(way=way, hosts=4, seed=0, updates=updates)
    for seed in SEEDS:  # seed after seed, so that what has been run is balanced
        for way in ACCURACY:
            yield accuracy_name(way, seed), 1e9, Training(way=way, hosts=4, seed=seed, updates=UPDATES)


def accuracy_name(way: str, seed: int) -> str:
    """Of a run to the end."""
    return f"accuracy_{_in_name(way)}_{seed}"


def short_runs(way: str) -> list[tuple[str, int]]:
    """Names and updates of a way's short runs: two where teachers come only after the first period."""
    name = f"seconds_{_in_name(way)}"
    runs = [(name, SHORT_UPDATES)]
    return [*runs, (f"{name}_twice", 2 * SHORT_UPDATES)] if way.startswith("checkpoints") else runs


def _in_name(way: str) -> str:
    return way.replace("/", "_")
