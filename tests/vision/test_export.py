"""What is exported does what the models do, without our code."""

from pathlib import Path

import pytest
import torch
import torchvision

from tests.ranks import run_ranks
from tests.vision.small import PLAIN, final_state, run, run_rank, write_folders
from vision.export import Ensemble, export, load_ensemble, main
from vision.models import build_model


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models of different architectures."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "settings.yaml").write_text("1: {model: resnet20}\n")
    options = ["--codistill-models", "2", "--codistill-settings", str(folder / "settings.yaml")]
    run_ranks(2, run_rank, [*PLAIN, *options, "--max-updates", "3", "--output-dir", str(folder / "run")])
    return folder / "run"


def _probabilities(run: Path, pictures: torch.Tensor) -> list[torch.Tensor]:
    """Of each model, built here from its checkpoint."""
    found = []
    for index, name in enumerate(("resnet8_stride2", "resnet20")):
        module = build_model(name, num_classes=10, image_sizes=(32,)).eval()
        module.load_state_dict(final_state(run, index)["model"])
        with torch.no_grad():
            found.append(module(pictures).softmax(dim=1))
    return found


@pytest.mark.slow
def test_a_program_of_the_ensemble_gives_the_mean_of_the_probabilities(two: Path, tmp_path: Path) -> None:
    line = export(two, model=None, form="torch_export", output=tmp_path / "both.pt2")
    assert "ensemble of 2 (resnet8_stride2 after 3 updates, resnet20 after 3 updates)" in line
    assert [path.name for path in tmp_path.iterdir()] == ["both.pt2"]
    program = torch.export.load(tmp_path / "both.pt2").module()
    for batch in (1, 5):
        pictures = torch.randn(batch, 3, 32, 32)
        mean = torch.stack(_probabilities(two, pictures)).mean(dim=0)
        torch.testing.assert_close(program(pictures).softmax(dim=1), mean)
        torch.testing.assert_close(program(pictures).exp(), mean)


def test_weights_of_one_model_and_of_the_ensemble(two: Path, tmp_path: Path) -> None:
    main([str(two), "--model", "1", "--output", str(tmp_path / "deep" / "one.pt")])
    weights = torch.load(tmp_path / "deep" / "one.pt", weights_only=True)
    saved = final_state(two, 1)["model"]
    assert weights.keys() == saved.keys() and all(torch.equal(weights[name], saved[name]) for name in saved)
    export(two, model=None, form="state_dict", output=tmp_path / "both.pt")
    both = torch.load(tmp_path / "both.pt", weights_only=True)
    assert both.keys() == {f"models.{i}.{name}" for i in (0, 1) for name in final_state(two, i)["model"]}
    ensemble = Ensemble([member.build() for member in load_ensemble(two)]).eval()
    ensemble.load_state_dict(both)
    pictures = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ensemble(pictures).exp(), sum(_probabilities(two, pictures)) / 2)


@pytest.mark.slow
def test_plain_torchvision_loads_the_weights(tmp_path: Path) -> None:
    write_folders(tmp_path / "data", train=2, val=2)
    sizes = ["--train-crop-size", "32", "--val-resize-size", "36", "--val-crop-size", "32"]
    options = ["--data-path", str(tmp_path / "data"), "--model", "resnet18", *sizes, "-b", "4", "-j", "0"]
    options += ["--device", "cpu", "--epochs", "2", "--lr", "0.01", "--ema-decay", "0.5"]
    run([*options, "--output-dir", str(tmp_path / "run")])
    export(tmp_path / "run", model=0, form="state_dict", output=tmp_path / "resnet18.pt")
    model = torchvision.models.get_model("resnet18", num_classes=2)
    model.load_state_dict(torch.load(tmp_path / "resnet18.pt", weights_only=True))
    line = export(tmp_path / "run", model=0, form="torch_export", output=tmp_path / "large.pt2", size=64)
    assert "pictures of 64x64" in line
    assert torch.export.load(tmp_path / "large.pt2").module()(torch.randn(2, 3, 64, 64)).shape == (2, 2)
    average = export(tmp_path / "run", model=0, form="state_dict", output=tmp_path / "ema.pt", weights="ema_last")
    assert "(resnet18 ema_last)" in average
    weights = torch.load(tmp_path / "ema.pt", weights_only=True)
    assert not torch.equal(weights["fc.weight"], model.fc.weight)
    model.load_state_dict(weights)
    with pytest.raises(ValueError, match="has one model: export it with --model 0"):
        export(tmp_path / "run", model=None, form="state_dict", output=tmp_path / "both.pt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "2"], "model2/checkpoint.pt does not exist: give a run's directory"),
        (["--model", "1", "--weights", "ema_best"], "model1/ema_best.pt does not exist"),
        (["--model", "1", "--size", "0"], "--size: must be a whole number of at least 1, not 0"),
        ([], "one of the arguments --model --ensemble is required"),
    ],
)
def test_mistakes(
    two: Path, tmp_path: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([str(two), "--output", str(tmp_path / "x.pt"), *options])
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_half_a_checkpoint_is_refused(two: Path, tmp_path: Path) -> None:
    path = tmp_path / "run/model0/checkpoint.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes((two / "model0/checkpoint.pt").read_bytes()[:-100])
    with pytest.raises(ValueError, match="model0/checkpoint.pt is no whole checkpoint of vision.train"):
        export(tmp_path / "run", model=0, form="state_dict", output=tmp_path / "x.pt")
