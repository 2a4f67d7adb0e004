"""Bytes between models as one rank sees them, counted while running."""

from collections import Counter

KINDS = ("predictions", "weights", "control")


class TrafficCounter:
    """Counts what this rank sends to and receives from other models, by kind."""

    def __init__(self) -> None:
        self.sent: Counter[str] = Counter()
        self.received: Counter[str] = Counter()

    def add(self, other: "TrafficCounter") -> None:
        """Count what another one has counted, too."""
        self.sent.update(other.sent)
        self.received.update(other.received)

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
