"""A small convolutional network for images of any size, down to a single pixel."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from feedrate.model.shapes import image_shape


class CNN(nn.Module):
    """A 3x3 convolution, normalisation and ReLU per entry of `channels`, then the image's mean, then linear.

    Between two convolutions a 2x2 max-pooling halves each side that is longer than one pixel. Normalisation is over
    one sample (GroupNorm with one group, Wu and He 2018), not over the batch, so that accumulated gradients are those
    of the large batch, and a last batch may hold one sample.

    Args:
        sample_shape: (C, H, W), or (H, W) for one channel.
        channels: of each convolution's output, at least 2: one channel of a one-pixel map would be normalised to 0.
    """

    def __init__(
        self,
        sample_shape: Sequence[int],
        num_outputs: int,
        channels: Sequence[int] = (32, 64, 128),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        width, *sides = image_shape("cnn", sample_shape)

        layers: list[nn.Module] = []
        for position, out in enumerate(channels):
            if position > 0:
                window = [min(2, side) for side in sides]
                sides = [side // step for side, step in zip(sides, window, strict=True)]
                layers.append(nn.MaxPool2d((window[0], window[1])))
            # the normalisation has its own bias
            layers += [nn.Conv2d(width, out, 3, padding=1, bias=False), nn.GroupNorm(1, out), nn.ReLU()]
            width = out
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(dropout), nn.Linear(width, num_outputs))

    def forward(self, X: Tensor) -> Tensor:
        """X: (B, C, H, W) or (B, H, W) float -> (B, num_outputs)."""
        if X.ndim == 3:
            X = X.unsqueeze(1)
        outputs: Tensor = self.head(self.features(X).mean(dim=(2, 3)))
        return outputs
