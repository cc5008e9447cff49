"""A search as one sweep of the launcher: checks it before it starts, and stands between the study and the jobs.

The study is in _study.py, the settings in _settings.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from feedrate.errors import UserError
from feedrate.reporting.search_report import SearchReport, objective
from feedrate.reporting.sweep_results import Result
from feedrate.runs.provenance import changes, flat
from feedrate.trainer.trial import STORAGE_VARIABLE, TRIAL_VARIABLE
from feedrate.validation import nearest
from hydra_plugins.feedrate_launcher._freeze import Job, compose
from hydra_plugins.feedrate_launcher._lock import claim
from hydra_plugins.feedrate_launcher._sweep import About, Sweep
from hydra_plugins.feedrate_optuna._settings import FloatSpace, IntSpace, ends, in_words, override, search, spaces
from hydra_plugins.feedrate_optuna._study import Study, check

if TYPE_CHECKING:
    from hydra_plugins.feedrate_launcher import FeedrateLauncher

_NOT_COMPARED = ("tracking.", "sweep.", "trainer.resume")


class Searching:
    """One start of a search.

    Args:
        overrides: of the command line, which hold for every trial.
        settings: under hydra.sweeper.

    Raises:
        UserError: a setting is wrong.
    """

    def __init__(self, launcher: FeedrateLauncher, overrides: Sequence[str], settings: Mapping[str, Any]) -> None:
        self._launcher, self._config = launcher, launcher.config
        self._at_once = launcher.prepare()
        self._settings = search(settings)
        self._spaces = spaces(self._settings.space)
        check(self._settings, self._spaces)
        self._overrides = self._fixed(overrides)
        self._checked = self._check_ends()

    def run(self, fresh: Path) -> None:
        """Runs trials until there are enough.

        Args:
            fresh: the folder of a new search.

        Raises:
            UserError: the study is of another search, or a trial failed.
        """
        config = self._checked.config
        claimed = claim(fresh, f"study {self._settings.study}", again=config.sweep.again, goes_on=self._same)
        claimed.write(search=self._identity())
        self._path = claimed.folder.path / "study.db"
        logarithmic = [
            key for key, space in self._spaces.items() if isinstance(space, (FloatSpace, IntSpace)) and space.log
        ]
        about = About(
            name=f"search {self._settings.study}"[:100],
            sweep_id=f"study {self._settings.study}",
            settings={key.lstrip("+"): in_words(space) for key, space in self._spaces.items()},
            config=config,
            report=SearchReport(
                [key.lstrip("+") for key in self._spaces],
                self._settings.metric,
                self._settings.direction,
                [key.lstrip("+") for key in logarithmic],
                lambda: {key.lstrip("+"): share for key, share in self._study.importance().items()},
            ),
            words=self._words,
        )
        sweep = self._sweep = Sweep(self._config, about, claimed, self._at_once)
        with sweep.stoppable(), sweep.open([]):
            self._study = Study(self._path, self._settings, self._spaces)
            interrupted = self._take_up()
            self._left = iter(interrupted)
            sweep.run(self._next, self._ended)
        if sweep.outcome[1]:
            raise UserError(f"{sweep.outcome[1]}; the table says why. The same command tries them again")

    # -----------------------------------------------------------------------------------------------------
    # before the first job
    # -----------------------------------------------------------------------------------------------------

    def _fixed(self, overrides: Sequence[str]) -> list[str]:
        searched = {key.lstrip("+") for key in self._spaces}
        for parsed in OverridesParser.create().parse_overrides(list(overrides)):
            key = parsed.get_key_element().lstrip("+~")
            if parsed.is_sweep_override():
                raise UserError(
                    f"{parsed.input_line}: a search takes one value for each key; what is to be tried stands in "
                    "hydra.sweeper.space"
                )
            if key in searched:
                raise UserError(
                    f"{parsed.input_line}: {key} is searched (hydra.sweeper.space), so it cannot be set too"
                )
        return list(overrides)

    def _check_ends(self) -> Job:
        """Composes a job at both ends of every range, so that a wrong key or range is answered at once."""
        first = {key: ends(space)[0] for key, space in self._spaces.items()}
        job = self._job(0, first)
        for key, space in self._spaces.items():
            for value in ends(space)[1:]:
                self._job(0, {**first, key: value})
        return job

    def _identity(self) -> dict[str, Any]:
        """What makes trials comparable: metric, ranges, and every setting that is not searched."""
        searched = {key.lstrip("+") for key in self._spaces}
        groups = tuple(f"{key}." for key in searched)
        fixed = {
            key: value
            for key, value in flat(asdict(self._checked.config)).items()
            if key not in searched and not key.startswith((*_NOT_COMPARED, *groups))
        }
        return json.loads(  # type: ignore[no-any-return]
            json.dumps(
                {
                    "hydra.sweeper.metric": self._settings.metric,
                    "hydra.sweeper.direction": self._settings.direction,
                    **{f"hydra.sweeper.space.{key}": in_words(space) for key, space in self._spaces.items()},
                    **fixed,
                },
                default=str,
            )
        )

    def _same(self, facts: Mapping[str, Any]) -> bool:
        """Whether the study of that name may be gone on with.

        Raises:
            UserError: it is of another search.
        """
        if different := changes(facts.get("search") or {}, self._identity()):
            raise UserError(
                f"hydra.sweeper.study={self._settings.study} is of another search: {different}\n"
                "Give this one another name, or begin the study anew with sweep.again=true"
            )
        return True

    # -----------------------------------------------------------------------------------------------------
    # between study and jobs
    # -----------------------------------------------------------------------------------------------------

    def _take_up(self) -> list[Job]:
        """Trials of earlier starts: those that ended stand in the table, those that were interrupted are to go on."""
        study, interrupted = self._study, []
        for number, params in study.ended().items():
            self._sweep.finished_before(self._job(number, params))
        jobs = [self._job(number, params) for number, params in study.running().items()]
        self._sweep.wait_for(jobs)
        for job in jobs:
            summary = self._sweep.finished_before(job)
            if summary:  # the kill came between the job's end and the study's note of it
                self._ended(job, self._sweep.results[job.number], summary)
            else:
                interrupted.append(job)
        known, wanted = len(self._sweep.results), self._settings.n_trials
        print(
            f"study {self._settings.study}: {known} of {wanted} trials are done"
            + ("; more with hydra.sweeper.n_trials=N, anew with sweep.again=true" if known >= wanted else "")
            if known
            else f"study {self._settings.study}: {wanted} trials"
        )
        return interrupted

    def _next(self) -> Job | None:
        job = next(self._left, None)
        if job is not None:
            return job
        while (drawn := self._study.ask()) is not None:
            number, params = drawn
            try:
                return self._job(number, params)
            except UserError as error:  # keys that exclude each other
                self._study.fail(number, invalid=True)
                print(f"trial {number} is left out: {error}")
        return None

    def _ended(self, job: Job, result: Result, summary: Mapping[str, Any]) -> None:
        metric = self._settings.metric
        if not summary:
            if result.status == "FAILED" or not self._sweep.stopped:  # what was interrupted goes on at the next start
                self._study.fail(job.number)
            return
        value = objective(summary, metric)
        if value is None:
            self._study.fail(job.number)
            known = sorted(summary.get("metrics") or {})
            raise UserError(
                f"hydra.sweeper.metric={metric}: trial {job.number} has no such metric{nearest(metric, known)}\n"
                f"Its metrics: {', '.join(known)}"
            )
        self._study.tell(job.number, value, pruned=result.status == "PRUNED")

    def _job(self, number: int, params: Mapping[str, Any]) -> Job:
        chosen = [override(key, value) for key, value in params.items()]
        keys = [key.lstrip("+") for key in self._spaces]
        (job,) = compose(self._launcher.context, self._config, [[*self._overrides, *chosen]], number, keys)
        environment = {} if not hasattr(self, "_path") else {STORAGE_VARIABLE: str(self._path)}
        return replace(job, environment={**environment, TRIAL_VARIABLE: str(number)})

    def _words(self, job: Job) -> str:
        chosen = " ".join(f"{key}={job.settings.get(key.lstrip('+'))}" for key in self._spaces)
        return f"trial {job.number} of {self._settings.n_trials}: {chosen}"
