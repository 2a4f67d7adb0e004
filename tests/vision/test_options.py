"""The command line: wrong input ends with a message that says what to change."""

import itertools

import pytest
import torch

from codistill_ext.schedules import Horizon
from vision.cifar_resnet import CIFAR_MODELS
from vision.hyperparameters import HyperParameters
from vision.models import build_model
from vision.optim import build_optimizer
from vision.options import build_parser, parse_options, plain_options

FOLDER = ["--data-path", "somewhere"]
CIFAR = ["--dataset", "cifar10", "--model", "resnet20"]

MISTAKES = [
    ([], "--dataset imagenet needs --data-path"),
    ([*CIFAR, "--model", "resnet21"], "--model resnet21 is unknown: did you mean resnet"),
    ([*CIFAR, "--model", "xyz"], "--model xyz is unknown: give a torchvision classification model"),
    ([*CIFAR, "--lr", "inf"], "--lr must be a finite number, not inf"),
    ([*CIFAR, "--epochs", "inf"], "--epochs must be a finite number, not inf"),
    ([*CIFAR, "--codistill-timeout", "nan"], "--codistill-timeout must be a finite number, not nan"),
    ([*CIFAR, "--lr-milestones", "3", "nan"], "argument --lr-milestones: a place is written"),
    ([*CIFAR, "--codistill-alpha", "inf"], "--codistill-alpha: expected finite numbers"),
    ([*CIFAR, "--codistill-modles", "2"], "unrecognized arguments: --codistill-modles 2; did you mean --codistill-mod"),
    ([*CIFAR, "--device", "cuda:1"], "--device is auto, cuda or cpu"),
    ([*CIFAR, "-b", "0"], "--batch-size must be at least 1, not 0"),
    ([*CIFAR, "--momentum", "0"], "--momentum must be between 0 and 1"),
    ([*CIFAR, "--opt", "sgd", "--momentum", "1"], "--momentum must be 0 or more and less than 1"),
    ([*CIFAR, "--opt", "adam"], "argument --opt: invalid choice: 'adam'"),
    ([*CIFAR, "--stride-in", "1x1"], "--stride-in has no effect with --model resnet20"),
    ([*FOLDER, "--model", "resnet34", "--stride-in", "1x1"], "--stride-in has no effect with --model resnet34"),
    ([*FOLDER, "--model", "vit_b_16", "--init", "goyal"], "--init has no effect with --model vit_b_16"),
    ([*CIFAR, "--label-smoothing", "1"], "--label-smoothing must be"),
    ([*CIFAR, "--lr-warmup-epochs", "100"], "--lr-warmup-epochs must be at most --epochs 90"),
    (
        [*CIFAR, "--weight-decay", "fast"],
        "argument --wd/--weight-decay: expected finite numbers of 0 or more, as in",
    ),
    ([*CIFAR, "--lr-milestones", "2weeks"], "argument --lr-milestones: a place is written 18ep, 2000up, 50% or 18of45"),
    ([*CIFAR, "--budget", "equal"], "argument --budget: invalid choice: 'equal'"),
    ([*CIFAR, "--ema-decay", "1"], "--ema-decay must be between 0 and 1, both excluded"),
    ([*CIFAR, "--init", "goyal"], "--init has no effect with --model resnet20"),
    (
        [*FOLDER, "--lr-scaling", "linear", "--lr-warmup-epochs", "5", "--lr-warmup-decay", "0.5"],
        "--lr-warmup-decay has no effect with --lr-scaling linear",
    ),
    ([*CIFAR, "--eval-every", "0"], "--eval-every must be at least 1"),
    ([*CIFAR, "--epochs", "9", "--lr-milestones", "5", "9"], "--lr-milestones 9ep has no effect in 9 epochs"),
    ([*CIFAR, "--lr-min", "0.01"], "--lr-min has no effect with --lr-scheduler multisteplr"),
    (
        [*CIFAR, "--lr-scheduler", "cosineannealinglr", "--lr-gamma", "0.1"],
        "--lr-gamma has no effect with --lr-scheduler cosineannealinglr",
    ),
    ([*CIFAR, "--lr-warmup-decay", "0.01"], "--lr-warmup-decay has no effect without --lr-warmup-epochs"),
    ([*CIFAR, "--amp-dtype", "bfloat16"], "--amp-dtype has no effect without --amp"),
    ([*CIFAR, "--val-crop-size", "224"], "--val-crop-size has no effect with --dataset cifar10"),
    ([*FOLDER, "--val-resize-size", "128"], "--val-resize-size must be at least --val-crop-size"),
    ([*CIFAR, "--test-only"], "--test-only needs --resume"),
    ([*CIFAR, "--test-only", "--resume", "x", "--lr", "1"], "--lr has no effect with --test-only"),
    (
        [*CIFAR, "--test-only", "--resume", "x", "--codistill-alpha", "1"],
        "--codistill-alpha has no effect with --test-only",
    ),
    ([*CIFAR, "--codistill-models", "0"], "--codistill-models must be at least 1"),
    ([*CIFAR, "--codistill-models", "2", "--codistill-period", "9"], "--codistill-period 9 has no effect"),
]


@pytest.mark.parametrize("argv,message", MISTAKES, ids=[message for _, message in MISTAKES])
def test_mistakes(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        parse_options(build_parser(), argv)
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"vision.train: error: {message}") and line.endswith(" (see --help)")


def test_defaults_are_goyals() -> None:
    options = parse_options(build_parser(), FOLDER)
    args, config = plain_options(options.args), options.config
    assert (args["momentum"], args["weight_decay"], args["norm_weight_decay"]) == (0.9, 1e-4, 0.0)
    assert (args["lr"], args["batch_size"], args["epochs"]) == (0.1, 32, 90)
    assert args["lr_milestones"] == ["30ep", "60ep", "80ep"]
    assert config.models == 1


def test_a_preset_says_what_it_sets_and_a_flag_beside_it_wins() -> None:
    options = parse_options(build_parser(), [*FOLDER, "--epochs", "45", "--preset", "goyal", "--wd", "1e-5"])
    args = plain_options(options.args)
    assert options.preset == (
        "preset goyal: --batch-size 32 --train-crop-size 224 --val-resize-size 256 --val-crop-size 224 "
        "--stride-in 3x3 --init goyal --opt sgd_nesterov --momentum 0.9 --norm-weight-decay 0 "
        "--label-smoothing 0 --lr 0.1 --lr-scaling linear --lr-scheduler multisteplr "
        "--lr-milestones 30 60 80 --lr-gamma 0.1 --lr-warmup-epochs 5"
    )
    assert (args["epochs"], args["weight_decay"]) == (45, 1e-5)
    assert (args["lr_scaling"], args["lr_warmup_epochs"]) == ("linear", 5)
    cosine = parse_options(build_parser(), [*FOLDER, "--preset", "goyal", "--lr-scheduler", "cosineannealinglr"])
    assert cosine.args.lr_scheduler == "cosineannealinglr" and "multisteplr" not in cosine.preset
    assert "--lr-milestones" not in cosine.preset and "--lr-gamma" not in cosine.preset


def test_initial_values_of_torchvision_or_of_goyal() -> None:
    for init, gamma, small in (
        *(("goyal", 0, True), ("zero-gamma", 0, False)),
        *(("small-classifier", 1, True), ("torchvision", 1, False)),
    ):
        model = build_model("resnet18", num_classes=1000, image_sizes=[32], init=init)
        assert model.layer1[0].bn2.weight.unique().tolist() == [gamma]
        # torchvision's own are uniform up to 1 / sqrt(512), of standard deviation 0.0255.
        assert float(model.fc.weight.detach().std()) == pytest.approx(0.01 if small else 0.0255, rel=0.02)
        assert bool((model.fc.bias == 0).all()) == small


def test_norms_have_a_weight_decay_of_their_own() -> None:
    model = CIFAR_MODELS["resnet20"](10)
    optimizer = build_optimizer(model, opt="sgd_nesterov", momentum=0.9)
    args = parse_options(build_parser(), FOLDER).args
    HyperParameters.of(args, Horizon(updates=90, updates_an_epoch=1), batch=256).set(optimizer, 0)
    others, norms = optimizer.param_groups
    assert (others["weight_decay"], norms["weight_decay"]) == (1e-4, 0.0)
    assert len(norms["params"]) == 2 * 19
    assert len(others["params"]) + len(norms["params"]) == len(list(model.parameters()))
    assert others["nesterov"] and norms["nesterov"]


@pytest.mark.parametrize(
    "options,first,second", [([], 1.9, 0.81), (["--opt", "sgd"], 1.0, 0.9)], ids=["nesterov", "sgd"]
)
def test_momentum_in_closed_form(options: list[str], first: float, second: float) -> None:
    """After gradients 1 and 0 the velocity is 1 and m; Nesterov's step is the gradient and m times the velocity."""
    args = parse_options(build_parser(), [*CIFAR, *options]).args
    layer = torch.nn.Linear(1, 1, bias=False).double()
    optimizer = build_optimizer(layer, opt=args.opt, momentum=args.momentum)
    optimizer.param_groups[0]["lr"] = 0.1
    positions = [layer.weight.item()]
    for gradient in (1.0, 0.0):
        layer.weight.grad = torch.full_like(layer.weight, gradient)
        optimizer.step()
        positions.append(layer.weight.item())
    steps = [(before - after) / 0.1 for before, after in itertools.pairwise(positions)]
    assert steps == pytest.approx([first, second])
