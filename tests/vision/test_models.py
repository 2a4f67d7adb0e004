"""Models by name: sizes as published, initial values as Goyal et al."""

import pytest
import torch
from torch import nn

from codistill_ext.exchange import ModelDescription
from vision.cifar_resnet import CIFAR_MODELS, count_parameters
from vision.models import build_described, build_model, describe_model, model_names

# He et al. 2016, table 6, in millions.
PUBLISHED = {"resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_the_published_ones(name: str) -> None:
    millions = count_parameters(CIFAR_MODELS[name](10)) / 1e6
    assert round(millions, 2 if millions < 1 else 1) == PUBLISHED[name]


@pytest.mark.parametrize("name", CIFAR_MODELS)
def test_depth_is_in_the_name(name: str) -> None:
    modules = list(CIFAR_MODELS[name](10).named_modules())
    layers = sum(isinstance(m, nn.Conv2d | nn.Linear) for n, m in modules if "shortcut" not in n)
    assert layers == int(name.removeprefix("resnet").removesuffix("_stride2"))


def test_the_small_net() -> None:
    model = CIFAR_MODELS["resnet8_stride2"](10)
    assert count_parameters(model) == 309_322
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_shortcuts_without_parameters_keep_pixels_and_add_zeros() -> None:
    block = CIFAR_MODELS["resnet20"](10).stages[1][0]
    pictures = torch.rand(1, 16, 8, 8)
    out = block.shortcut(pictures)
    assert out.shape == (1, 32, 4, 4)
    assert torch.equal(out[:, 8:24], pictures[:, :, ::2, ::2])
    assert out[:, :8].count_nonzero() == out[:, 24:].count_nonzero() == 0


# Trainable parameters: Goyal's networks in torchvision's documentation, ResNeXt-101 32x4d in timm's (44.18 M).
RESNETS = {
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnext101_32x4d": 44_177_704,
    "resnext101_64x4d": 83_455_272,
}


@pytest.mark.parametrize("name", RESNETS)
def test_the_papers_networks(name: str) -> None:
    """Their sizes, the stride in the 3x3, and of ResNeXt the groups and the widths of table 1 (Xie et al., 2017)."""
    with torch.device("meta"):
        model = build_model(name, num_classes=1000, image_sizes=[224])
    assert name in model_names() and count_parameters(model) == RESNETS[name]
    for index, stage in enumerate([model.layer1, model.layer2, model.layer3, model.layer4]):
        first = stage[0]
        stride = (1, 1) if index == 0 else (2, 2)
        assert (first.conv1.stride, first.conv2.stride, first.downsample[0].stride) == ((1, 1), stride, stride)
        if name.startswith("resnext"):
            groups = int(name.split("_")[1].removesuffix("x4d"))
            assert first.conv2.groups == groups and first.conv2.out_channels == groups * 4 * 2**index


@pytest.mark.parametrize("name", RESNETS)
def test_the_stride_in_the_1x1(name: str) -> None:
    """As in the network of He et al.: the weights are the same, what they compute is not."""
    torch.manual_seed(1)
    usual = build_model(name, num_classes=10, image_sizes=[64], init="torchvision").eval()
    torch.manual_seed(1)
    other = build_model(name, num_classes=10, image_sizes=[64], init="torchvision", stride_in="1x1").eval()
    for index, stage in enumerate([other.layer1, other.layer2, other.layer3, other.layer4]):
        first, *rest = stage
        stride = (1, 1) if index == 0 else (2, 2)
        assert (first.conv1.stride, first.conv2.stride, first.downsample[0].stride) == (stride, (1, 1), stride)
        assert all(block.conv1.stride == block.conv2.stride == (1, 1) for block in rest)
    usual.load_state_dict(other.state_dict())
    pictures = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert other(pictures).shape == (2, 10) and not torch.allclose(usual(pictures), other(pictures))


def test_a_peer_is_built_with_its_own_stride() -> None:
    described = describe_model("resnet50", num_classes=10, image_sizes=[64], stride_in="1x1")
    assert build_described(described, num_classes=10).layer2[0].conv1.stride == (2, 2)
    of_before = ModelDescription("resnet50", {"num_classes": 10, "image_sizes": [64]})
    assert build_described(of_before, num_classes=10).layer2[0].conv1.stride == (1, 1)
    wrong = ModelDescription("resnet50", {**described.values, "stride_in": "5x5"})
    with pytest.raises(ValueError, match="the peer's model resnet50 has its stride in '5x5': not in 3x3 or 1x1"):
        build_described(wrong, num_classes=10)


@pytest.mark.parametrize("name,gammas", [("resnet18", "bn2"), ("resnet50", "bn3"), ("resnext101_32x4d", "bn3")])
def test_initial_values_of_goyal(name: str, gammas: str) -> None:
    model = build_model(name, num_classes=1000, image_sizes=[224])
    blocks = {n: m for n, m in model.named_modules() if n.endswith(gammas)}
    assert len(blocks) >= 8
    assert all(m.weight.count_nonzero() == 0 for m in blocks.values())
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.01)
    assert model.fc.bias.count_nonzero() == 0
    for convolution in (m for m in model.modules() if isinstance(m, nn.Conv2d)):
        kernel = convolution.kernel_size[0] * convolution.kernel_size[1]
        he = (2 / (kernel * convolution.out_channels)) ** 0.5
        assert convolution.weight.std().item() == pytest.approx(he, rel=0.1)


@pytest.mark.parametrize(
    "name,size", [("googlenet", 224), ("mobilenet_v3_small", 64), ("regnet_x_400mf", 64), ("vit_b_32", 64)]
)
def test_torchvision_models_return_logits_in_training(name: str, size: int) -> None:
    model = build_model(name, num_classes=7, image_sizes=[size])
    assert model.training
    assert model(torch.randn(2, 3, size, size)).shape == (2, 7)


def test_all_classification_models_are_known() -> None:
    assert {"resnet50", "resnext101_32x8d", "vit_b_16", "convnext_tiny", "resnet110"} < set(model_names())
    assert not [name for name in model_names() if "detection" in name or "rcnn" in name or "raft" in name]


def test_a_picture_too_small_is_an_error_that_names_the_size() -> None:
    with pytest.raises(ValueError, match="--model alexnet cannot read 32x32"):
        build_model("alexnet", num_classes=10, image_sizes=[32])


def test_the_check_of_the_size_draws_no_random_numbers() -> None:
    torch.manual_seed(1)
    expected = CIFAR_MODELS["resnet20"](10)
    torch.manual_seed(1)
    model = build_model("resnet20", num_classes=10, image_sizes=[32])
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), expected.parameters(), strict=True))


def test_pictures_of_another_size_in_validation_are_noticed_before_training() -> None:
    with pytest.raises(ValueError, match="--model vit_b_32 cannot read 96x96"):
        build_model("vit_b_32", num_classes=10, image_sizes=[64, 96])
