"""Pieces of a transfer take turns with updates."""

import threading

import pytest

from codistill_ext.exchange.wire import pace as pace_module
from codistill_ext.exchange.wire.pace import MOST_PIECES, Pace, pieces_of
from tests.waiting import until


def test_a_quarter_of_the_time_is_left() -> None:
    assert [pieces_of(updates) for updates in (0, 1, 2, 4, 10, 50)] == [1, 1, 1, 3, 7, 37]
    assert pieces_of(10_000) == MOST_PIECES


def moving(pace: Pace, pieces: int) -> tuple[list[int], threading.Thread]:
    """Pieces that have begun, and the thread."""
    begun: list[int] = []

    def move() -> None:
        for piece in range(pieces):
            pace.wait(piece)
            begun.append(piece)

    thread = threading.Thread(target=move)
    thread.start()
    return begun, thread


def test_a_piece_waits_for_its_update_until_it_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_module, "_LONGEST_WAIT_S", 60.0)
    pace = Pace()
    begun, thread = moving(pace, 6)
    until(lambda: begun == [0])
    pace.advance()
    until(lambda: begun == [0, 1])
    pace.advance()
    pace.advance()
    until(lambda: begun == [0, 1, 2, 3])
    assert thread.is_alive()
    pace.hurry()
    thread.join(60)
    assert begun == [0, 1, 2, 3, 4, 5]


def test_without_updates_it_goes_on_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_module, "_LONGEST_WAIT_S", 0.01)
    begun, thread = moving(Pace(), 4)
    thread.join(60)
    assert begun == [0, 1, 2, 3]
