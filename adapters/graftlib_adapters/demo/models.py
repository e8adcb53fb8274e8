"""The two models of the demo: torchvision's own, sized for small images.

In: the shape of an image and the number of classes. Out: a source (a ResNet) and a slim target (a MobileNetV2), which
share no layer shape but the number of classes.
"""

from __future__ import annotations

from typing import cast

from torch import nn

__all__ = ["make_source", "make_target", "parameter_count"]

STAGES = [  # expansion, channels, blocks, stride of the first block
    [1, 16, 1, 1],
    [4, 24, 2, 1],
    [4, 40, 2, 2],
    [4, 64, 2, 2],
]
"""The target's stages: four where MobileNetV2 has seven."""
HEAD = 192
"""Channels of the target's last convolution, where MobileNetV2 has 1,280."""


def make_source(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A ResNet of four BasicBlocks whose stem keeps the size of a small image."""
    from torchvision.models.resnet import BasicBlock, ResNet

    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=classes)
    model.conv1 = nn.Conv2d(shape[0], 64, 3, stride=_stem_stride(shape), padding=1, bias=False)
    model.maxpool = nn.Identity()
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    return cast(nn.Module, model)


def make_target(shape: tuple[int, ...], classes: int) -> nn.Module:
    """A MobileNetV2 with fewer and narrower stages."""
    from torchvision.models.mobilenetv2 import MobileNetV2
    from torchvision.ops import Conv2dNormActivation

    model = MobileNetV2(num_classes=classes, inverted_residual_setting=STAGES)
    stem, last = model.features[0], model.features[-1]
    stem[0] = nn.Conv2d(shape[0], 32, 3, stride=_stem_stride(shape), padding=1, bias=False)
    model.features[-1] = Conv2dNormActivation(
        last[0].in_channels, HEAD, 1, activation_layer=nn.ReLU6
    )
    model.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(HEAD, classes))
    for conv in (stem[0], model.features[-1][0]):
        nn.init.kaiming_normal_(conv.weight, mode="fan_out")
    return cast(nn.Module, model)


def parameter_count(model: nn.Module) -> int:
    """Elements of all parameters, tied ones once."""
    return sum(parameter.numel() for parameter in model.parameters())


def _stem_stride(shape: tuple[int, ...]) -> int:
    # At 28 and 32 pixels a full-size stem would make the demo four times as long.
    return 1 if shape[-1] <= 16 else 2
