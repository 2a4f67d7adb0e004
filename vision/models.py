"""Models by name: torchvision's and one of its class, with the initial values of Goyal et al., and the CIFAR nets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from torch import nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from codistill_ext.exchange import ModelDescription
from vision.cifar_resnet import CIFAR_MODELS

# Their auxiliary classifiers would make the output in training another type than in evaluation.
_AUXILIARY = {"googlenet", "inception_v3"}
_SIZED = ("vit_",)
# Both of Goyal et al., section 5.1, one of them, or none.
INITS = ("goyal", "zero-gamma", "small-classifier", "torchvision")
# The convolution of a bottleneck that has its stride: after Goyal et al., section 5.1, or after He et al.
STRIDES = ("3x3", "1x1")
STRIDE_BEFORE = "3x3"  # of checkpoints and descriptions that are older than the option
_BASIC = ("resnet18", "resnet34")
# ResNets that torchvision's class builds but torchvision does not name.
_RESNETS: dict[str, dict[str, Any]] = {
    "resnext101_32x4d": {"block": Bottleneck, "layers": [3, 4, 23, 3], "groups": 32, "width_per_group": 4}
}


def model_names() -> list[str]:
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return sorted(CIFAR_MODELS) + sorted(names + list(_RESNETS))


def is_resnet(name: str) -> bool:
    """Whether it is one of torchvision's class, which ``INITS`` are for."""
    if name in CIFAR_MODELS or name in _RESNETS:
        return name in _RESNETS
    return bool(torchvision.models.get_model_builder(name).__module__ == torchvision.models.resnet.__name__)


def has_bottlenecks(name: str) -> bool:
    """Whether it is built of bottlenecks, which ``STRIDES`` are for."""
    return is_resnet(name) and name not in _BASIC


def build_model(
    name: str, *, num_classes: int, image_sizes: Sequence[int], init: str = "goyal", stride_in: str = "3x3"
) -> nn.Module:
    """A model with new weights from the global random state.

    Args:
        init: of ``INITS``, for torchvision's ResNets.
        stride_in: of ``STRIDES``, for those of bottlenecks. The weights have the same names and shapes with both.

    Raises:
        ValueError: it cannot read square pictures of one of ``image_sizes``.
    """
    model = _construct(name, num_classes, image_sizes[0])
    if isinstance(model, torchvision.models.ResNet) and stride_in == "1x1":
        _stride_in_1x1(model)
    for image_size in image_sizes:
        _check_image_size(model, name, image_size)
    if isinstance(model, torchvision.models.ResNet):
        if init in ("goyal", "zero-gamma"):
            _zero_last_gammas(model)
        if init in ("goyal", "small-classifier"):
            nn.init.normal_(model.fc.weight, std=0.01)
            nn.init.zeros_(model.fc.bias)
    return model


def _construct(name: str, num_classes: int, image_size: int) -> nn.Module:
    if name in CIFAR_MODELS:
        return CIFAR_MODELS[name](num_classes)
    if name in _RESNETS:
        return torchvision.models.ResNet(**_RESNETS[name], num_classes=num_classes)
    options: dict[str, object] = {}
    if name in _AUXILIARY:
        options = {"aux_logits": False, "init_weights": True}
    elif name.startswith(_SIZED):
        options = {"image_size": image_size}
    try:
        model: nn.Module = torchvision.models.get_model(name, weights=None, num_classes=num_classes, **options)
        return model
    except (ValueError, AssertionError, RuntimeError) as error:
        raise ValueError(f"--model {name} does not accept {image_size}x{image_size} pictures: {error}") from error


def _stride_in_1x1(model: torchvision.models.ResNet) -> None:
    for module in model.modules():
        if isinstance(module, Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride


def _zero_last_gammas(model: torchvision.models.ResNet) -> None:
    """Every block is the identity to begin with."""
    for module in model.modules():
        if isinstance(module, Bottleneck):
            nn.init.zeros_(module.bn3.weight)
        elif isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)


def _check_image_size(model: nn.Module, name: str, image_size: int) -> None:
    """Try it on the meta device, which computes shapes alone."""
    state = itertools.chain(model.named_parameters(), model.named_buffers())
    shapes = {key: torch.empty_like(tensor, device="meta") for key, tensor in state}
    pictures_BCHW = torch.empty(1, 3, image_size, image_size, device="meta")
    training = model.training
    try:
        with torch.no_grad():
            torch.func.functional_call(model.eval(), shapes, (pictures_BCHW,))
    except (ValueError, AssertionError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"--model {name} cannot read {image_size}x{image_size} pictures ({reason}): choose another one"
        ) from error
    model.train(training)


def describe_model(name: str, *, num_classes: int, image_sizes: Sequence[int], stride_in: str) -> ModelDescription:
    """How a peer builds the model again."""
    values = {"num_classes": num_classes, "image_sizes": list(image_sizes), "stride_in": stride_in}
    return ModelDescription(name, values)


def build_described(description: ModelDescription, *, num_classes: int) -> nn.Module:
    """Build a peer's model from its description, which may come from a file.

    Raises:
        ValueError: the name or a value is not one of ours, or the classes are others.
    """
    if description.name not in model_names():
        raise ValueError(f"the peer's model {description.name!r} is none of vision's models")
    classes, sizes = description.values.get("num_classes"), description.values.get("image_sizes")
    if classes != num_classes:
        raise ValueError(f"the peer's model {description.name} has {classes!r} classes, this one {num_classes}")
    if not isinstance(sizes, list) or not sizes or not all(type(size) is int and 0 < size < 4096 for size in sizes):
        raise ValueError(f"the peer's model {description.name} has pictures of sizes {sizes!r}: not a list of sizes")
    stride_in = description.values.get("stride_in", STRIDE_BEFORE)
    if stride_in not in STRIDES:
        raise ValueError(f"the peer's model {description.name} has its stride in {stride_in!r}: not in 3x3 or 1x1")
    return build_model(description.name, num_classes=num_classes, image_sizes=sizes, stride_in=str(stride_in))
