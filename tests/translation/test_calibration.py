"""Accuracy, NLL and the best temperature: closed forms, and a naive walk sentence by sentence."""

import math

import pytest
import torch
from torch.nn import functional

from translation.calibration import TEMPERATURES, likelihoods, main, measure
from translation.decode import load


def test_a_model_that_is_twice_too_sure_needs_temperature_2():
    """Targets drawn from the probabilities themselves, each as often as it is likely."""
    counts = torch.tensor([8, 4, 2, 1, 1])
    target = torch.repeat_interleave(torch.arange(5), counts)
    logits = (2 * torch.log(counts / 16)).expand(16, 5)
    correct, sums, of_right = likelihoods(logits, target)
    assert correct == 8
    at_1 = torch.log_softmax(logits[0], dim=0)[0].item()
    assert of_right.item() == pytest.approx(-8 * at_1, rel=1e-6)
    best = int(sums.argmin())
    assert TEMPERATURES[best] == 2
    entropy = 8 / 16 * 1 + 4 / 16 * 2 + 2 / 16 * 3 + 2 / 16 * 4
    assert sums[best].item() / 16 / math.log(2) == pytest.approx(entropy, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("is_scattered", [False, True])
def test_against_a_naive_walk(data_bin, stock_run, is_scattered):
    """A barely trained model says the same everywhere, which is right here and there; scattered, it is never right."""
    (model,), task = load([stock_run / "checkpoint3.pt"], data_bin)
    torch.manual_seed(0)
    if is_scattered:
        with torch.no_grad():
            model.decoder.embed_tokens.weight.normal_(std=0.2)
    result = measure(model, task, "valid", max_tokens=200)
    dataset = task.dataset("valid")
    same, positions, nats, at_best, where_right = 0, 0, 0.0, 0.0, 0.0
    for index in range(len(dataset)):
        batch = dataset.collater([dataset[index]])
        with torch.no_grad():
            logits = model(**batch["net_input"])[0][0]
        target = batch["target"][0]
        is_right = logits.argmax(-1) == target
        same += int(is_right.sum())
        where_right += functional.cross_entropy(logits[is_right], target[is_right], reduction="sum").item()
        positions += len(target)
        nats += functional.cross_entropy(logits, target, reduction="sum").item()
        at_best += functional.cross_entropy(logits / result["temperature"], target, reduction="sum").item()
    assert result["positions"] == positions and 0 <= same < positions
    assert result["accuracy"] == pytest.approx(same / positions, abs=2 / positions)
    assert result["nll"] == pytest.approx(nats / positions / math.log(2), rel=1e-5)
    assert result["nll_at_temperature"] == pytest.approx(at_best / positions / math.log(2), rel=1e-5)
    assert result["nll_at_temperature"] < result["nll"]
    assert (same == 0) == is_scattered
    assert result["nll_where_right"] == pytest.approx(where_right / max(same, 1) / math.log(2), rel=1e-3)
    wrong = (nats - where_right) / (positions - same) / math.log(2)
    assert result["nll_where_wrong"] == pytest.approx(wrong, rel=1e-3)


@pytest.mark.slow
def test_the_command_has_a_row_a_checkpoint(data_bin, stock_run, capsys):
    paths = [str(stock_run / f"checkpoint{epoch}.pt") for epoch in (1, 3)]
    main([str(data_bin), "--path", *paths])
    rows = [line for line in capsys.readouterr().out.splitlines() if ".pt" in line]
    assert [row.split()[1] for row in rows] == paths
    with pytest.raises(SystemExit, match=r"translation\.calibration: no checkpoint .*none\.pt"):
        main([str(data_bin), "--path", str(stock_run / "none.pt")])
