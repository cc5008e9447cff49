"""The other projects' loaders, each as its own documentation uses it. Runs in the environment of requirements.txt."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peers.sets import Set, make, pad

_NUMPY = {torch.uint8: np.uint8, torch.float32: np.float32}


def _tensor(raw: Any, of: Set) -> Tensor:
    """A sample from its bytes."""
    shape = (-1, *of.shape[1:])
    return torch.from_numpy(np.frombuffer(raw, dtype=_NUMPY[of.dtype]).reshape(shape).copy())  # type: ignore[arg-type]


def _collated(of: Set) -> Any:
    return pad if of.ragged else torch.utils.data.default_collate


# ---------------------------------------------------------------------------------------------------------
# tensordict: one memory-mapped file for each field
# ---------------------------------------------------------------------------------------------------------


def open_tensordict(home: Path, of: Set, batch_size: int, workers: int) -> Any:
    from tensordict import TensorDict

    def write(folder: Path) -> None:
        X = torch.stack([X for _, X, _ in of.samples()])
        y = torch.tensor([of.y(index) for index in range(of.size)])
        TensorDict({"X": X, "y": y}, batch_size=[of.size]).memmap_(str(folder))

    data = TensorDict.load_memmap(str(make(home / "memmap", write)))
    return _Pairs(torch.utils.data.DataLoader(data, batch_size, shuffle=True, collate_fn=_same))


def _same(batch: Any) -> Any:
    return batch


class _Pairs:
    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            yield batch["X"], batch["y"]


# ---------------------------------------------------------------------------------------------------------
# litdata: chunks of 64 MB
# ---------------------------------------------------------------------------------------------------------


def open_litdata(home: Path, of: Set, batch_size: int, workers: int) -> Any:
    import litdata

    def write(folder: Path) -> None:
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(folder), chunk_bytes=64 << 20)
        for index, (_, X, y) in enumerate(of.samples()):
            writer[index] = (X, y)
        writer.done()
        writer.merge()

    data = litdata.StreamingDataset(str(make(home / "litdata", write)), shuffle=True, drop_last=False)
    return litdata.StreamingDataLoader(
        data, batch_size=batch_size, num_workers=workers, collate_fn=_collated(of), persistent_workers=workers > 0
    )


# ---------------------------------------------------------------------------------------------------------
# WebDataset: tars of 500 samples
# ---------------------------------------------------------------------------------------------------------


def open_webdataset(home: Path, of: Set, batch_size: int, workers: int) -> Any:
    import webdataset

    def write(folder: Path) -> None:
        tar, each = None, 500
        for index, (ID, X, y) in enumerate(of.samples()):
            if index % each == 0:
                if tar is not None:
                    tar.close()
                tar = tarfile.open(folder / f"{index // each:04}.tar", "w")  # noqa: SIM115
            assert tar is not None
            for name, content in ((f"{ID}.x", X.numpy().tobytes()), (f"{ID}.y", str(y).encode())):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                tar.addfile(member, BytesIO(content))
        if tar is not None:
            tar.close()

    paths = [str(path) for path in sorted(make(home / "tar", write).glob("*.tar"))]

    def sample(found: dict[str, Any]) -> tuple[Tensor, int]:
        return _tensor(found["x"], of), int(found["y"])

    data = webdataset.WebDataset(paths, shardshuffle=len(paths), seed=0).shuffle(1000).map(sample)
    data = data.batched(batch_size, collation_fn=_collated(of))
    return webdataset.WebLoader(data, batch_size=None, num_workers=workers, persistent_workers=workers > 0)


# ---------------------------------------------------------------------------------------------------------
# Grain on ArrayRecord: one record for each sample, uncompressed, random access
# ---------------------------------------------------------------------------------------------------------


def open_grain(home: Path, of: Set, batch_size: int, workers: int) -> Any:
    from array_record.python.array_record_module import ArrayRecordWriter

    def write(folder: Path) -> None:
        writer = ArrayRecordWriter(str(folder / "all.array_record"), "group_size:1,uncompressed")
        for _, X, y in of.samples():
            writer.write(y.to_bytes(8, "little") + X.numpy().tobytes())
        writer.close()

    return _Grain(str(make(home / "array_record", write) / "all.array_record"), of, batch_size, workers)


class _Grain:
    def __init__(self, path: str, of: Set, batch_size: int, workers: int) -> None:
        import grain

        self.grain, self.of, self.batch_size, self.workers = grain, of, batch_size, workers
        self.source, self.epoch = grain.sources.ArrayRecordDataSource(path), -1

    def __iter__(self) -> Iterator[Any]:
        self.epoch += 1
        grain, of = self.grain, self.of
        dtype = _NUMPY[of.dtype]

        def sample(raw: bytes) -> tuple[np.ndarray, int]:
            return np.frombuffer(raw, dtype=dtype, offset=8).reshape(-1, *of.shape[1:]), int.from_bytes(
                raw[:8], "little"
            )

        batch_fn = (lambda samples: pad([(X.copy(), y) for X, y in samples])) if of.ragged else None
        data = grain.MapDataset.source(self.source).shuffle(seed=self.epoch).map(sample)
        options = grain.ReadOptions(num_threads=self.workers, prefetch_buffer_size=4 * self.batch_size)
        for X, y in data.to_iter_dataset(options).batch(self.batch_size, drop_remainder=False, batch_fn=batch_fn):
            yield torch.as_tensor(X), torch.as_tensor(y)


# ---------------------------------------------------------------------------------------------------------
# SPDL: threads on the files themselves
# ---------------------------------------------------------------------------------------------------------


def open_spdl(home: Path, of: Set, batch_size: int, workers: int, npy: bool = False) -> Any:
    return _Spdl(home / "npy" if npy else home / "pt", of, batch_size, workers, npy)


class _Spdl:
    def __init__(self, folder: Path, of: Set, batch_size: int, workers: int, npy: bool) -> None:
        self.folder, self.of, self.batch_size, self.workers, self.npy = folder, of, batch_size, workers, npy
        self.IDs, self.epoch = of.list_IDs, -1

    def _batches(self) -> Iterator[list[int]]:
        order = torch.randperm(self.of.size, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        for at in range(0, len(order), self.batch_size):
            yield order[at : at + self.batch_size]

    def _load(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        import spdl.io

        if self.npy:
            X = [
                torch.from_numpy(spdl.io.load_npy((self.folder / f"{self.IDs[i]}.npy").read_bytes(), copy=True))
                for i in indices
            ]
        else:
            X = [torch.load(self.folder / f"{self.IDs[i]}.pt", weights_only=True) for i in indices]
        found: tuple[Tensor, Tensor] = _collated(self.of)([(x, self.of.y(i)) for x, i in zip(X, indices, strict=True)])
        return found

    def __iter__(self) -> Iterator[Any]:
        from spdl.pipeline import PipelineBuilder

        self.epoch += 1
        pipeline = (
            PipelineBuilder()
            .add_source(self._batches())
            .pipe(self._load, concurrency=self.workers, output_order="input")
            .add_sink(4)
            .build(num_threads=self.workers, max_failures=0)
        )
        with pipeline.auto_stop():
            yield from pipeline
