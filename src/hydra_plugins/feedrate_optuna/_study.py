"""The stored study of a search: gives the next settings to try, and is told what came of them.

A trial's number is its job's number. How jobs run is the launcher's affair.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedrate.trainer.trial import METRIC, PRUNER, STUDY_NAME, build, open_storage, quiet_optuna
from hydra_plugins.feedrate_optuna._settings import Search, Space, distribution

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

_AGAIN, _INVALID = "again", "invalid"  # a trial's facts: which one it repeats; it could not be composed
NO_PRUNER = {"name": "NopPruner"}
_TELLING = 10  # finished trials below which nothing can be said of what mattered
_ONE_SEQUENCE = ("QMCSampler",)  # samplers whose seed chooses a whole sequence, and not a draw


def check(settings: Search, spaces: Mapping[str, Space]) -> None:
    """Looks before anything begins whether optuna takes the settings.

    Raises:
        UserError: sampler, pruner or a range is none.
    """
    build("samplers", settings.sampler)
    build("pruners", settings.pruner or NO_PRUNER)
    for key, space in spaces.items():
        distribution(key, space)


class Study:
    """Goes on with the study in a file, or begins one.

    Args:
        path: of the SQLite file, absolute.
    """

    def __init__(self, path: Path, settings: Search, spaces: Mapping[str, Space]) -> None:
        self._settings = settings
        self._space = {key: distribution(key, space) for key, space in spaces.items()}
        self._optuna = quiet_optuna()
        self._study = self._optuna.create_study(
            study_name=STUDY_NAME,
            storage=open_storage(path, new=True),
            direction=settings.direction,
            load_if_exists=True,
        )
        self._study.set_user_attr(METRIC, settings.metric)
        self._study.set_user_attr(PRUNER, settings.pruner or NO_PRUNER)
        for trial in self._failed():
            self._study.enqueue_trial(trial.params, user_attrs={_AGAIN: trial.number})

    def ended(self) -> dict[int, dict[str, Any]]:
        """Number -> settings of the trials that came to a result."""
        states = (self._optuna.trial.TrialState.COMPLETE, self._optuna.trial.TrialState.PRUNED)
        return {trial.number: trial.params for trial in self._trials() if trial.state in states}

    def running(self) -> dict[int, dict[str, Any]]:
        """Number -> settings of the trials that an earlier start left in the middle."""
        state = self._optuna.trial.TrialState.RUNNING
        return {trial.number: trial.params for trial in self._trials() if trial.state == state}

    def ask(self) -> tuple[int, dict[str, Any]] | None:
        """Number and settings of the next trial; None when there are enough.

        What is drawn depends on the sampler's seed, the trial's number and the results so far, not on how often the
        search was interrupted. A trial that failed counts until a later start repeats it.
        """
        trials = self._trials()
        waiting = [trial for trial in trials if trial.state == self._optuna.trial.TrialState.WAITING]
        repeated = sum(_AGAIN in trial.user_attrs for trial in trials)
        if not waiting and len(trials) - repeated >= self._settings.n_trials:
            return None
        self._study.sampler = build("samplers", self._seeded(len(trials) - len(waiting)))
        trial = self._study.ask(self._space)
        return trial.number, dict(trial.params)

    def tell(self, number: int, value: float, *, pruned: bool) -> None:
        """A trial came to a result; `value` is the metric."""
        if pruned:  # a pruned trial is judged by what it has reported
            self._study.tell(number, state=self._optuna.trial.TrialState.PRUNED, skip_if_finished=True)
        else:
            self._study.tell(number, value, skip_if_finished=True)

    def fail(self, number: int, *, invalid: bool = False) -> None:
        """A trial came to no result; the next start repeats it unless its settings exclude each other."""
        if invalid:
            self._study._storage.set_trial_user_attr(self._trials()[number]._trial_id, _INVALID, True)
        self._study.tell(number, state=self._optuna.trial.TrialState.FAIL, skip_if_finished=True)

    def importance(self) -> dict[str, float]:
        """Key -> share of the metric's variation that it explains, largest first; empty where it cannot be told yet."""
        if len(self._study.get_trials(states=[self._optuna.trial.TrialState.COMPLETE])) < _TELLING:
            return {}
        # fANOVA (Hutter, Hoos, Leyton-Brown 2014) needs scikit-learn, which comes with mlflow; optuna's default says
        # instead what tells the best tenth of the trials from the others, and there are too few of them
        evaluator = self._optuna.importance.FanovaImportanceEvaluator(seed=0)
        try:
            return dict(self._optuna.importance.get_param_importances(self._study, evaluator=evaluator))
        except (ImportError, ValueError, RuntimeError):  # or all trials are alike
            return {}

    def _failed(self) -> list[FrozenTrial]:
        """Those that are to be repeated."""
        trials = self._trials()
        repeated = {trial.user_attrs.get(_AGAIN) for trial in trials}
        state = self._optuna.trial.TrialState.FAIL
        return [
            trial
            for trial in trials
            if trial.state == state and trial.number not in repeated and _INVALID not in trial.user_attrs
        ]

    def _seeded(self, number: int) -> dict[str, Any]:
        """The sampler's settings for one trial: with the same seed for each it would draw the same again and again."""
        sampler = dict(self._settings.sampler)
        if isinstance(sampler.get("seed"), int) and sampler.get("name") not in _ONE_SEQUENCE:
            text = f"{sampler['seed']} trial {number}"
            sampler["seed"] = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
        return sampler

    def _trials(self) -> list[FrozenTrial]:
        trials: list[FrozenTrial] = self._study.get_trials(deepcopy=False)
        return trials
