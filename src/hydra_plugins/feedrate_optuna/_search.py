"""A search as one sweep of the launcher: checked before it starts, then a job for each trial of the study."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from feedrate.errors import UserError
from feedrate.reporting.picture import optional
from feedrate.reporting.report import SearchReport, objective
from feedrate.reporting.results import JobResult, key_values
from feedrate.runs.provenance import changes
from feedrate.system.text import flatten
from feedrate.trainer.pruning import STORAGE_VARIABLE, TRIAL_VARIABLE
from feedrate.validation import nearest
from hydra_plugins.feedrate_launcher._folder import add, open_folder, wait_for
from hydra_plugins.feedrate_launcher._jobs import Job, compose
from hydra_plugins.feedrate_launcher._sweep import Sweep
from hydra_plugins.feedrate_optuna._settings import checked, ends, in_words, override
from hydra_plugins.feedrate_optuna._study import Study

if TYPE_CHECKING:
    from hydra_plugins.feedrate_launcher import FeedrateLauncher

_NOT_COMPARED = ("tracking.", "sweep.", "trainer.resume")


class Searching:
    """One start of a search, from the overrides of every trial and the settings under hydra.sweeper.

    Raises:
        UserError: a setting is wrong.
    """

    def __init__(self, launcher: FeedrateLauncher, overrides: Sequence[str], settings: Mapping[str, Any]) -> None:
        self._launcher, self._config = launcher, launcher.config
        self._at_once = launcher.prepare()
        self._search, self._space = checked(settings)
        self._keys = [key.lstrip("+") for key in self._space]
        self._overrides = list(overrides)
        self._path: Path | None = None
        if twice := key_values(overrides).keys() & set(self._keys):
            raise UserError(f"{', '.join(twice)} is searched (hydra.sweeper.space), so it cannot be set too")
        # both ends of every range, so that a wrong key or range is an error before the first trial
        first = {key: ends(space)[0] for key, space in self._space.items()}
        self._checked = self._job(0, first)
        for key, space in self._space.items():
            for value in ends(space)[1:]:
                self._job(0, {**first, key: value})

    def run(self, fresh: Path) -> None:
        """Runs trials until there are enough; `fresh` is the folder of a new search.

        Raises:
            UserError: the study belongs to another search, or a trial failed.
        """
        config, study = self._checked.config, self._search.study
        folder = open_folder(fresh, f"study {study}", again=config.sweep.again, resumes=self._is_same)
        add(folder, search=self._identity())
        self._path = folder.path / "study.db"
        report = SearchReport(self._keys, self._search.metric, self._search.direction)
        sweep = self._sweep = Sweep(
            master=self._config,
            folder=folder,
            at_once=self._at_once,
            name=f"search {study}"[:100],
            settings=dict(zip(self._keys, map(in_words, self._space.values()), strict=True)),
            config=config,
            report=report,
            words=self._words,
        )
        with sweep.open():
            self._study = Study(self._path, self._search, self._space)
            try:
                sweep.run(self._jobs(self._interrupted()), self._ended)
            finally:
                with optional("of the search"):
                    report.pictures = self._study.figures()

    def _identity(self) -> dict[str, Any]:
        """What makes trials comparable: metric, ranges, and every setting that is not searched."""
        left_out = (*_NOT_COMPARED, *(f"{key}." for key in self._keys))
        fixed = {
            key: value
            for key, value in flatten(asdict(self._checked.config)).items()
            if key not in self._keys and not key.startswith(left_out)
        }
        searched = {f"hydra.sweeper.space.{key}": in_words(space) for key, space in self._space.items()}
        goal = {f"hydra.sweeper.{key}": getattr(self._search, key) for key in ("metric", "direction")}
        found: dict[str, Any] = json.loads(json.dumps({**goal, **searched, **fixed}, default=str))
        return found

    def _is_same(self, facts: Mapping[str, Any]) -> bool:
        """Whether the study of that name can be continued.

        Raises:
            UserError: it belongs to another search.
        """
        if different := changes(facts.get("search") or {}, self._identity()):
            raise UserError(
                f"hydra.sweeper.study={self._search.study} is of another search: {different}\n"
                "Give this one another name, or begin a new study with sweep.again=true"
            )
        return True

    def _interrupted(self) -> list[Job]:
        """Adds the trials that have ended to the table; returns those that an earlier start did not finish."""
        study, interrupted = self._study, []
        for number, params in study.ended().items():
            self._sweep.finished_before(self._job(number, params))
        jobs = [self._job(number, params) for number, params in study.running().items()]
        wait_for(jobs, self._sweep.folder.path)
        for job in jobs:
            if summary := self._sweep.finished_before(job):  # killed between the job's end and the study's record of it
                self._ended(job, self._sweep.results[job.number], summary)
            else:
                interrupted.append(job)
        known, wanted = len(self._sweep.results), self._search.n_trials
        more = "; more with hydra.sweeper.n_trials=N, a new study with sweep.again=true" if known >= wanted else ""
        print(f"study {self._search.study}: {known} of {wanted} trials are done{more}")
        return interrupted

    def _jobs(self, interrupted: Sequence[Job]) -> Iterator[Job]:
        yield from interrupted
        while (proposed := self._study.ask()) is not None:
            try:
                yield self._job(*proposed)
            except UserError as error:  # keys that exclude each other
                self._study.fail(proposed[0])
                print(f"trial {proposed[0]} is left out: {error}")

    def _ended(self, job: Job, result: JobResult, summary: Mapping[str, Any]) -> None:
        metric = self._search.metric
        if not summary:
            if result.status == "FAILED" or not self._sweep.stopped:  # an interrupted trial continues at the next start
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
        (job,) = compose(self._launcher.context, self._config, [[*self._overrides, *chosen]], number, self._keys)
        environment = {} if self._path is None else {STORAGE_VARIABLE: str(self._path)}
        return replace(job, environment={**environment, TRIAL_VARIABLE: str(number)})

    def _words(self, job: Job) -> str:
        return f"trial {job.number} of {self._search.n_trials}: {job.chosen}"
