"""How often something is tried, what is said meanwhile, and how long the pauses are."""

from collections.abc import Callable

import pytest

from vision.retrying import FIRST_PAUSE_S, LONGEST_PAUSE_S, TRIES, Failure, FetchError, first_delivered, pause_s


def _failing(*failures: Failure) -> Callable[[], str]:
    """Fails so, one failure a call, and then delivers."""
    left = list(failures)

    def source() -> str:
        if left:
            failure = left.pop(0)
            raise FetchError(failure.name.lower(), failure)
        return "the file"

    return source


def test_lapses_are_tried_again_with_growing_pauses_and_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    pauses: list[float] = []
    sources = {"near": _failing(Failure.REFUSED), "far": _failing(*[Failure.LAPSED] * 3)}
    assert first_delivered("X", sources, pauses.append) == "the file"
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"X: try 1 of {TRIES} failed, the next in {pauses[0]:.0f} s: near: refused; far: lapsed",
        f"X: try 2 of {TRIES} failed, the next in {pauses[1]:.0f} s: far: lapsed",
        f"X: try 3 of {TRIES} failed, the next in {pauses[2]:.0f} s: far: lapsed",
    ]
    assert pauses == sorted(pauses)


@pytest.mark.parametrize(
    ("failures", "tries"),
    [
        ([Failure.REFUSED], 1),
        ([Failure.DOUBTFUL] * 2, 2),
        ([Failure.LAPSED, Failure.DOUBTFUL, Failure.LAPSED, Failure.DOUBTFUL], 4),
        ([Failure.LAPSED] * TRIES, TRIES),
    ],
)
def test_when_it_is_given_up(failures: list[Failure], tries: int) -> None:
    pauses: list[float] = []
    words = "1 try" if tries == 1 else f"{tries} tries"
    with pytest.raises(FetchError, match=f"X could not be fetched in {words}: near: {failures[-1].name.lower()}"):
        first_delivered("X", {"near": _failing(*failures)}, pauses.append)
    assert len(pauses) == tries - 1


def test_pauses_grow_are_uneven_and_last_some_minutes_together() -> None:
    for attempt in range(1, TRIES):
        plain = min(FIRST_PAUSE_S * 2 ** (attempt - 1), LONGEST_PAUSE_S)
        drawn = [pause_s(attempt) for _ in range(50)]
        assert 0.75 * plain <= min(drawn) < max(drawn) <= 1.25 * plain
    together = sum(min(FIRST_PAUSE_S * 2**n, LONGEST_PAUSE_S) for n in range(TRIES - 1))
    assert 180 <= together <= 300
