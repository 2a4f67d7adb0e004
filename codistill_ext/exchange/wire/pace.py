"""How fast weights travel: in pieces, one an update, in the place of all at once."""

import threading

MOST_PIECES = 64
_LONGEST_WAIT_S = 0.5  # for an update, which takes long where a model is validated meanwhile; peers may be waiting


def pieces_of(updates: int) -> int:
    """In how many pieces a share travels that is due so many updates later; a quarter of them is left for delays.

    Alike for the models of a job, so the pieces that are sent are the ones that are expected.
    """
    return max(1, min(MOST_PIECES, updates * 3 // 4))


class Pace:
    """Of one transfer: its n-th piece waits for the n-th update behind the first piece.

    Sending and receiving take a core's time and the link, and a burst of them would be felt in a few updates.
    """

    def __init__(self) -> None:
        self._updates = 0
        self._hurries = False
        self._changed = threading.Condition()

    def advance(self) -> None:
        """For the thread that trains: one more update."""
        with self._changed:
            self._updates += 1
            self._changed.notify_all()

    def hurry(self) -> None:
        """For the thread that trains: the transfer is waited for, so its pieces wait no more."""
        with self._changed:
            self._hurries = True
            self._changed.notify_all()

    def wait(self, piece: int) -> None:
        """For the thread that moves: until it is this piece's turn, the first one being 0."""
        with self._changed:
            self._changed.wait_for(lambda: self._hurries or self._updates >= piece, timeout=_LONGEST_WAIT_S)
