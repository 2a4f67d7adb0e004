"""How fast weights travel: in pieces, spread over updates, in the place of all at once."""

import threading

_MOST_PIECES = 64
_LONGEST_UPDATE_S = 0.5  # that a piece waits for: a peer may be waiting for it


class Pace:
    """Of one transfer that is due ``lag`` updates later: each piece waits for its update.

    Sending and receiving take the link and a core's time, and a burst of them would be felt in a few updates. A
    quarter of the updates is left for delays. An update that takes much longer than the last one, as when a model is
    validated meanwhile, is not waited for.

    Args:
        lag: alike for the models of a job, so the pieces that are sent are the ones that are expected.
        update_s: how long the last update took, or 0 if that is not known.

    Attributes:
        pieces: of each share.
    """

    def __init__(self, lag: int, update_s: float = 0.0) -> None:
        self._span = max(1, lag * 3 // 4)
        self.pieces = min(_MOST_PIECES, self._span)
        self._update_s = update_s or _LONGEST_UPDATE_S
        self._updates = 0
        self._hurries = False
        self._changed = threading.Condition()

    def advance(self, update_s: float) -> None:
        """For the thread that trains: one more update, which took so long."""
        with self._changed:
            self._updates += 1
            self._update_s = update_s
            self._changed.notify_all()

    def hurry(self) -> None:
        """For the thread that trains: the transfer is waited for, so its pieces wait no more."""
        with self._changed:
            self._hurries = True
            self._changed.notify_all()

    def wait(self, piece: int) -> None:
        """For the thread that moves: until it is this piece's turn, the first one being 0."""
        turn = piece * self._span // self.pieces
        with self._changed:
            longest = 2 * min(_LONGEST_UPDATE_S, self._update_s) * self._span / self.pieces
            self._changed.wait_for(lambda: self._hurries or self._updates >= turn, timeout=longest)
