"""The notation of scheduled options: values by update in closed form, and messages that say what to change."""

from typing import Any

import pytest
import torch

from codistill_ext import CodistillConfig, CodistillParallel, ModelGroups
from codistill_ext.schedules import Horizon, Place, Schedule, warmup_cosine_lr, warmup_steps_lr
from tests.core.training import batches, build
from tests.ranks import RankError, run_ranks

RUN = Horizon(updates=90, updates_an_epoch=2.0, decays=(36, 76, 88))


def at(text: str, *updates: int, horizon: Horizon = RUN) -> list[float]:
    curve = Schedule.parse(text).resolve(horizon, "--option")
    return [curve(update) for update in updates]


@pytest.mark.parametrize(
    ("text", "updates", "values"),
    [
        ("0.1", [0, 89], [0.1, 0.1]),
        ("1e-4,1e-5,0", [0, 35, 36, 75, 76, 88, 89], [1e-4, 1e-4, 1e-5, 1e-5, 0, 0, 0]),
        ("1e-4,1e-5@18ep,0@38ep", [35, 36, 75, 76], [1e-4, 1e-5, 1e-5, 0]),
        ("1e-4,1e-5@18of45,0@38of45", [35, 36, 75, 76], [1e-4, 1e-5, 1e-5, 0]),
        ("0.1,0@50%", [44, 45], [0.1, 0]),
        ("1,0@20up", [19, 20], [1, 0]),
        ("0.1~0@50%", [0, 9, 45, 80], [0.1, 0.08, 0, 0]),
        ("0.1,0.1@10ep~0@100%", [0, 20, 55, 89], [0.1, 0.1, 0.05, 0.1 / 70]),
        ("0~1@10up~0.5@20up,2@30up", [5, 10, 15, 20, 29, 30], [0.5, 1, 0.75, 0.5, 0.5, 2]),
        (" 1 , 0 @ 20 up ", [19, 20], [1, 0]),
        ("1,0@2.4ep", [4, 5], [1, 0]),  # at 4.8 updates
    ],
)
def test_values_by_update(text: str, updates: list[int], values: list[float]) -> None:
    assert at(text, *updates) == pytest.approx(values, rel=1e-12, abs=1e-18)
    again = str(Schedule.parse(text))
    assert Schedule.parse(again) == Schedule.parse(text) and " " not in again


def test_a_place_in_epochs_is_the_update_that_begins_the_epoch() -> None:
    """Whatever the float product is: 0.1 * 30 is 3.0000000000000004."""
    horizon = Horizon(updates=900, updates_an_epoch=30)
    for tenth in range(1, 300):
        assert horizon.position(Place.parse(f"{tenth / 10}ep")) == 3 * tenth


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fast", "expected finite numbers of 0 or more, as in 0.1 or 1e-4,1e-5,0 or .*; got 'fast'"),
        ("-1", "got '-1'"),
        ("nan", "got 'nan'"),
        ("0.1,", "got ''"),
        ("0.1@5ep", "the first value is in force from the beginning, without a place"),
        ("0.1,0@5", "a place is written 18ep, 2000up, 50% or 18of45, not '5'"),
        ("0.1,0@5weeks", "not '5weeks'"),
        ("0.1,0@50of45", "50of45 is behind its end"),
        ("3,2@5ep,1", "give all values behind the first a place .*, or none of them"),
        ("3~1", "a value behind '~' needs the place where the line arrives"),
    ],
)
def test_what_is_no_schedule_says_what_was_expected(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schedule.parse(text)


@pytest.mark.parametrize(
    ("text", "horizon", "message"),
    [
        ("3,2,1,0,0", RUN, "5 values need 4 decays of the learning rate to change at, but it has 3 in this run, at up"),
        ("3,2", Horizon(updates=90, decays=()), "2 values without places .* but it has no decays in this run: give"),
        ("3,2", Horizon(updates=90), "where it does is not known here"),
        ("3,2@20ep,1@40up", RUN, "the places must come one after the other, but are updates 0, 40, 40"),
        ("3,2@45ep", RUN, "45ep is never reached: it is update 90 of a run of 90"),
        ("3~2@46ep", RUN, "46ep is never reached: it is update 92 of a run of 90"),
        ("3,2@5ep", Horizon(updates=90), "5ep needs the updates of an epoch, which are not known here: use 'up'"),
        ("3,2@50%", Horizon(), "50% needs the length of the run, which is not known here: use 'up'"),
        ("3,2@1of2", Horizon(), "1of2 needs the length of the run"),
    ],
)
def test_a_schedule_that_does_not_fit_the_run_names_the_option(text: str, horizon: Horizon, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Schedule.parse(text).resolve(horizon, "--weight-decay")
    assert str(error.value).startswith(f"--weight-decay {text}: ")


def test_learning_rates_in_closed_form() -> None:
    steps = [warmup_steps_lr(u, base=0.2, milestones=[30, 60], warmup=5, warmup_start=0.1) for u in (0, 2.5, 5, 30, 60)]
    assert steps == pytest.approx([0.1, 0.15, 0.2, 0.02, 0.002])
    cosine = [warmup_cosine_lr(u, base=0.2, total=25, warmup=5, minimum=0.1) for u in (0, 5, 15, 25)]
    assert cosine == pytest.approx([0, 0.2, 0.15, 0.1])


def test_alpha_is_a_number_or_a_schedule() -> None:
    assert CodistillConfig(models=2, alpha="0.5") == CodistillConfig(models=2, alpha=0.5)
    scheduled = CodistillConfig(models=2, alpha="0~1@20up")
    assert scheduled.alpha == "0~1@20up" and scheduled.active
    assert not CodistillConfig(models=2, alpha="0,0@5up").active


def _alphas(rank: int, alpha: str, horizons: list[Horizon] | None, stop: int) -> list[float]:
    """alpha of the terms of 12 updates, with a stop and a resume before ``stop``."""
    config = CodistillConfig(models=2, alpha=alpha, burn_in=2, distill_every=2)
    seen: list[float] = []
    state: dict[str, Any] | None = None
    for end in (stop, 12):
        groups = ModelGroups.create(config)
        horizon = None if horizons is None else horizons[rank]
        model = CodistillParallel(build(rank), groups, config, horizon=horizon)
        if state is not None:
            model.load_codistill_state_dict(state)
        for update in range(model.updates, end):
            x, _ = batches(update, 0, 0, coordinated=True)
            term = model.codistill(x, model(x))
            seen.append(term.alpha)
            assert term.peers == (term.alpha > 0) and torch.equal(term.loss, term.alpha * term.divergence)
            model.after_update()
        state = model.codistill_state_dict()
    return seen


def test_alpha_follows_its_schedule_on_all_models_and_through_a_resume() -> None:
    expected = [0.0, 0, 0.2, 0, 0.4, 0, 0.6, 0, 0.8, 0, 1, 0]
    for seen in run_ranks(2, _alphas, "0~1@10up", None, 5):
        assert seen == pytest.approx(expected)


def test_rank_0_says_for_all_where_alpha_changes() -> None:
    horizons = [Horizon(updates=12, decays=[4]), Horizon(updates=12, decays=[9])]
    assert run_ranks(2, _alphas, "1,0.5", horizons, 7) == [[0, 0, 1, 0, 0.5, 0, 0.5, 0, 0.5, 0, 0.5, 0]] * 2


def test_alpha_by_shares_of_a_run_of_unknown_length_is_refused() -> None:
    with pytest.raises(RankError, match=r"--codistill-alpha 1,0@50%: the place 50% needs the length of the run"):
        run_ranks(2, _alphas, "1,0@50%", None, 5)
