"""A small lab with real torchrun agents, and what needs none: jobs and tables."""

import pytest
import torch

from benchmarks.netlab import hosts
from benchmarks.netlab.hosts import LabError
from benchmarks.netlab.job import Job
from benchmarks.netlab.run import run_job, table
from benchmarks.netlab.ways import Spec, build_way
from benchmarks.netlab.workloads import StandIn
from codistill_ext import CodistillConfig
from codistill_ext.traffic import predicted_predictions

STAND_IN = Job(
    ways=("all-reduce", "ddp", "predictions-topk"),
    hosts=2,
    bits_per_second=100e6,
    compute_ms=3.0,
    parameters=250_000,
    rows=400,
    vocabulary=500,
    steps=3,
    warm_up=1,
)


def test_a_job_arrives_as_it_was_sent() -> None:
    assert Job.from_json(STAND_IN.to_json()) == STAND_IN


def test_an_unknown_way_is_named() -> None:
    with pytest.raises(ValueError, match="no way 'dpp' to train: choose from alone, ddp"):
        build_way("dpp", Spec(STAND_IN.build), 1)


def test_a_stand_in_has_gradients_and_logits_of_the_true_size() -> None:
    model = StandIn(1000, 0.0, rows=3, outputs=7)
    logits = model(torch.zeros(3))
    assert logits.shape == (3, 7)
    logits.sum().backward()
    assert sum(parameter.grad.numel() for parameter in model.parameters() if parameter.grad is not None) == 1000


def test_a_table_has_multiples_of_alone() -> None:
    way = {"median_ms": 50.0, "mean_ms": 55.0, "worst_ms": 60.0, "waited_ms": 5.0, "sent_mb": 0.0, "ready_s": 0.1}
    text = table({"ways": {"alone": way, "ddp": way | {"median_ms": 100.0}, "diloco": {"error": "ImportError: no"}}})
    assert "| ddp | 2.00 | 1.10 | 1.20 | 0.10 | 0.000 | 0.1 |" in text.splitlines()
    assert text.splitlines()[-1] == "- diloco: ImportError: no"


@pytest.mark.real_python
def test_two_hosts_train_and_their_links_count_the_bytes() -> None:
    if problem := hosts.missing():
        pytest.skip(problem)
    ways = run_job(STAND_IN, deadline_s=200)["ways"]
    link = ways["all-reduce"]
    assert link["median_s"] >= 0.9 * link["formula_s"], "no faster than the link"
    gradients_mb = STAND_IN.parameters * 4 / 1e6  # 2 (n - 1) / n = 1 times
    assert ways["ddp"]["sent_mb"] == pytest.approx(gradients_mb, rel=0.1)
    config = CodistillConfig(models=2, encoding="topk")
    bytes_ = predicted_predictions(config, 0, rows=STAND_IN.rows, outputs=STAND_IN.vocabulary)["sent/predictions"]
    assert ways["predictions-topk"]["sent_mb"] == pytest.approx(bytes_ / 1e6, rel=0.1)


@pytest.mark.real_python
def test_a_host_that_fails_shows_why() -> None:
    if problem := hosts.missing():
        pytest.skip(problem)
    with pytest.raises(LabError, match=r"(?s)host \d ended with status 1:.*there is no way 'dpp' to train"):
        run_job(Job(ways=("dpp",), hosts=2, compute_ms=1.0, parameters=100), deadline_s=200)
