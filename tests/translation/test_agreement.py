"""Agreement: one for a model with itself, and a naive count, sentence by sentence, for two."""

import json

import pytest
import torch

from translation.agreement import main, measure
from translation.decode import load


@pytest.mark.slow
def test_a_model_agrees_with_itself(data_bin, stock_run, capsys):
    path = stock_run / "checkpoint3.pt"
    main([str(data_bin), "--path", f"{path}:{path}"])
    result = json.loads(capsys.readouterr().out)
    words = (data_bin / "raw" / "test.de").read_text().split()
    assert result["agreement"] == 1 and result["positions"] > len(words)


@pytest.mark.slow
def test_against_a_naive_count(data_bin, stock_run):
    models, task = load([stock_run / f"checkpoint{epoch}.pt" for epoch in (1, 3)], data_bin)
    for seed, model in enumerate(models):  # barely trained models agree on everything: scatter them
        torch.manual_seed(seed)
        with torch.no_grad():
            model.decoder.embed_tokens.weight.normal_()
    result = measure(models, task, "test", max_tokens=200)
    dataset = task.dataset("test")
    same, positions = 0, 0
    for index in range(len(dataset)):
        batch = dataset.collater([dataset[index]])
        first, second = (model(**batch["net_input"])[0].argmax(-1) for model in models)
        same += int((first == second).sum())
        positions += first.numel()
    assert result["positions"] == positions
    assert result["agreement"] == pytest.approx(same / positions, abs=2 / positions)
    assert 0 <= result["agreement"] < 1


@pytest.mark.slow
def test_one_model_is_an_error(data_bin, stock_run):
    with pytest.raises(SystemExit, match="--path names 1, expected a.pt:b.pt"):
        main([str(data_bin), "--path", str(stock_run / "checkpoint3.pt")])
