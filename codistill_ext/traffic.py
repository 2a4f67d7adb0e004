"""Bytes between models, as one rank sees them: predicted from the configuration, and counted while running."""

from collections import Counter

from codistill_ext.config import CodistillConfig
from codistill_ext.topology import students_of

KINDS = ("predictions", "weights", "control")


class TrafficCounter:
    """Counts what this rank sends to and receives from other models, by kind."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()

    def to_dict(self) -> dict[str, int]:
        """Bytes since the start, as flat keys such as ``sent/predictions``."""
        return {f"sent/{kind}": self.sent[kind] for kind in KINDS} | {
            f"received/{kind}": self.received[kind] for kind in KINDS
        }

    def state_dict(self) -> dict[str, int]:
        return self.to_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        for kind in KINDS:
            self.sent[kind] = state[f"sent/{kind}"]
            self.received[kind] = state[f"received/{kind}"]


def predicted_predictions(config: CodistillConfig, model_index: int, *, rows: int, outputs: int) -> dict[str, int]:
    """Bytes that a rank sends and receives for one mini-batch, when the term is on and nobody has left.

    Args:
        rows: positions that count, of this rank's mini-batch.
    """
    from codistill_ext.exchange.encoding import build_encoding  # exchanges count with this module

    size = build_encoding(config).payload_bytes(rows, outputs)
    return {
        "sent/predictions": size * len(students_of(config.peers, model_index)),
        "received/predictions": size * len(config.peers[model_index]),
    }


def predicted_weights(config: CodistillConfig, model_index: int, *, model_bytes: int, ranks: int) -> dict[str, int]:
    """Bytes that a rank sends and receives in one exchange of checkpoints.

    Args:
        model_bytes: of one model as it crosses (``WeightPacker.total_bytes``), equal for all models.
        ranks: of each model; each moves its share.
    """
    share = -(-model_bytes // ranks)
    return {
        "sent/weights": share * len(students_of(config.peers, model_index)),
        "received/weights": share * len(config.peers[model_index]),
    }
