"""Every kind of tensor leaves a worker as it leaves the main process, in whatever container it stands."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from feedrate.errors import SampleError
from feedrate.loader import Loader

pytestmark = [
    pytest.mark.usefixtures("no_workers_left"),
    pytest.mark.filterwarnings("ignore:Sparse"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of"),
    pytest.mark.filterwarnings("ignore:torch.quantize"),
    pytest.mark.filterwarnings("ignore:TypedStorage"),
]


class Named(NamedTuple):
    value: Tensor


@dataclass
class Held:
    value: Tensor


class Own(Tensor):
    """A subclass, as torchvision's images are."""


def kinds(seed: int = 0) -> dict[str, Tensor]:
    a = torch.arange(12.0).reshape(3, 4) + seed
    c = torch.complex(a, a + 1)
    square = torch.arange(16.0).reshape(4, 4) + seed
    ragged = [torch.arange(6.0).reshape(2, 3) + seed, torch.arange(12.0).reshape(4, 3)]
    strided = torch.nested.nested_tensor(ragged)
    found = {
        "contiguous": a,
        "empty": a[:0],
        "scalar": a.sum(),
        "conjugate": c.conj(),
        "negative": c.conj().imag,  # -(a + 1), as a view with its negative bit set
        "negative slice": c.conj().imag[1:, ::2],
        "negative parameter": torch.nn.Parameter(c.conj().imag),
        "conjugate, transposed": c.conj().T,
        "expanded": a[0].expand(5, 4),
        "transposed": a.T,
        "slice": a[1:, ::2],
        "channels last": torch.ones(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "bfloat16": a.bfloat16().T,
        "nested": strided,
        "nested, transposed": strided.transpose(1, 2),
        "nested, negative": torch.nested.as_nested_tensor([c.conj().imag, c.conj().imag[:2]]),
        "jagged": torch.nested.nested_tensor(ragged, layout=torch.jagged),
        "jagged, negative": torch.nested.nested_tensor_from_jagged(c.conj().imag, torch.tensor([0, 1, 3])),
        "jagged, narrowed": torch.nested.narrow(a, 1, torch.tensor([0, 1, 0]), torch.tensor([2, 3, 4]), torch.jagged),
        "coo": a.to_sparse(),
        "coo, not coalesced": torch.sparse_coo_tensor([[0, 0, 2], [1, 1, 3]], [1.0, 2.0, 3.0 + seed], (3, 4)),
        "coo, hybrid": a.to_sparse(1),
        "coo of a conjugate": torch.sparse_coo_tensor([[0, 1, 2]], c.conj()[:, 0], (3,)),
        "csr": a.to_sparse_csr(),
        "csc": a.to_sparse_csc(),
        "bsr": square.to_sparse_bsr((2, 2)),
        "bsc": square.to_sparse_bsc((2, 2)),
        "quantized": torch.quantize_per_tensor(a, 0.5, 3, torch.quint8),
        "quantized view": torch.quantize_per_tensor(a, 0.5, 3, torch.qint32).T,
        "quantized by channel": torch.quantize_per_channel(
            a, torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0, 1, 2]), 0, torch.qint8
        ),
        "subclass": a.as_subclass(Own),
        "negative subclass": c.conj().imag.as_subclass(Own),
        "meta": torch.empty(3, 4, device="meta"),
    }
    if torch.backends.mkldnn.is_available():
        found["mkldnn"] = a.to_mkldnn()
    return found


class Kinds(Dataset[Any]):
    """Sample i is of the i-th kind, created now, or at the start and so sent to spawned workers."""

    def __init__(self, kept: tuple[str, ...] = ()) -> None:
        self.kept = {name: kinds(1)[name] for name in kept}
        self.names = list(kept or kinds())

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        name = self.names[index]
        return name, self.kept.get(name, kinds()[name])


def in_containers(samples: list[Any]) -> Any:
    ((name, value),) = samples
    return name, value, [value], {"x": value}, OrderedDict(x=value), Named(value), Held(value)


def values(batch: Any) -> list[Tensor]:
    _, plain, listed, dictionary, ordered, named, held = batch
    assert [type(named), type(held), type(ordered)] == [Named, Held, OrderedDict]
    return [plain, *listed, dictionary["x"], ordered["x"], named.value, held.value]


def parts(tensor: Tensor) -> list[Tensor]:
    """Ordinary tensors that hold the same numbers."""
    if tensor.is_nested:
        return [part for whole in tensor.unbind() for part in parts(whole)]
    if tensor.is_quantized:
        return [tensor.int_repr(), tensor.dequantize()]
    if tensor.is_meta:
        return []
    dense = tensor.to_dense() if tensor.layout != torch.strided else tensor
    return [dense.resolve_conj().resolve_neg().contiguous()]


def assert_equal(one: Tensor, other: Tensor, name: str) -> None:
    assert (type(one), one.layout, one.dtype) == (type(other), other.layout, other.dtype), name
    assert one.requires_grad == other.requires_grad, name
    assert (one.is_quantized, one.is_meta, one.is_nested) == (other.is_quantized, other.is_meta, other.is_nested), name
    if one.layout == torch.strided and not one.is_nested:
        assert (one.shape, one.stride()) == (other.shape, other.stride()), name
    if one.layout == torch.sparse_coo:
        assert one.is_coalesced() == other.is_coalesced(), name
    left, right = parts(one), parts(other)
    assert len(left) == len(right), name
    for a, b in zip(left, right, strict=True):
        assert torch.equal(a, b), f"{name}: {a} is not {b}"


@pytest.mark.parametrize("workers", [1, 2])
def test_every_kind_of_tensor_leaves_a_worker_as_it_is_made_without_one(workers: int) -> None:
    settings: dict[str, Any] = {"batch_size": 1, "seed": 0, "collate_fn": in_containers}
    alone = list(Loader(Kinds(), **settings))
    crossed = list(Loader(Kinds(), num_workers=workers, engine="process", **settings))
    assert [batch[0] for batch in crossed] == Kinds().names
    for one, other in zip(crossed, alone, strict=True):
        for found, expected in zip(values(one), values(other), strict=True):
            assert_equal(found, expected, one[0])


def test_a_view_that_a_dataset_holds_reaches_spawned_workers_as_it_is() -> None:
    data = Kinds(("conjugate", "negative", "quantized", "nested"))
    batches = list(Loader(data, 1, seed=0, collate_fn=in_containers, num_workers=1, multiprocessing_context="spawn"))
    for batch in batches:
        assert_equal(values(batch)[0], data.kept[batch[0]], batch[0])


class InSlots(Dataset[Any]):
    """A batch whose tensors lie in reused memory, inside of tensors of another kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 60

    def __getitem__(self, index: int) -> Any:
        raise AssertionError

    def load_batch(self, indices: np.ndarray, empty: Any) -> Any:
        values = empty((len(indices), 5), torch.float32)
        values[:] = torch.from_numpy(indices)[:, None]
        size, columns = len(indices), torch.arange(5)
        made = {
            "jagged": lambda: torch.nested.nested_tensor_from_jagged(values, torch.tensor([0, 1, size])),
            "coo": lambda: torch.sparse_coo_tensor(torch.arange(size)[None], values, (size, 5)),
            "csr": lambda: torch.sparse_csr_tensor(
                torch.arange(size + 1) * 5, columns.repeat(size), values.reshape(-1), (size, 5)
            ),
            "subclass": lambda: values.as_subclass(Own),
        }
        return made[self.kind](), torch.from_numpy(indices.copy())


@pytest.mark.parametrize("kind", ["jagged", "coo", "csr", "subclass"])
def test_a_batch_that_is_kept_stays_as_it_was_also_inside_of_another_kind_of_tensor(kind: str) -> None:
    kept = [X for X, _ in Loader(InSlots(kind), 4, seed=0, engine="process", num_workers=1)]
    for number, X in enumerate(kept):
        assert torch.cat(parts(X))[:, 0].tolist() == list(range(4 * number, 4 * number + 4))


class Nothing(Tensor):
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("stays here")


def not_to_be_sent(samples: list[Any]) -> Tensor:
    return torch.ones(3).as_subclass(Nothing)


def test_a_tensor_that_cannot_leave_its_worker_is_an_error_and_no_endless_wait() -> None:
    loader = Loader(Kinds(), 4, seed=0, engine="process", num_workers=1, collate_fn=not_to_be_sent, timeout=60)
    with pytest.raises(SampleError, match="cannot leave its worker .*stays here"):
        next(iter(loader))
