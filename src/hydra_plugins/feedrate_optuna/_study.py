"""The stored study of a search: proposes the settings of the next trial and records the results.

A trial's number is its job's number.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from feedrate.reporting.picture import styled
from feedrate.system.text import number
from feedrate.trainer.pruning import METRIC, PRUNER, STUDY_NAME, build, open_storage, quiet_optuna
from hydra_plugins.feedrate_optuna._settings import NO_PRUNER, Search

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

_AGAIN = "again"  # attribute of a trial: the number of the one it repeats
_ENOUGH = 10  # finished trials, for the importance of keys
_ONE_SEQUENCE = ("QMCSampler",)  # samplers with one seed for the whole sequence


class Study:
    """A study in an SQLite file (an absolute path), which is created or continued."""

    def __init__(self, path: Path, search: Search, space: Mapping[str, BaseDistribution]) -> None:
        self._search, self._space = search, dict(space)
        optuna = quiet_optuna()
        self._states = optuna.trial.TrialState
        self._study = optuna.create_study(
            study_name=STUDY_NAME,
            storage=open_storage(path, new=True),
            direction=search.direction,
            load_if_exists=True,
        )
        self._study.set_user_attr(METRIC, search.metric)
        self._study.set_user_attr(PRUNER, search.pruner or NO_PRUNER)
        repeated = {trial.user_attrs.get(_AGAIN) for trial in self._trials()}
        for trial in self._trials(self._states.FAIL):
            if trial.number not in repeated:
                self._study.enqueue_trial(trial.params, user_attrs={_AGAIN: trial.number})

    def ended(self) -> dict[int, dict[str, Any]]:
        """Number -> settings of the trials that have a result."""
        return {trial.number: trial.params for trial in self._trials(self._states.COMPLETE, self._states.PRUNED)}

    def running(self) -> dict[int, dict[str, Any]]:
        """Number -> settings of the trials that an earlier start did not finish."""
        return {trial.number: trial.params for trial in self._trials(self._states.RUNNING)}

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """Number and settings of the next trial; None when there are enough.

        The proposal depends on the sampler's seed, the trial's number and the results so far, not on interruptions. A
        trial that failed counts until a later start repeats it.
        """
        trials, waiting = self._trials(), self._trials(self._states.WAITING)
        repeated = sum(_AGAIN in trial.user_attrs for trial in trials)
        if not waiting and len(trials) - repeated >= self._search.n_trials:
            return None
        self._study.sampler = build("samplers", self._seeded(len(trials) - len(waiting)))
        trial = self._study.ask(self._space)
        return trial.number, dict(trial.params)

    def tell(self, number: int, value: float, *, pruned: bool) -> None:
        """Records a result; `value` is the metric, of a pruned trial the values that it reported count."""
        state = self._states.PRUNED if pruned else self._states.COMPLETE
        self._study.tell(number, None if pruned else value, state, skip_if_finished=True)

    def fail(self, number: int) -> None:
        """Records a failure; the next start repeats the trial."""
        self._study.tell(number, state=self._states.FAIL, skip_if_finished=True)

    def figures(self) -> dict[str, Figure]:
        """Optuna's pictures, by name: the metric over the trials and over each key, and which keys mattered."""
        import matplotlib as mpl
        from matplotlib import pyplot
        from matplotlib.ticker import LogLocator
        from optuna.visualization import matplotlib as plots

        mpl.use("agg")
        finished, name = self._trials(self._states.COMPLETE), self._search.metric
        drawn: dict[str, Any] = {}
        with styled(), warnings.catch_warnings():  # optuna sets a style of its own
            warnings.simplefilter("ignore")
            if finished:
                drawn["search_history"] = plots.plot_optimization_history(self._study, target_name=name)
                drawn["search_keys"] = plots.plot_slice(self._study, target_name=name)
            if len(finished) >= _ENOUGH and len({trial.value for trial in finished}) > 1:
                drawn["search_importance"] = plots.plot_param_importances(self._study, target_name=name)
            for axes in np.ravel(drawn.get("search_keys", [])):
                if axes.get_xscale() == "log":
                    axes.xaxis.set_major_formatter(lambda value, _: number(value))
                    axes.xaxis.set_minor_formatter("")  # the default writes mathtext, which is off
                    if axes.get_xlim()[1] < 30 * axes.get_xlim()[0]:
                        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            pyplot.close("all")
        return {name: np.ravel(axes)[0].figure for name, axes in drawn.items()}

    def _seeded(self, number: int) -> dict[str, Any]:
        """The sampler's settings with a seed for one trial: the same seed for each would repeat the same proposal."""
        sampler = dict(self._search.sampler)
        if isinstance(sampler.get("seed"), int) and sampler.get("name") not in _ONE_SEQUENCE:
            text = f"{sampler['seed']} trial {number}"
            sampler["seed"] = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return sampler

    def _trials(self, *states: Any) -> list[FrozenTrial]:
        """Trials in these states, or all."""
        trials: list[FrozenTrial] = self._study.get_trials(deepcopy=False, states=states or None)
        return trials
