"""Which way to train a cluster is fastest by ``cluster.py``, as tables and a sentence."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from codistill_ext.cluster import Cluster, Step, Work, all_reduce_step, codistilled_step
from codistill_ext.config import CodistillConfig, flag

_GROWTH = (1, 2, 4, 8, 16, 64, 256, 1024, 4096)
_WORTH = 0.95  # of the step without it, for codistillation to be advised
_EXCHANGES: dict[str, dict[str, Any]] = {
    "predictions": {},
    "predictions, 16 bits": {"encoding": "half"},
    "predictions, top 64": {"encoding": "topk"},
    "checkpoints, T = 2500": {"exchange": "checkpoints"},
    "checkpoints, T = 50": {"exchange": "checkpoints", "period": 50},
}


@dataclass(frozen=True)
class Way:
    """One way to train.

    Attributes:
        config: of codistillation, or None for one model.
        hierarchical: whether gradients are summed inside nodes first.
    """

    name: str
    step: Step
    config: CodistillConfig | None = None


def ways(cluster: Cluster, work: Work, *, topology: str = "ring", overlap: bool = True) -> Iterator[Way]:
    """All-reduce, and each exchange with two models and with one on each node."""
    for name, hierarchical in ("all_reduce, flat", False), ("all_reduce, nodes first", True):
        yield Way(name, all_reduce_step(cluster, work, hierarchical=hierarchical, overlap=overlap))
    counts = [count for count in dict.fromkeys((2, cluster.nodes)) if 1 < count and cluster.nodes % count == 0]
    for models in counts:
        each = cluster.nodes // models
        for name, options in _EXCHANGES.items():
            config = CodistillConfig(models=models, topology=topology if models > 2 else "all", **options)
            places = f"{models} models of {each} node{'s' if each > 1 else ''}"
            yield Way(f"{places}, {name}", codistilled_step(cluster, work, config, overlap=overlap), config)


def table(found: list[Way]) -> list[str]:
    """Rows of Markdown.

    Milliseconds, speed against the faster all-reduce, megabytes that a node sends, updates while weights cross.
    """
    best = _all_reduce(found).step.seconds
    names = ("way", "ms a step", "times as fast as all_reduce", "MB a node sends", "updates for weights to cross")
    rows = [f"| {' | '.join(names)} |", "|---" * len(names) + "|"]
    for way in found:
        step, crossing = way.step, way.step.crossing_updates
        cells = (f"{1e3 * step.seconds:.0f}", f"{best / step.seconds:.2f}", _number(step.node_bytes))
        rows.append(f"| {' | '.join((way.name, *cells, str(crossing or '')))} |")
    return rows


def lags(found: list[Way]) -> Iterator[str]:
    """What to change where weights take longer to cross than their lag."""
    for way in found:
        crossing = way.step.crossing_updates
        if way.config is None or crossing is None or crossing <= way.config.swap_delay:
            continue
        if crossing >= way.config.period:
            yield f"{way.name}: a link this slow needs a period of more than {crossing} updates."
        else:
            yield (
                f"{way.name}: each exchange is waited for, because weights take {crossing} updates to cross and the "
                f"lag is {way.config.swap_delay}; with {flag('lag')} {crossing} or more it is not."
            )


def growth(cluster: Cluster, work: Work, *, topology: str = "ring", overlap: bool = True) -> list[str]:
    """Rows of Markdown: milliseconds by the number of nodes."""
    names = (
        "all_reduce, flat",
        "all_reduce, nodes first",
        "2 models, top 64",
        "one a node, top 64",
        "2 models, T = 2500",
        "one a node, T = 2500",
    )
    rows = [f"| nodes | {' | '.join(names)} |", "|---" * (1 + len(names)) + "|"]
    for nodes in sorted({*_GROWTH, cluster.nodes}):
        found = list(ways(replace(cluster, nodes=nodes), work, topology=topology, overlap=overlap))
        cells = [found[0], found[1]]
        for exchange in "predictions, top 64", "checkpoints, T = 2500":
            fitting = [way for way in found if way.name.endswith(exchange)]
            cells += [fitting[0], fitting[-1]] if fitting else [found[1], found[1]]
        rows.append(f"| {nodes} | " + " | ".join(f"{1e3 * way.step.seconds:.0f}" for way in cells) + " |")
    return rows


def sentence(cluster: Cluster, work: Work, found: list[Way]) -> str:
    """Which way to choose, and why."""
    baseline = _all_reduce(found)
    best = min(found, key=lambda way: way.step.seconds)
    if best.config is None or best.step.seconds > _WORTH * baseline.step.seconds:
        return (
            f"Choose {baseline.name}: {_ms(baseline)} a step, of which {1e3 * work.compute_s:.0f} ms are computation; "
            f"codistillation would save less than {1 - _WORTH:.0%}."
        )
    # Among those that are about as fast, the one with the fewest models: each learns from more of the data.
    near = [way for way in found if way.config and way.step.seconds <= best.step.seconds / _WORTH]
    chosen = min(near, key=lambda way: (way.config.models if way.config else 0, way.step.seconds))
    assert chosen.config is not None
    data = "the same mini-batches for all models" if chosen.config.coordinated else "any data"
    return (
        f"Choose {chosen.name}: {_ms(chosen)} a step in the place of {_ms(baseline)}, because a node sends "
        f"{_number(chosen.step.node_bytes)} MB and not {_number(baseline.step.node_bytes)} MB a step over "
        f"{cluster.bandwidth / 1e9:g} Gbit/s; it needs {data}."
    )


def _all_reduce(found: list[Way]) -> Way:
    return min((way for way in found if way.config is None), key=lambda way: way.step.seconds)


def _ms(way: Way) -> str:
    return f"{1e3 * way.step.seconds:.0f} ms"


def _number(node_bytes: float) -> str:
    return f"{node_bytes / 1e6:.3g}" if node_bytes < 1e9 else f"{node_bytes / 1e6:,.0f}"
