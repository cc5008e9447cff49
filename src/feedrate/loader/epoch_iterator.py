"""Iterates over one epoch of a seeded loader, from a position to its end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from feedrate.dataset.time_limit import TimedOut
from feedrate.errors import UserError
from feedrate.loader.batch import Batch
from feedrate.loader.digest import content_hash
from feedrate.loader.engines.engine import Engine
from feedrate.loader.order import Plan


class EpochIterator(Iterator[Batch]):
    """The batches of a plan, or of the epoch that a library chooses before the first batch is requested.

    The engine's batches may continue into the next epoch. The iterator ends when its generation differs from the
    sampler's: that rises with each iter(), set_epoch(), load_state_dict() and close().
    """

    def __init__(self, loader: Any, engine: Engine, batches: Iterator[Batch], plan: Plan, generation: int) -> None:
        self._loader, self._engine, self._next = loader, engine, batches.__next__
        self._plan, self._generation = plan, generation
        self._position, self._left, self._begun = plan.start, 0, False
        self._error: Exception | None = None

    def __next__(self) -> Batch:
        loader = self._loader
        if self._error is not None:
            raise self._error
        if loader.sampler.generation != self._generation:
            if self._position == self._plan.end:
                raise StopIteration
            raise UserError(
                "this iterator of the loader is over, as iter(), set_epoch(), load_state_dict() or close() was called; "
                "make a second Loader to iterate twice at the same time"
            )
        if not self._left and not self._has_next():
            raise StopIteration
        try:
            batch = self._engine.detect_lost_worker(self._next)
        except StopIteration:
            raise AssertionError(f"no batch at {self._position}, of {self._plan}") from None
        except TimedOut as error:
            due = next(iter(replace(self._plan, start=self._position)))
            named = TimedOut(error.seconds, f"the batch of {loader._fetcher.errors.named(due)}", error.at)
            self._fail(named)
            raise named from None
        except BaseException as error:  # also KeyboardInterrupt
            self._fail(error)
            raise
        info = batch.info
        request = info.request
        assert request.start == self._position and request.epoch == self._plan.order.epoch, request  # noqa: PT018
        if info.error is not None:
            self._fail(info.error)
            raise info.error from (RuntimeError(f"\n{info.error.cause}") if info.error.cause else None)
        self._position, self._left = request.stop, self._left - 1
        sampler = loader.sampler
        sampler.position = request.stop
        if sampler.content is not None:
            sampler.content = content_hash(sampler.content, batch.data)
            batch.info = replace(info, content=sampler.content)
        return batch

    def _has_next(self) -> bool:
        """Called before the first batch and after the last."""
        sampler = self._loader.sampler
        if not self._begun:
            if sampler.wanted not in (None, self._plan.order.epoch):
                chosen = self._loader.batches()
                self._engine, self._next, self._plan = chosen._engine, chosen._next, chosen._plan
                self._generation, self._position = chosen._generation, chosen._position
            sampler.begin()
            self._begun, self._left = True, len(self._plan)
        if not self._left:
            self._position = self._plan.end  # also where this rank has no batch
            sampler.position, sampler.over = self._position, True
            self._next = iter(()).__next__  # without persistent_workers this ends the workers
            self._loader._requests.end()
            self._engine.idle()
        return self._left > 0

    def _fail(self, error: BaseException) -> None:
        """Marks the iterator failed; further `next()` calls raise the same error."""
        if not isinstance(error, Exception):
            error = UserError(
                f"this iterator of the loader was interrupted by {type(error).__name__}; iter() begins the next epoch, "
                "or continues this one after loader.load_state_dict(loader.state_dict())"
            )
        self._error, self._next = error, iter(()).__next__

    def __len__(self) -> int:
        return len(self._plan)
