"""Averaging against a naive computation; refusals; and that nothing is unpickled."""

import argparse

import pytest
import torch

from translation.average import average, last_checkpoints, main
from translation.safe_load import load_checkpoint


def write(path, **tensors):
    state = {"args": argparse.Namespace(arch="x"), "cfg": None, "model": tensors}
    torch.save(state | {"last_optimizer_state": {"step": 1}}, path)
    return path


def test_mean_of_a_stock_run(stock_run, tmp_path):
    main(["--dir", str(stock_run), "--last", "3", "--output", str(tmp_path / "mean.pt")])
    mean = load_checkpoint(tmp_path / "mean.pt")
    models = [load_checkpoint(stock_run / f"checkpoint{epoch}.pt")["model"] for epoch in (1, 2, 3)]
    assert mean["model"].keys() == models[0].keys()
    for name, tensor in mean["model"].items():
        naive = sum(model[name] for model in models) / 3
        torch.testing.assert_close(tensor, naive)
        assert tensor.dtype == models[0][name].dtype
    assert not torch.equal(models[0]["decoder.embed_tokens.weight"], models[2]["decoder.embed_tokens.weight"])
    assert mean["cfg"] == load_checkpoint(stock_run / "checkpoint3.pt")["cfg"]
    assert "last_optimizer_state" not in mean
    assert [path.name for path in tmp_path.iterdir()] == ["mean.pt"]


def test_mean_of_one_is_itself(stock_run):
    one = average([stock_run / "checkpoint1.pt"])["model"]
    for name, tensor in load_checkpoint(stock_run / "checkpoint1.pt")["model"].items():
        assert torch.equal(tensor, one[name])


def test_half_precision_is_summed_in_high_and_counters_are_the_last(tmp_path):
    values = [1.0, 2.0**-10, 2.0**-10, 2.0**-10]
    paths = [
        write(tmp_path / f"{i}.pt", w=torch.tensor([value], dtype=torch.float16), seen=torch.tensor(i))
        for i, value in enumerate(values)
    ]
    model = average(paths)["model"]
    assert model["w"].dtype == torch.float16 and model["seen"] == 3
    assert model["w"].item() == torch.tensor(sum(values) / 4, dtype=torch.float16).item()


def test_last_by_epoch_and_by_update(tmp_path):
    for name in ("checkpoint9", "checkpoint10", "checkpoint_1_900", "checkpoint_2_1000", "checkpoint_best"):
        (tmp_path / f"{name}.pt").touch()
    assert [path.name for path in last_checkpoints(tmp_path, 2)] == ["checkpoint9.pt", "checkpoint10.pt"]
    assert [path.name for path in last_checkpoints(tmp_path, 1, "update")] == ["checkpoint_2_1000.pt"]
    with pytest.raises(ValueError, match="holds 2 checkpoints by epoch, --last asks for 3"):
        last_checkpoints(tmp_path, 3)
    with pytest.raises(ValueError, match="at least 1"):
        last_checkpoints(tmp_path, 0)


def test_different_models_are_refused_by_name(tmp_path):
    a = write(tmp_path / "a.pt", w=torch.zeros(2))
    b = write(tmp_path / "b.pt", w=torch.zeros(2), bias=torch.zeros(1))
    c = write(tmp_path / "c.pt", w=torch.zeros(3))
    with pytest.raises(ValueError, match=r"b\.pt has 'bias', .*a\.pt has not"):
        average([a, b])
    with pytest.raises(ValueError, match=r"'w' is \[3\] in .*c\.pt, \[2\] in .*a\.pt"):
        average([a, c])
    with pytest.raises(SystemExit, match="different models"):
        main(["--inputs", str(a), str(b), "--output", str(tmp_path / "out.pt")])
    assert not (tmp_path / "out.pt").exists()


class Planted:
    def __reduce__(self):
        return (print, ("this must not run",))


def test_a_checkpoint_cannot_run_code(tmp_path, capsys):
    torch.save({"model": {}, "extra": Planted()}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt is not a checkpoint .*: it holds builtins\.print, which could run"):
        load_checkpoint(tmp_path / "evil.pt")
    assert capsys.readouterr().out == ""
    with pytest.raises(SystemExit, match="translation.average: .*could run any code, and so nothing of it was loaded"):
        main(["--inputs", str(tmp_path / "evil.pt"), "--output", str(tmp_path / "out.pt")])


def test_not_a_checkpoint(tmp_path):
    torch.save({"weights": 1}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="it has no 'model'"):
        load_checkpoint(tmp_path / "x.pt")
