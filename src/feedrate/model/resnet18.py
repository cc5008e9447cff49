"""ResNet-18 after He, Zhang, Ren and Sun, "Deep Residual Learning for Image Recognition" (2016), table 1."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from feedrate.errors import UserError
from feedrate.model.shapes import image_shape

# An image with a shorter side than this, in pixels, is too small for the stem that quarters it.
SMALL_SIDE = 64


class ResNet18(nn.Module):
    """Four stages of two residual blocks, then the mean over the image and a linear layer.

    The weights are random. The stem is the paper's 7x7 convolution of stride 2 with max-pooling, or, where
    min(H, W) < 64, one 3x3 convolution of stride 1, as in the paper's section 4.2 on CIFAR-10. The first block of
    stages 2 to 4 halves each side, but none below 2 pixels, so that batch normalisation can average over one sample.

    Args:
        sample_shape: (C, H, W), or (H, W) for one channel; at least two pixels.
        width: channels of the first stage; the later ones have 2, 4 and 8 times as many. 64 is the paper's.
    """

    def __init__(self, sample_shape: Sequence[int], num_outputs: int, width: int = 64) -> None:
        super().__init__()
        channels, *sides = image_shape("resnet18", sample_shape)
        if sides == [1, 1]:
            raise UserError("model=resnet18: samples are single pixels, it needs two or more; use model=mlp")

        small = min(sides) < SMALL_SIDE
        size, stride = (3, 1) if small else (7, 2)
        pool = [] if small else [nn.MaxPool2d(3, stride=2, padding=1)]
        sides = sides if small else [-(-side // 4) for side in sides]
        conv = nn.Conv2d(channels, width, size, stride, padding=size // 2, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True), *pool)

        blocks: list[nn.Module] = [Block(width, width, (1, 1)), Block(width, width, (1, 1))]
        for before, after in ((width, 2 * width), (2 * width, 4 * width), (4 * width, 8 * width)):
            strides = (2 if sides[0] > 2 else 1, 2 if sides[1] > 2 else 1)
            sides = [-(-side // step) for side, step in zip(sides, strides, strict=True)]
            blocks += [Block(before, after, strides), Block(after, after, (1, 1))]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(8 * width, num_outputs)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # He et al., "Delving Deep into Rectifiers" (2015)
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, X: Tensor) -> Tensor:
        """X: (B, C, H, W) or (B, H, W) float -> (B, num_outputs)."""
        if X.ndim == 3:
            X = X.unsqueeze(1)
        outputs: Tensor = self.head(self.blocks(self.stem(X)).mean(dim=(2, 3)))
        return outputs


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut: the identity, or a 1x1 convolution where the shape changes."""

    def __init__(self, before: int, after: int, stride: tuple[int, int]) -> None:
        super().__init__()
        self.residual = nn.Sequential(
            nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(inplace=True),
            nn.Conv2d(after, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
        )
        self.shortcut: nn.Module = nn.Identity()
        if before != after or stride != (1, 1):
            self.shortcut = nn.Sequential(nn.Conv2d(before, after, 1, stride=stride, bias=False), nn.BatchNorm2d(after))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, before, H, W) -> (B, after, H / stride, W / stride)."""
        return F.relu(self.residual(x) + self.shortcut(x))
