"""Predicted steps: against closed forms, and against what the network lab has measured."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.netlab.ways import options_of
from codistill_ext import CodistillConfig
from codistill_ext.cluster import (
    Cluster,
    Work,
    all_reduce_step,
    codistilled_step,
    flat_all_reduce_s,
    hierarchical_all_reduce_s,
)
from codistill_ext.traffic import main

LAB = Path(__file__).parents[2] / "results/network/raw"
MOST_OFF = 0.15
WORK = Work(parameters=229e6, compute_s=0.412)
IDEAL = {"latency_s": 0.0, "efficiency": 1.0}


def test_rings_by_their_closed_forms() -> None:
    size, nodes, gpus = 916e6, 8, 8
    cluster = Cluster(nodes=nodes, gpus=gpus, bandwidth=10e9, inside_bandwidth=1e12, **IDEAL)
    assert flat_all_reduce_s(cluster, size) == pytest.approx(2 * 63 / 64 * size * 8 / 10e9)
    expected = 2 * 7 / 8 * size * 8 / 10e9 + 2 * 7 / 8 * size * 8 / 1e12
    assert hierarchical_all_reduce_s(cluster, size) == pytest.approx(expected)
    one = Cluster(nodes=1, gpus=8, inside_bandwidth=1e12)
    assert flat_all_reduce_s(one, size) == hierarchical_all_reduce_s(one, size) == pytest.approx(1.75 * size * 8 / 1e12)


def test_latency_is_what_a_flat_ring_pays_for_on_many_nodes() -> None:
    cluster = Cluster(nodes=1000, gpus=8, latency_s=1e-5, efficiency=0.5)
    assert flat_all_reduce_s(cluster, 0.0) == pytest.approx(2 * 7999e-5)
    assert hierarchical_all_reduce_s(cluster, 0.0) == pytest.approx(2 * 999e-5)
    link = hierarchical_all_reduce_s(Cluster(nodes=2, gpus=1, bandwidth=8e9, latency_s=0.0, efficiency=0.5), 1e9)
    assert link == pytest.approx(2.0), "half of the line's rate"


def test_a_backward_pass_hides_its_length_of_an_all_reduce() -> None:
    cluster = Cluster(nodes=2, gpus=1, bandwidth=8e9, **IDEAL)
    small, large = Work(parameters=1e6, compute_s=0.3), Work(parameters=1e9, compute_s=0.3)
    assert all_reduce_step(cluster, small, hierarchical=False).seconds == pytest.approx(0.3)
    assert all_reduce_step(cluster, large, hierarchical=False).seconds == pytest.approx(0.1 + 4.0)
    assert all_reduce_step(cluster, large, hierarchical=False, overlap=False).seconds == pytest.approx(0.3 + 4.0)


def test_codistilled_steps_by_hand() -> None:
    cluster = Cluster(nodes=8, gpus=8, bandwidth=10e9, **IDEAL)
    dense = codistilled_step(cluster, WORK, CodistillConfig(models=8, topology="ring"))
    payload = 8 * 3584 * 32768 * 4  # of a node's GPUs
    assert dense.node_bytes == payload
    assert dense.seconds == pytest.approx(0.412 + payload * 8 / 10e9)
    weights = CodistillConfig(models=8, topology="ring", exchange="checkpoints")
    step = codistilled_step(cluster, WORK, weights)
    assert step.seconds == pytest.approx(0.412 * 4 / 3)  # and one teacher's forward pass
    assert step.node_bytes == pytest.approx(916e6 / 2500)
    halves = codistilled_step(cluster, WORK, CodistillConfig(models=2, exchange="checkpoints", distill_every=4))
    inside = all_reduce_step(Cluster(nodes=4, gpus=8, bandwidth=10e9, **IDEAL), WORK, hierarchical=True)
    assert halves.seconds == pytest.approx(inside.seconds + 0.412 / 3 / 4)
    assert halves.node_bytes == pytest.approx(inside.node_bytes + 916e6 / 4 / 2500)
    slow = Cluster(nodes=2, gpus=8, bandwidth=1e8, **IDEAL)
    often = codistilled_step(slow, WORK, CodistillConfig(models=2, exchange="checkpoints", period=50))
    crossing_s = 916e6 * 8 / 1e8
    assert often.seconds == pytest.approx((crossing_s + 49 * 0.412 * 4 / 3) / 50), "one update waits for the weights"


def test_weights_that_take_longer_than_the_lag_are_waited_for() -> None:
    """916 MB at 1 Gbit/s take 7.328 s; an update with a teacher 0.412 * 4/3 s, so they cross in 13.34 updates."""
    cluster = Cluster(nodes=2, gpus=8, bandwidth=1e9, **IDEAL)
    step_s, crossing_s = 0.412 * 4 / 3, 7.328
    for lag, waiting_s in ((5, crossing_s - 5 * step_s), (13, crossing_s - 13 * step_s), (14, 0.0)):
        config = CodistillConfig(models=2, exchange="checkpoints", period=50, lag=lag)
        step = codistilled_step(cluster, WORK, config)
        assert step.seconds == pytest.approx(step_s + waiting_s / 50)
        assert step.crossing_updates == 14


def test_models_must_share_the_nodes() -> None:
    with pytest.raises(ValueError, match="3 models cannot share 8 nodes"):
        codistilled_step(Cluster(nodes=8), WORK, CodistillConfig(models=3))


TALK = ["--params", "229e6", "--compute-ms", "412", "--gpus", "8", "--bandwidth", "10e9"]


def test_the_command_says_what_to_choose_and_why(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--nodes", "8", *TALK])
    output = capsys.readouterr().out
    assert "| all_reduce, nodes first | 1500 | 1.00 | 1,603 |" in output
    assert "| 4096 |" in output
    assert "checkpoints, T = 50: each exchange is waited for, because weights take 2 updates to cross" in output
    assert "with --codistill-lag 2 or more it is not" in output
    last = output.splitlines()[-1]
    assert last.startswith("Choose 8 models of 1 node, predictions, top 64:") and "the same mini-batches" in last


def test_one_node_needs_no_codistillation_for_speed(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--nodes", "1", *TALK])
    assert "Choose all_reduce, flat: 412 ms a step" in capsys.readouterr().out


def test_a_slow_link_needs_a_longer_period(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--nodes", "2", *TALK[:-1], "1e8"])
    output = capsys.readouterr().out
    assert "checkpoints, T = 50: a link this slow needs a period of more than 141 updates." in output


def _measured() -> list[Any]:
    """Each way of each job that the lab measured with a stand-in, with the time of the computation there.

    Of many steps, in one of which weights are waited for, the mean is what is predicted.
    """
    found = []
    for pattern, figure in (("talk_*.json", "median_ms"), ("every50_*.json", "mean_ms")):
        for path in sorted(LAB.glob(pattern)):
            result = json.loads(path.read_text())
            alone_s = result["ways"]["alone"]["median_ms"] / 1e3
            for name, way in result["ways"].items():
                found.append(pytest.param(result["job"], name, way[figure] / 1e3, alone_s, id=f"{path.stem} {name}"))
    return found


def predicted_s(job: dict[str, Any], name: str, compute_s: float) -> float:
    """Of a way of the lab's; its sizes and bandwidth are divided alike."""
    cluster = Cluster(nodes=job["hosts"], gpus=1, bandwidth=job["bits_per_second"], latency_s=1e-4)
    sizes = {"parameters": job["parameters"], "rows": job["rows"], "outputs": job["vocabulary"]}
    work = Work(compute_s=compute_s, **sizes)
    if name in ("alone", "ddp"):
        nodes = 1 if name == "alone" else job["hosts"]
        return all_reduce_step(dataclasses.replace(cluster, nodes=nodes), work, hierarchical=False).seconds
    options, hosts_a_model = options_of(name)
    config = CodistillConfig(models=job["hosts"] // hosts_a_model, **options)
    return codistilled_step(cluster, work, config).seconds


@pytest.mark.parametrize(("job", "name", "measured_s", "compute_s"), _measured())
def test_the_lab_measured_what_is_predicted(
    job: dict[str, Any], name: str, measured_s: float, compute_s: float
) -> None:
    """Encodings take time on cores that hosts share, which is not predicted: with them a step is no shorter."""
    expected_s = predicted_s(job, name, compute_s)
    if "predictions" in name:
        assert measured_s >= 0.95 * expected_s
    else:
        assert measured_s == pytest.approx(expected_s, rel=MOST_OFF)
