"""Seconds of a training step on a cluster, predicted from sizes and speeds.

A node has one network interface of so many bits a second in each direction, which its GPUs share, and faster links
between them; R is what of it is payload. Bytes are counted at a node's interface. The formulas are those of rings:

    all-reduce of S bytes, flat, n GPUs          2 (n-1)/n S/R               + 2 (n-1) latency
    the same inside nodes first, N nodes         2 (N-1)/N S/R + 2 (G-1)/G S/R_inside   + 2 (N-1) latency

A backward pass hides what it can of the all-reduce: gradients cross while further ones are computed. Not in it are what
a step computes beside its forward and backward pass (the optimizer, encodings of predictions), and that hosts differ in
speed. The network lab (``benchmarks/netlab``) is what it is tested against.
"""

import math
from collections import Counter
from dataclasses import dataclass, replace

from codistill_ext.config import CodistillConfig
from codistill_ext.exchange.wire.encoding import build_encoding

BACKWARD_SHARE = 2 / 3  # of a step's computation


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Nodes and what joins them.

    Attributes:
        bandwidth, inside_bandwidth: bits a second in each direction, of a node's interface and of a GPU's links inside.
        latency_s: of one message between nodes.
        efficiency: which part of a node's bandwidth is payload; 0.95 is what TCP leaves of Ethernet.
    """

    nodes: int
    gpus: int = 8
    bandwidth: float = 10e9
    inside_bandwidth: float = 1e12
    latency_s: float = 30e-6
    efficiency: float = 0.95

    @property
    def payload_bandwidth(self) -> float:
        """Bits of payload a second between nodes."""
        return self.bandwidth * self.efficiency


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a GPU does in a step.

    Attributes:
        parameters: of the model.
        gradient_bytes, weight_bytes: of one parameter as its gradient and as its value crosses.
        compute_s: of the forward and backward pass.
        rows, outputs: shape of its logits.
    """

    parameters: float
    compute_s: float
    gradient_bytes: int = 4
    weight_bytes: int = 4
    rows: int = 3584
    outputs: int = 32768

    @property
    def backward_s(self) -> float:
        return self.compute_s * BACKWARD_SHARE

    @property
    def forward_s(self) -> float:
        return self.compute_s - self.backward_s


@dataclass(frozen=True)
class Step:
    """A predicted step.

    Attributes:
        seconds: from one update to the next, on average.
        node_bytes: that each node sends to others in a step, on average.
        crossing_updates: for checkpoints, updates that pass while the weights of one exchange cross: the smallest
            ``lag`` with which nobody waits for them.
    """

    seconds: float
    node_bytes: float
    crossing_updates: int | None = None


def flat_all_reduce_s(cluster: Cluster, size: float) -> float:
    """A ring through all GPUs, which enters and leaves each node once."""
    ranks = cluster.nodes * cluster.gpus
    slowest = (
        min(cluster.payload_bandwidth, cluster.inside_bandwidth) if cluster.nodes > 1 else cluster.inside_bandwidth
    )
    return _ring_s(ranks, size, slowest) + 2 * (ranks - 1) * (cluster.latency_s if cluster.nodes > 1 else 0.0)


def hierarchical_all_reduce_s(cluster: Cluster, size: float) -> float:
    """Sums inside the nodes, then between the GPUs with the same place, which share a node's interface."""
    inside = _ring_s(cluster.gpus, size, cluster.inside_bandwidth)
    between = _ring_s(cluster.nodes, size, cluster.payload_bandwidth)
    return inside + between + 2 * (cluster.nodes - 1) * cluster.latency_s


def _ring_s(ranks: int, size: float, bits_per_second: float) -> float:
    return 2 * (ranks - 1) / ranks * size * 8 / bits_per_second


def all_reduce_step(cluster: Cluster, work: Work, *, hierarchical: bool, overlap: bool = True) -> Step:
    """One model on all nodes."""
    size = work.parameters * work.gradient_bytes
    reduce = hierarchical_all_reduce_s if hierarchical else flat_all_reduce_s
    ranks = cluster.nodes if hierarchical else cluster.nodes * cluster.gpus
    crossing = 2 * (ranks - 1) / ranks * size if cluster.nodes > 1 else 0.0
    return Step(_with_all_reduce_s(work, reduce(cluster, size), overlap), crossing)


def _with_all_reduce_s(work: Work, reduce_s: float, overlap: bool) -> float:
    if not overlap:
        return work.compute_s + reduce_s
    return work.forward_s + max(work.backward_s, reduce_s)


def codistilled_step(
    cluster: Cluster, work: Work, config: CodistillConfig, *, overlap: bool = True, teacher_share: float = 1.0
) -> Step:
    """``config.models`` models, each on as many nodes in a row as there are for it.

    Args:
        teacher_share: of the student's forward pass that a teacher's takes.

    Raises:
        ValueError: the models do not divide the nodes.
    """
    if cluster.nodes % config.models:
        raise ValueError(f"{config.models} models cannot share {cluster.nodes} nodes: each needs as many as the others")
    part = replace(cluster, nodes=cluster.nodes // config.models)
    inside = all_reduce_step(part, work, hierarchical=True, overlap=overlap)
    peers = config.peers
    sends = max(Counter(peer for each in peers for peer in each).values())
    receives = max(map(len, peers))
    if config.exchange == "predictions":
        return _with_predictions(cluster, work, config, inside, sends, receives)
    return _with_checkpoints(cluster, work, config, inside, sends, receives, part.nodes, teacher_share)


def _with_predictions(
    cluster: Cluster, work: Work, config: CodistillConfig, inside: Step, sends: int, receives: int
) -> Step:
    """They cross between forward and backward pass, in the updates with the term."""
    payload = cluster.gpus * build_encoding(config).payload_bytes(work.rows, work.outputs)
    exposed = max(sends, receives) * payload * 8 / cluster.payload_bandwidth + cluster.latency_s
    every = config.distill_every
    return Step(inside.seconds + exposed / every, inside.node_bytes + sends * payload / every)


def _with_checkpoints(
    cluster: Cluster,
    work: Work,
    config: CodistillConfig,
    inside: Step,
    sends: int,
    receives: int,
    nodes_a_model: int,
    teacher_share: float,
) -> Step:
    """Weights cross in the background, and slow what else crosses; each peer's teacher runs a forward pass.

    Weights that take longer than the lag are waited for, once in a period.
    """
    step_s = inside.seconds + receives * teacher_share * work.forward_s / config.distill_every
    weights = work.parameters * work.weight_bytes / nodes_a_model
    crossing_s = max(sends, receives) * weights * 8 / cluster.payload_bandwidth
    waiting_s = max(0.0, crossing_s - config.swap_delay * step_s) / config.period
    node_bytes = inside.node_bytes + sends * weights / config.period
    busy_s = max(node_bytes, inside.node_bytes + receives * weights / config.period) * 8 / cluster.payload_bandwidth
    return Step(max(step_s + waiting_s, busy_s), node_bytes, math.ceil(crossing_s / step_s))
