"""Every model takes the samples it claims to take, trains all its parameters and refuses the rest by name."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from feedrate.errors import UserError
from feedrate.model import CNN, MLP, ResNet18, Simulated

IMAGE_SHAPES = st.one_of(
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(1, 4), st.integers(1, 20), st.integers(1, 20)),
)
ANY_SHAPES = st.lists(st.integers(1, 6), max_size=5).map(tuple)
BATCHES = st.integers(1, 3)  # one sample, too: an epoch's last batch may be that short
OUTPUTS = st.integers(1, 5)

# Not a time limit: the first call of a torch function pays for what it loads.
relaxed = settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def batch_of(batch_size: int, shape: tuple[int, ...]) -> Tensor:
    return torch.rand(batch_size, *shape, generator=torch.Generator().manual_seed(0))


def assert_takes(model: nn.Module, shape: tuple[int, ...], batch_size: int, num_outputs: int) -> None:
    X = batch_of(batch_size, shape)
    for mode in (True, False):
        outputs = model.train(mode)(X)
        assert outputs.shape == (batch_size, num_outputs)
        assert outputs.isfinite().all()
    model.train()(X).square().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@relaxed
@given(ANY_SHAPES, BATCHES, OUTPUTS, st.lists(st.integers(1, 9), max_size=3))
def test_mlp_takes_samples_of_any_shape(
    shape: tuple[int, ...], batch_size: int, num_outputs: int, hidden: list[int]
) -> None:
    assert_takes(MLP(shape, num_outputs, hidden), shape, batch_size, num_outputs)


@relaxed
@given(ANY_SHAPES, BATCHES, OUTPUTS)
def test_simulated_takes_samples_of_any_shape(shape: tuple[int, ...], batch_size: int, num_outputs: int) -> None:
    assert_takes(Simulated(shape, num_outputs, step_ms=0), shape, batch_size, num_outputs)


@relaxed
@given(IMAGE_SHAPES, BATCHES, OUTPUTS, st.lists(st.integers(2, 9), min_size=1, max_size=4))
def test_cnn_takes_images_of_any_size(
    shape: tuple[int, ...], batch_size: int, num_outputs: int, channels: list[int]
) -> None:
    assert_takes(CNN(shape, num_outputs, channels), shape, batch_size, num_outputs)


@relaxed
@given(IMAGE_SHAPES.filter(lambda shape: math.prod(shape[-2:]) > 1), BATCHES, OUTPUTS)
def test_resnet18_takes_images_of_any_size(shape: tuple[int, ...], batch_size: int, num_outputs: int) -> None:
    assert_takes(ResNet18(shape, num_outputs, width=2), shape, batch_size, num_outputs)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 64, 200), (70, 65)])
def test_resnet18_takes_large_images(shape: tuple[int, ...]) -> None:
    assert_takes(ResNet18(shape, 3, width=2), shape, 1, 3)


@pytest.mark.parametrize("make", [MLP, CNN, ResNet18, Simulated])
def test_gradient_reaches_every_parameter(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = make((3, 12, 12), 4)  # type: ignore[call-arg]
    if isinstance(model, Simulated):
        model.step_ns = 0
    nn.functional.cross_entropy(model(batch_of(8, (3, 12, 12))), torch.arange(8) % 4).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("make", [MLP, CNN, ResNet18, Simulated])
def test_same_seed_makes_the_same_weights_and_they_load_back(make: type[nn.Module]) -> None:
    torch.manual_seed(7)
    first = make((1, 8, 8), 3)  # type: ignore[call-arg]
    torch.manual_seed(7)
    second = make((1, 8, 8), 3)  # type: ignore[call-arg]
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    X = batch_of(2, (1, 8, 8))
    restored = pickle.loads(pickle.dumps(first)).eval()
    assert torch.equal(restored(X), first.eval()(X))


def test_an_image_without_channel_is_one_channel() -> None:
    X = batch_of(2, (9, 7))
    for make in (CNN, ResNet18):
        torch.manual_seed(0)
        plain = make((9, 7), 3).eval()
        torch.manual_seed(0)
        one_channel = make((1, 9, 7), 3).eval()
        assert torch.equal(plain(X), one_channel(X[:, None]))


def test_cnn_gives_a_sample_the_same_output_in_any_batch() -> None:
    torch.manual_seed(0)
    model = CNN((1, 8, 8), 3, dropout=0).train()
    X = batch_of(6, (1, 8, 8))
    torch.testing.assert_close(model(X), torch.cat([model(x[None]) for x in X]))


def test_resnet18_has_the_parameters_of_the_paper() -> None:
    """Known counts of ResNet-18: 11,689,512 for ImageNet, 11,173,962 with the 3x3 stem for CIFAR-10."""

    def count(model: nn.Module) -> int:
        return sum(parameter.numel() for parameter in model.parameters())

    with torch.device("meta"):
        assert count(ResNet18((3, 224, 224), 1000)) == 11_689_512
        assert count(ResNet18((3, 32, 32), 10)) == 11_173_962


@pytest.mark.parametrize("shape", [(), (10,), (2, 3, 4, 5)])
@pytest.mark.parametrize(("name", "make"), [("cnn", CNN), ("resnet18", ResNet18)])
def test_image_models_name_the_shapes_they_take(name: str, make: type[nn.Module], shape: tuple[int, ...]) -> None:
    with pytest.raises(UserError) as caught:
        make(shape, 3)  # type: ignore[call-arg]
    text = str(caught.value)
    assert f"model={name}" in text
    assert f"{shape}" in text
    assert f"{name} needs (C, H, W) or (H, W)" in text
    assert "model=mlp takes any shape" in text


def test_single_pixels_are_refused_by_resnet18() -> None:
    with pytest.raises(UserError, match="single pixels"):
        ResNet18((3, 1, 1), 2)
