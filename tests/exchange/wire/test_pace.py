"""Pieces of a transfer take turns with updates."""

import threading

import pytest

from codistill_ext.exchange.wire import pace as pace_module
from codistill_ext.exchange.wire.pace import Pace
from tests.waiting import until


def test_a_quarter_of_the_time_is_left() -> None:
    assert [Pace(lag).pieces for lag in (0, 1, 2, 4, 10, 50)] == [1, 1, 1, 3, 7, 37]


def moving(pace: Pace) -> tuple[list[int], threading.Thread]:
    """Pieces that have begun, and the thread."""
    begun: list[int] = []

    def move() -> None:
        for piece in range(pace.pieces):
            pace.wait(piece)
            begun.append(piece)

    thread = threading.Thread(target=move)
    thread.start()
    return begun, thread


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace_module, "_LONGEST_UPDATE_S", 60.0)


def test_a_piece_waits_for_its_update_until_it_is_waited_for(patient: None) -> None:
    pace = Pace(8)
    begun, thread = moving(pace)
    until(lambda: begun == [0])
    pace.advance(30.0)
    until(lambda: begun == [0, 1])
    pace.advance(30.0)
    pace.advance(30.0)
    until(lambda: begun == [0, 1, 2, 3])
    assert thread.is_alive()
    pace.hurry()
    thread.join(60)
    assert begun == [0, 1, 2, 3, 4, 5]


def test_many_updates_have_a_piece_every_few(patient: None) -> None:
    pace = Pace(256)  # 192 updates, 64 pieces
    begun, thread = moving(pace)
    for _ in range(30):
        pace.advance(30.0)
    until(lambda: len(begun) == 11)
    pace.hurry()
    thread.join(60)
    assert len(begun) == 64


def test_an_update_that_takes_much_longer_than_the_last_is_not_waited_for() -> None:
    begun, thread = moving(Pace(8, update_s=0.001))
    thread.join(60)
    assert begun == [0, 1, 2, 3, 4, 5]
