"""`dataset=generated`: samples are a function of (seed, ID), of any number, and can be learned."""

from __future__ import annotations

import hashlib
import multiprocessing
import pickle
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import nn

from feedrate.dataset.generated import PARAMETERS, Generated, NumberedIDs, draw_tank
from feedrate.errors import UserError


def digest(dataset: Generated, indices: list[int]) -> str:
    found = hashlib.sha256()
    for index in indices:
        X, y = dataset[index]
        found.update(X.numpy().tobytes() + y.numpy().tobytes())
    return found.hexdigest()


def report_digest(dataset: Generated, indices: list[int], answer: multiprocessing.Queue[str]) -> None:
    answer.put(digest(dataset, indices))


def test_a_sample_is_an_image_and_the_parameters_that_made_it() -> None:
    dataset = Generated("train", seed=0, size=40, image_size=48)
    for index in range(len(dataset)):
        X, y = dataset[index]
        assert X.shape == (1, 48, 48)
        assert X.dtype == torch.uint8
        assert y.shape == (dataset.num_outputs,) == (len(PARAMETERS),)
        assert y.dtype == torch.float32
        assert y.abs().max() <= 1


def test_labels_fill_their_range() -> None:
    labels = torch.stack([y for _, y in (Generated("train", seed=0, image_size=32)[i] for i in range(150))])
    assert (labels.min(dim=0).values < -0.9).all()
    assert (labels.max(dim=0).values > 0.9).all()


def test_a_sample_depends_on_seed_and_ID_alone() -> None:
    indices = [0, 7, 3, 7]
    expected = digest(Generated("train", seed=5), indices)
    assert digest(Generated("train", seed=5, size=10**9, validation_size=3), indices) == expected
    assert digest(Generated("train", seed=6), indices) != expected
    assert digest(Generated("validation", seed=5), indices) != expected
    backwards = Generated("train", seed=5)
    for index in range(9, -1, -1):
        backwards[index]
    assert digest(backwards, indices) == expected


def test_a_sample_does_not_depend_on_the_process() -> None:
    dataset = Generated("train", seed=5)
    context = multiprocessing.get_context("spawn")
    answer = context.Queue()
    worker = context.Process(target=report_digest, args=(dataset, [0, 1999], answer))
    worker.start()
    try:
        assert answer.get(timeout=120) == digest(dataset, [0, 1999])
    finally:
        worker.join()


def test_any_size_costs_nothing() -> None:
    dataset = Generated("train", seed=0, size=10**12)
    assert len(dataset) == len(dataset.list_IDs) == 10**12
    assert len(pickle.dumps(dataset)) < 1_000
    X, _ = dataset[10**12 - 1]
    assert X.shape == (1, 64, 64)
    assert sys.getsizeof(dataset.list_IDs) < 200


def test_IDs_are_unique_strings_that_name_their_partition() -> None:
    train = Generated("train", seed=0).list_IDs
    validation = Generated("validation", seed=0).list_IDs
    assert train[0] == "train-000000"
    assert train[1] == "train-000001"
    assert train[-1] == "train-001999"
    assert len(set(train)) == 2000
    assert len(validation) == 500
    assert not set(train) & set(validation)
    assert NumberedIDs("train", range(2_000_000))[1_234_567] == "train-1234567"
    with pytest.raises(IndexError):
        train[2000]


def test_the_waves_have_the_length_that_the_label_states() -> None:
    for frequency in (4.0, 6.0, 8.0, 10.0):
        image = draw_tank(frequency, gap=0.6, wall=0.25, damping=0.0, pixels=128)
        along = image[64, 48:112].astype(np.float64) - 128  # half the tank, beyond the wall, on the axis of the gap
        spectrum = np.abs(np.fft.rfft(along * np.hanning(64), n=4096))
        waves_per_tank = np.argmax(spectrum) / 4096 * 128
        assert waves_per_tank == pytest.approx(frequency, rel=0.1)


def test_damping_narrow_gaps_and_walls_show_in_the_image() -> None:
    def beyond(**changes: float) -> float:
        values = {"frequency": 8.0, "gap": 0.4, "wall": 0.4, "damping": 0.5, **changes}
        image = draw_tank(**values, pixels=64).astype(np.float64)
        return float(np.abs(image[:, 40:] - 128).mean())

    assert beyond(damping=3.0) < 0.6 * beyond()
    assert beyond(gap=0.1) < 0.75 * beyond()
    image = draw_tank(8.0, gap=0.5, wall=0.5, damping=0.0, pixels=64)
    assert (image[:16, 31:33] == 0).all()
    assert (image[48:, 31:33] == 0).all()
    assert image[17:47, 31:33].any(axis=1).all()


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # on a busy machine two wait for each other
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_a_small_network_learns_every_parameter() -> None:
    torch.manual_seed(0)
    images, labels = {}, {}
    for partition, count in (("train", 600), ("validation", 150)):
        dataset = Generated(partition, seed=0, image_size=32)
        pairs = [dataset[index] for index in range(count)]
        images[partition] = torch.stack([X for X, _ in pairs]) / 255
        labels[partition] = torch.stack([y for _, y in pairs])
    model = nn.Sequential(
        *(nn.Conv2d(1, 16, 5, stride=2, padding=2), nn.ReLU()),
        *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 32, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(32 * 4 * 4, len(PARAMETERS))),
    )
    epochs = 10
    optimizer = torch.optim.AdamW(model.parameters())
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=epochs * 24)
    for _ in range(epochs):
        for batch in torch.randperm(600).split(25):
            loss = nn.functional.mse_loss(model(images["train"][batch]), labels["train"][batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    with torch.no_grad():
        rmse = (model(images["validation"]) - labels["validation"]).square().mean(dim=0).sqrt()
    of_the_mean = (labels["train"].mean(dim=0) - labels["validation"]).square().mean(dim=0).sqrt()
    assert (rmse < 0.6 * of_the_mean).all(), f"{rmse} against {of_the_mean}"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"size": 0}, "dataset.size=0"),
        ({"size": 10**16}, "dataset.size="),
        ({"size": 2.5}, "dataset.size=2.5"),
        ({"size": True}, "dataset.size=True"),
        ({"validation_size": -1}, "dataset.validation_size=-1"),
        ({"image_size": 31}, "dataset.image_size=31"),
        ({"image_size": 257}, "dataset.image_size=257"),
        ({"partition": "holdout"}, "'holdout'"),
    ],
)
def test_a_wrong_setting_is_named(changes: dict[str, object], key: str) -> None:
    with pytest.raises(UserError, match=key):
        Generated(**{"partition": "train", "seed": 0, **changes})  # type: ignore[arg-type]
