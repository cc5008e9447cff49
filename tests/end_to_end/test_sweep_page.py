"""The MLflow page of a real sweep in a real headless Chromium: which setting is best shows without its children."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import test_browser
from test_browser import Browser

from pages import served
from sweep_process import sweep

pytestmark = [pytest.mark.browser, pytest.mark.slow]

folder, browser = test_browser.folder, test_browser.browser  # fixtures


@pytest.fixture(scope="module")
def swept(folder: Path, browser: Browser, digits: Path, make_store: Callable[[Path], Path]) -> SimpleNamespace:
    """A sweep over workers and batch size, and its parent run; after `browser`, so that it is not made in vain."""
    done = sweep(folder, digits, f"tracking.uri={make_store(folder)}", "tracking.system_metrics=false",
                 "+model.death=no", "loader.num_workers=0,1", "loader.batch_size=2,4",
                 f"hydra.sweep.dir={folder}/sweep")  # fmt: skip
    assert done.returncode == 0, done.stderr
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder}/mlflow.db")
    runs = client.search_runs([client.get_experiment_by_name("feedrate").experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    children = [run for run in runs if run is not parent]
    return SimpleNamespace(
        parent=parent, children=children, links=dict(re.findall(r"(this sweep|all runs) +(http\S+)", done.stdout))
    )


@pytest.fixture(scope="module")
def links(folder: Path, browser: Browser, swept: SimpleNamespace) -> Iterator[dict[str, str]]:
    """The links that the sweep has printed, on pages that are served by src/ui.py."""
    with served(folder / "mlflow.db") as pages:
        # MLflow opens a chat panel on a browser's first visit, once
        browser.driver.get(f"{pages.url}/health")
        browser.driver.execute_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
        yield {name: re.sub(r"http://127\.0\.0\.1:\d+", pages.url, link) for name, link in swept.links.items()}


def shown_pictures(driver: Any) -> list[str]:
    """Names of the artifacts whose pictures are on the page and have arrived."""
    script = "return [...document.images].filter(i => i.naturalWidth > 300).map(i => i.src + ' ' + i.alt)"
    return [found for source in driver.execute_script(script) for found in re.findall(r"\w+\.png", source)[:1]]


def test_the_table_of_runs_has_the_parent_with_its_best_figures_and_its_children_folded(browser, swept, links):
    best = (
        f"{swept.parent.data.metrics['best/accuracy']:g}"[:5],
        str(swept.parent.data.metrics["loader/samples_per_s"]).split(".", maxsplit=1)[0],
    )
    name = "sweep mlp-digits num_workers x batch_size"
    text = browser.open(links["all runs"], name, "5 matching runs", "0, 1", "2, 4", *best)
    assert len(re.findall(r"^net-|digits-w", text, re.MULTILINE)) == 0  # no child


def test_the_parents_page_names_the_best_setting_first_and_shows_table_and_heat_maps_in_place(browser, swept, links):
    workers, batch = re.findall(r"\d+", swept.parent.data.tags["feedrate.best"])
    best = f"workers {workers}, batch size {batch}"  # behind `Fastest:`, or as the cheapest of all that are as fast
    text = browser.open(links["this sweep"], best, "Finished", "Show more", "Metrics (4)")
    assert text.index(best) < text.index("Show more")
    browser.until(lambda: browser.driver.find_element("xpath", "//*[text()='Show more']").click() is None)
    text = browser.wait_for(
        "Show less", "samples/s", "wait %", "step ms", "free cores", "epoch s", "best epoch", "validation accuracy"
    )
    assert re.search(r"^python src/train.py (.*\\\n)*.*loader.num_workers", text, re.MULTILINE)
    browser.until(lambda: shown_pictures(browser.driver) == ["samples_per_s.png", "wait_pct.png"])
    browser.keep("sweep")
    link = browser.driver.find_element("link text", "best job").get_attribute("href")
    (best_job,) = (run for run in swept.children if run.info.run_id in link)
    assert [best_job.data.params[f"loader.{key}"] for key in ("num_workers", "batch_size")] == [workers, batch]
    browser.open(link, best_job.info.run_name, "validation accuracy after 1 epoch")
