"""Options: one declaration, clear refusals, and topologies."""

import argparse
import dataclasses
import math

import pytest

from codistill_ext import CodistillConfig
from codistill_ext.topology import peers_of_each, students_of


def test_every_option_is_a_flag_and_survives_the_command_line() -> None:
    parser = argparse.ArgumentParser()
    CodistillConfig.add_arguments(parser)
    args = parser.parse_args(["--codistill-models", "3", "--codistill-alpha", "0.5", "--codistill-topology", "ring"])
    assert CodistillConfig.from_args(args) == CodistillConfig(models=3, alpha=0.5, topology="ring")
    assert CodistillConfig.from_args(parser.parse_args([])) == CodistillConfig()
    for option in dataclasses.fields(CodistillConfig):
        assert f"--codistill-{option.name.replace('_', '-')}" in parser.format_help()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"models": 0}, "--codistill-models must be at least 1, not 0"),
        ({"models": 2, "alpha": -1.0}, "--codistill-alpha: expected finite numbers of 0 or more, as in"),
        ({"models": 2, "alpha": math.nan}, "or 0.1~0@50%; got 'nan'"),
        ({"models": 2, "alpha": math.inf}, "--codistill-alpha: expected finite numbers of 0 or more, as in"),
        ({"models": 2, "temperature": math.inf}, "--codistill-temperature must be a finite number, not inf"),
        ({"models": 2, "timeout": math.inf}, "--codistill-timeout must be a finite number, not inf"),
        ({"models": 2, "divergence": "kl"}, "--codistill-divergence is one of kl_teacher_student"),
        ({"models": 2, "temperature": 0.0}, "--codistill-temperature must be more than 0"),
        ({"models": 2, "period": 10}, "--codistill-period 10 has no effect with --codistill-exchange predictions"),
        ({"models": 2, "exchange": "checkpoints", "period": 5, "lag": 5}, "--codistill-lag must be less than"),
        ({"models": 2, "data": "independent"}, "use --codistill-data coordinated"),
        ({"models": 2, "data": "disjoint"}, "or --codistill-exchange checkpoints for disjoint data"),
        ({"models": 2, "exchange": "checkpoints", "check_every": 2}, "has no effect without coordinated data"),
        ({"models": 2, "divergence": "mse", "temperature": 2.0}, "has no effect with --codistill-divergence mse"),
        (
            {"models": 2, "exchange": "files", "dir": "d", "model_index": 0, "max_staleness": 2499},
            "--codistill-max-staleness must be at least --codistill-period",
        ),
        ({"models": 2, "target": "mean"}, "--codistill-target mean has no effect"),
        ({"models": 2, "topology": "star"}, "--codistill-topology is all, ring, or edges"),
        ({"models": 2, "topology": "0<-2"}, "two different models of 0..1"),
        ({"models": 2, "topology": "1<-1"}, "two different models of 0..1"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict, message: str) -> None:
    with pytest.raises(ValueError) as error:
        CodistillConfig(**options)
    assert message in str(error.value)


def test_one_model_is_the_control_and_keeps_the_other_options() -> None:
    config = CodistillConfig(models=1, period=10, data="independent", target="mean")
    assert not config.active


def test_topologies() -> None:
    assert peers_of_each("all", 3) == ((1, 2), (0, 2), (0, 1))
    assert peers_of_each("all", 1) == ((),)
    assert peers_of_each("ring", 4) == ((1,), (2,), (3,), (0,))
    assert peers_of_each("ring", 1) == ((),)
    edges = peers_of_each("0<-1, 1<-0,2<-0", 3)
    assert edges == ((1,), (0,), (0,))
    assert students_of(edges, 0) == (1, 2) and students_of(edges, 2) == ()


def test_data_order_follows_the_exchange_unless_given() -> None:
    assert CodistillConfig(models=2).coordinated
    assert not CodistillConfig(models=2, exchange="checkpoints").coordinated
    assert CodistillConfig(models=2, exchange="checkpoints", data="coordinated").coordinated
    assert CodistillConfig(models=2, exchange="checkpoints").swap_delay == 50
