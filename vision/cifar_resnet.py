"""Residual nets for 32x32 pictures: He et al. 2016, section 4.2, and a smaller, faster relative.

Shapes: B batch, C channels, H and W height and width, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch.nn.functional as F
from torch import Tensor, nn


def _conv3x3(channels_in: int, channels_out: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut.

    Where the shape changes the shortcut drops pixels and adds zero channels, without parameters
    (the paper's option A), or with ``projection`` is a 1x1 convolution (option B).
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int, *, projection: bool) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels_in, channels_out, stride)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = _conv3x3(channels_out, channels_out)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels_out and projection:
            convolution = nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels_out))
        elif channels_in != channels_out:
            self.shortcut = PaddedShortcut(channels_out - channels_in, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        out_BCHW = self.bn2(self.conv2(out_BCHW))
        return F.relu(out_BCHW + self.shortcut(x_BCHW), inplace=True)


class PaddedShortcut(nn.Module):
    """Every ``stride``-th pixel, and channels of zeros on both sides."""

    def __init__(self, extra_channels: int, stride: int) -> None:
        super().__init__()
        self.before, self.after = extra_channels // 2, extra_channels - extra_channels // 2
        self.stride = stride

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW[:, :, :: self.stride, :: self.stride]
        return F.pad(x_BCHW, (0, 0, 0, 0, self.before, self.after))


class CifarResNet(nn.Module):
    """A stem, three stages of basic blocks, global average pooling and a linear classifier.

    ``blocks`` and ``widths`` have one entry a stage; each stage after the first halves the
    resolution. ``stem`` is (kernel, stride, padding).
    """

    def __init__(
        self,
        *,
        blocks: Sequence[int],
        widths: Sequence[int] = (16, 32, 64),
        stem: tuple[int, int, int] = (3, 1, 1),
        projection: bool = False,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        kernel, stride, padding = stem
        self.conv1 = nn.Conv2d(3, widths[0], kernel, stride=stride, padding=padding, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages = []
        channels = widths[0]
        for index, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            stages.append(_stage(channels, width, count, stride=1 if index == 0 else 2, projection=projection))
            channels = width
        self.stages = nn.Sequential(*stages)
        self.fc = nn.Linear(channels, num_classes)
        self.apply(_he_initialise)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits of shape (B, K)."""
        out_BCHW = F.relu(self.bn1(self.conv1(x_BCHW)), inplace=True)
        out_BCHW = self.stages(out_BCHW)
        # Not mean(): its backward is not channels-last, which would slow down the whole last stage.
        logits_BK: Tensor = self.fc(F.adaptive_avg_pool2d(out_BCHW, 1).flatten(1))
        return logits_BK


def _stage(channels_in: int, channels_out: int, count: int, *, stride: int, projection: bool) -> nn.Sequential:
    first = BasicBlock(channels_in, channels_out, stride, projection=projection)
    rest = [BasicBlock(channels_out, channels_out, 1, projection=projection) for _ in range(count - 1)]
    return nn.Sequential(first, *rest)


def _he_initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)
    if isinstance(module, nn.Linear):
        nn.init.zeros_(module.bias)


def _he2016(depth: int) -> Callable[[int], nn.Module]:
    blocks_a_stage = (depth - 2) // 6

    def build(num_classes: int) -> nn.Module:
        return CifarResNet(blocks=(blocks_a_stage,) * 3, num_classes=num_classes)

    return build


def _stride2(blocks_a_stage: int) -> Callable[[int], nn.Module]:
    """The stem halves the resolution at once and the widths double: a quarter of the pictures' area at twice the
    channels keeps vector units busy, which is what a CPU needs."""

    def build(num_classes: int) -> nn.Module:
        return CifarResNet(
            blocks=(blocks_a_stage,) * 3,
            widths=(32, 64, 128),
            stem=(4, 2, 1),
            projection=True,
            num_classes=num_classes,
        )

    return build


CIFAR_MODELS: dict[str, Callable[[int], nn.Module]] = {
    "resnet20": _he2016(20),
    "resnet32": _he2016(32),
    "resnet44": _he2016(44),
    "resnet56": _he2016(56),
    "resnet110": _he2016(110),
    "resnet8_stride2": _stride2(1),
    "resnet14_stride2": _stride2(2),
}


def count_parameters(model: nn.Module) -> int:
    """Trainable numbers in ``model``."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
