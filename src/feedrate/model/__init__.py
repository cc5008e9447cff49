"""The models behind conf/model: each takes `(B, *sample_shape)` floats and returns `(B, num_outputs)`.

Any other torch.nn.Module can be named by model._target_ instead.
"""

from feedrate.model.cnn import CNN
from feedrate.model.mlp import MLP
from feedrate.model.resnet18 import ResNet18
from feedrate.model.simulated import Simulated

__all__ = ["CNN", "MLP", "ResNet18", "Simulated"]
