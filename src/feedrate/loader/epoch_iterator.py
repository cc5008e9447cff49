"""One pass through an epoch, as the user of a loader iterates over it: where it is, when it ends, what broke it off.

Batches come from an engine; positions, digests and the account of what was delivered are the loader's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from feedrate.dataset.time_limit import TimedOut
from feedrate.errors import UserError
from feedrate.loader.batch import requests_of
from feedrate.loader.order import Plan
from feedrate.loader.sample_errors import with_cause
from feedrate.timing.stages import clock_ns

if TYPE_CHECKING:
    from feedrate.loader.engines.inline import Inline
    from feedrate.loader.engines.processes import Workers
    from feedrate.loader.engines.threads import Threads
    from feedrate.loader.loader import SeededLoader


class EpochIterator(Iterator[Any]):
    """From a position of an epoch to its end; the engine's batches go on after that.

    Where another epoch is named by `sampler.set_epoch` before the first batch is asked for, it is that one.

    Args:
        engine: that the batches come from.
        batches: with their batch infos, from the plan's first on.
        number: of the pass; the loader counts them, and another one that still runs is over.
    """

    def __init__(
        self,
        loader: SeededLoader[Any],
        engine: Inline | Threads | Workers,
        batches: Iterator[Any],
        plan: Plan,
        number: int,
    ) -> None:
        self._loader, self._watched, self._next = loader, engine.watched, batches.__next__
        self._rest = engine.rest
        self._plan, self._number = plan, number
        self._at, self._left, self._begun = plan.start, 0, False
        self._error: Exception | None = None

    def __next__(self) -> Any:
        asked_ns = clock_ns()
        loader = self._loader
        if self._error is not None:
            raise self._error
        if loader.sampler.passes != self._number:
            if self._at == self._plan.end:
                raise StopIteration
            raise UserError(
                "this pass over the loader has ended, as iter(), set_epoch(), load_state_dict() or close() was called; "
                "make a second Loader for a pass within a pass"
            )
        if not self._left and not self._goes_on():
            raise StopIteration
        try:
            batch, info = self._watched(self._next)
        except StopIteration:
            raise AssertionError(f"no batch at {self._at}, of {self._plan}") from None
        except TimedOut as error:
            due = next(requests_of(replace(self._plan, start=self._at)))
            named = TimedOut(error.seconds, f"the batch of {loader._samples.named(due)}", error.at)
            self._stop(named)
            raise named from None
        except BaseException as error:  # Ctrl-C too: what it has broken off cannot go on
            self._stop(error)
            raise
        request = info.request
        assert request.start == self._at and request.epoch == self._plan.order.epoch, request  # noqa: PT018
        if info.error is not None:
            self._stop(info.error)
            raise with_cause(info.error)
        self._at, self._left = request.stop, self._left - 1
        loader._delivered(batch, info, asked_ns)
        return batch

    def _goes_on(self) -> bool:
        """Whether there is another batch; called before the first one and after the last."""
        if not self._begun:
            asked = self._loader.sampler.asked
            if asked not in (None, self._plan.order.epoch):
                vars(self).update(vars(iter(self._loader)))
            self._loader.sampler.begin()
            self._begun, self._left = True, len(self._plan)
        if not self._left:
            self._end()
        return self._left > 0

    def _end(self) -> None:
        """All is delivered. Workers that serve this pass alone end with the last reference to its batches."""
        self._at = self._plan.end  # also where there was nothing for this rank
        self._loader.sampler.end(self._at)
        self._next = iter(()).__next__
        self._loader._requests.end()
        self._rest()

    def _stop(self, error: BaseException) -> None:
        """After an error the pass is over: asked again it fails again. Workers that serve it alone end now."""
        self._error = error if isinstance(error, Exception) else _broken_off(error)
        self._next = iter(()).__next__

    def __len__(self) -> int:
        return len(self._plan)


def _broken_off(error: BaseException) -> UserError:
    return UserError(
        f"this pass over the loader was broken off by {type(error).__name__}; iter() begins the next epoch, or goes on "
        "with this one after loader.load_state_dict(loader.state_dict())"
    )
