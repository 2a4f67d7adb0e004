"""Bytes between models as one rank sees them, predicted from the configuration.

They are the bytes that ``exchange/wire/counter.py`` counts while running.
"""

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
