"""Bytes between models as one rank sees them, predicted from the configuration; as a command, times of steps.

They are the bytes that ``exchange/wire/counter.py`` counts while running.

    python -m codistill_ext.traffic --nodes 8 --gpus 8 --params 229e6 --bandwidth 10e9 --compute-ms 412

prints what a step would take with all-reduce and with each way of codistilling (``cluster.py``), and which to choose.
"""

import argparse
from collections.abc import Sequence

from codistill_ext.advice import growth, lags, sentence, table, ways
from codistill_ext.cluster import Cluster, Work
from codistill_ext.config import CodistillConfig
from codistill_ext.exchange.wire.encoding import build_encoding
from codistill_ext.exchange.wire.weights import share_bytes
from codistill_ext.topology import students_of


def predicted_predictions(config: CodistillConfig, model_index: int, *, rows: int, outputs: int) -> dict[str, int]:
    """Bytes that a rank sends and receives for one mini-batch, when the term is on and nobody has left.

    Args:
        rows: positions that count, of this rank's mini-batch.
    """
    size = build_encoding(config).payload_bytes(rows, outputs)
    return {
        "sent/predictions": size * len(students_of(config.peers, model_index)),
        "received/predictions": size * len(config.peers[model_index]),
    }


def predicted_weights(config: CodistillConfig, model_index: int, *, model_bytes: int, ranks: int) -> dict[str, int]:
    """Bytes that a rank sends and receives in one exchange of checkpoints.

    Args:
        model_bytes: of one model as it crosses (``WeightPacker.total_bytes``), equal for all models; of one that is
            sharded, what this rank holds of it.
        ranks: of each model that hold these bytes; each moves its share.
    """
    share = share_bytes(model_bytes, ranks)
    return {
        "sent/weights": share * len(students_of(config.peers, model_index)),
        "received/weights": share * len(config.peers[model_index]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print predicted steps of a cluster."""
    args = _parser().parse_args(arguments)
    cluster = Cluster(
        nodes=args.nodes,
        gpus=args.gpus,
        bandwidth=args.bandwidth,
        inside_bandwidth=args.inside_bandwidth,
        latency_s=args.latency_us / 1e6,
    )
    work = Work(
        parameters=args.params,
        compute_s=args.compute_ms / 1e3,
        gradient_bytes=args.gradient_bytes,
        rows=args.rows,
        outputs=args.outputs,
    )
    how = {"topology": args.topology, "overlap": not args.no_overlap}
    found = list(ways(cluster, work, **how))
    nodes = f"{cluster.nodes} node{'s' if cluster.nodes > 1 else ''} of {cluster.gpus} GPUs"
    print(f"{nodes}, {cluster.bandwidth / 1e9:g} Gbit/s a node, {work.parameters / 1e6:g} M parameters\n")
    print("\n".join([*table(found), ""]))
    for line in lags(found):
        print(f"{line}\n")
    print("Milliseconds a step by the number of nodes:\n")
    print("\n".join([*growth(cluster, work, **how), "", sentence(cluster, work, found)]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m codistill_ext.traffic", description=main.__doc__)
    parser.add_argument("--nodes", type=int, required=True)
    parser.add_argument("--gpus", type=int, default=8, help="of a node")
    parser.add_argument("--params", type=float, required=True, help="parameters of the model")
    parser.add_argument("--bandwidth", type=float, required=True, help="bits a second of a node's interface, each way")
    parser.add_argument("--compute-ms", type=float, required=True, help="forward and backward pass of one mini-batch")
    parser.add_argument("--inside-bandwidth", type=float, default=1e12, help="bits a second between a node's GPUs")
    parser.add_argument("--latency-us", type=float, default=30.0, help="of a message between nodes")
    parser.add_argument("--gradient-bytes", type=int, default=4, help="of a parameter's gradient: 2 for 16 bits")
    parser.add_argument("--rows", type=int, default=3584, help="samples or tokens of a GPU's mini-batch")
    parser.add_argument("--outputs", type=int, default=32768, help="classes, or vocabulary")
    parser.add_argument("--topology", default="ring", help="of more than two models: ring or all")
    parser.add_argument("--no-overlap", action="store_true", help="gradients cross after the backward pass, not in it")
    return parser


if __name__ == "__main__":
    main()
