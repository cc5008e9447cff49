"""The models behind conf/model: each takes `(B, *sample_shape)` floats and returns `(B, num_outputs)`.

Nothing here knows of data sets, losses or devices; any other torch.nn.Module can stand in their place.
"""

from feedrate.model.cnn import CNN
from feedrate.model.mlp import MLP
from feedrate.model.resnet18 import ResNet18
from feedrate.model.simulated import Simulated

__all__ = ["CNN", "MLP", "ResNet18", "Simulated"]
