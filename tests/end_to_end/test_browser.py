"""What a person sees: a recorded run in MLflow's pages, started as `make ui` does, in a real headless Chromium.

The saved view is MLflow's internal format; this test is what tells that a new MLflow still understands it.
FEEDRATE_SCREENSHOTS=FOLDER keeps pictures of the pages.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from feedrate.config import ROOT
from feedrate.reporting import plots
from feedrate.reporting.run_summary import run_note
from feedrate.timing.verdict import Verdict
from feedrate.tracking import Tracker, open_tracker, run_name
from feedrate.tracking.sweep import picture
from pages import served

pytestmark = pytest.mark.browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--window-size=2600,1300"),
]
TIMEOUT_S = 120
EPOCHS = 8
DIGEST = "0123456789abcdef" * 4


@dataclass
class Browser:
    """A page of MLflow's, and pictures of it in a folder."""

    driver: Any
    pictures: Path

    def open(self, link: str, *expected: str, lines: Sequence[str] = ()) -> str:
        """The page's text once these words and lines are in it; otherwise the test fails with a picture's path."""
        self.driver.get("about:blank")  # otherwise only the part after # changes, and the page is not loaded again
        self.driver.get(link)
        return self.wait_for(*expected, lines=lines)

    def wait_for(self, *expected: str, lines: Sequence[str] = ()) -> str:
        deadline = time.monotonic() + TIMEOUT_S
        text = ""

        def missing() -> list[str]:
            words = [words for words in expected if words not in " ".join(text.split())]
            return words + [line for line in lines if not re.search(rf"^{re.escape(line)}$", text, re.MULTILINE)]

        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):  # the page may be replaced while it is read
                text = self.driver.find_element("tag name", "body").text
                if not missing():
                    time.sleep(1)  # for pictures and charts to be drawn
                    self.keep("page")
                    return text
            time.sleep(0.3)
        pytest.fail(f"not on the page within {TIMEOUT_S} s: {missing()}; see {self.keep('failed')}\n{text}")

    def until(self, there: Callable[[], Any]) -> None:
        """Waits for what is drawn after the page's text has come."""
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            with contextlib.suppress(Exception):  # as above
                if there():
                    return
            time.sleep(0.3)
        pytest.fail(f"not on the page within {TIMEOUT_S} s; see {self.keep('failed')}")

    def keep(self, name: str) -> Path:
        path = self.pictures / f"{len(list(self.pictures.iterdir()))}-{name}.png"
        self.driver.save_screenshot(str(path))
        return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def browser(folder: Path) -> Iterator[Browser]:
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if CHROMIUM is None or DRIVER is None:
        pytest.skip("Chromium or its driver is missing (Debian: apt-get install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in (*FLAGS, f"--user-data-dir={folder / 'profile'}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    started = psutil.Process(driver.service.process.pid).children(recursive=True)
    try:
        pictures = Path(os.environ.get("FEEDRATE_SCREENSHOTS") or folder / "pictures")
        pictures.mkdir(parents=True, exist_ok=True)
        yield Browser(driver, pictures)
    finally:
        driver.quit()
        for process in psutil.wait_procs(started, timeout=10)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


@pytest.fixture(scope="module")
def tracker(folder: Path, browser: Browser, make_store: Callable[[Path], Path]) -> Tracker:
    """A finished run as training records it; after `browser`, so that it is not made where the test is skipped."""
    (folder / "outputs").mkdir()
    uri = str(make_store(folder / "outputs"))
    settings = SimpleNamespace(
        uri=uri, experiment="feedrate", artifacts=None, log_model=False, system_metrics=True, run_name=None
    )
    config = {"model": "mlp", "dataset": "digits", "loader": {"num_workers": 2, "batch_size": 64}, "seed": 3}
    tracker = open_tracker(settings, run_name=run_name(config, ["seed=3"]), run_folder=folder / "run")
    tracker.params(config)
    tracker.tags({"feedrate.verdict": "compute-bound"})
    tracker.dataset("digits", DIGEST, "train", 1437, str(ROOT / "data" / "digits"))
    tracker.dataset("digits", DIGEST, "validation", 360, str(ROOT / "data" / "digits"))
    history: dict[str, dict[int, float]] = {}
    values: dict[str, float] = {}
    for epoch in range(1, EPOCHS + 1):
        values = {
            "train/loss": 2.3 * math.exp(-epoch / 3),
            "validation/loss": 2.2 * math.exp(-epoch / 3) + 0.05,
            "validation/accuracy": 0.98 - 0.9 * math.exp(-epoch / 2),
            "loader/samples_per_s": 3210.0 + epoch,
            "loader/wait_pct": 4.25,
            "compute/ceiling_samples_per_s": 3600.0,
        }
        values |= {"best/epoch": epoch, "best/loss": values["validation/loss"], "best/accuracy": 0.979}
        for name, value in values.items():
            history.setdefault(name, {})[epoch] = value
        tracker.metrics(values, epoch)
        time.sleep(0.3)
    tracker.figure(plots.loss_curves(history), "plots/loss.png")
    tracker.figure(plots.throughput(history), "plots/throughput.png")
    tracker.figure(plots.confusion_matrix(np.eye(10, dtype=int), "0123456789"), "plots/confusion_matrix.png")
    tracker.text("seed: 3\n", "config.yaml")
    command = "python src/train.py seed=3 " + " ".join(f"+model.own_key_{i}=value_{i}" for i in range(20))
    shown = picture("plots/throughput.png")
    reason = "the loader makes 9,999 samples/s, " * 5
    verdict = str(Verdict(kind="compute-bound", waited="training waited 4.2 % of 9 s", reason=reason, figures={}))
    tracker.note(run_note(values, command=command, epochs=EPOCHS, best_epoch=EPOCHS, verdict=verdict, pictures=shown))
    tracker.end("FINISHED")
    return tracker


@pytest.fixture(scope="module")
def page(folder: Path, tracker: Tracker) -> Iterator[str]:
    """Address of the pages, served by src/ui.py."""
    with served(folder / "outputs/mlflow.db") as pages, pytest.MonkeyPatch.context() as patch:
        patch.setenv("PORT", pages.url.rpartition(":")[2])  # as the links of runs expect it
        assert tracker.experiment_url is not None
        assert tracker.experiment_url in pages.said
        yield pages.url


@pytest.fixture(autouse=True)
def _without_the_assistant(browser: Browser, page: str) -> None:
    """MLflow opens a chat panel on a browser's first visit, once; it would take a third of the width here."""
    browser.driver.get(f"{page}/health")  # of the same origin, but without the application, which would open it now
    browser.driver.execute_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")


def test_the_printed_link_shows_the_runs_with_the_columns_that_matter(browser: Browser, tracker: Tracker) -> None:
    # MLflow pins `Created`, with the status before it, beside the run's name
    columns = ("Created", "feedrate.verdict", "loader/wait_pct", "loader/samples_per_s", "best/accuracy", "best/loss")
    later = ("best/epoch", "loader.num_workers", "loader.batch_size", "model", "dataset", "Dataset")
    values = ("compute-bound", "4.25", "3218", "0.979", "mlp", "64", "digits (01234567-train)")
    expected = ("mlp-digits-w2-b64-seed3", "1 matching run", *values)
    browser.open(str(tracker.experiment_url), *expected, lines=[*columns, *later])

    def ordered() -> bool:
        heads = browser.driver.find_elements("css selector", "[role=columnheader]")
        places = {head.text.strip(): head.location["x"] for head in heads}
        found = [places[name] for name in ("Run Name", *columns)]
        return found == sorted(found)

    browser.until(ordered)  # as seen: MLflow places the columns after the table is drawn


def test_the_run_page_shows_the_note_the_result_first_and_both_partitions(browser: Browser, tracker: Tracker) -> None:
    facts = ("Finished", "compute-bound", "loader.num_workers", "digits (01234567-train)")
    result, verdict = "validation accuracy in epoch 8, the best of 8", "compute-bound training waited"
    text = browser.open(str(tracker.url), "mlp-digits-w2-b64-seed3", result, *facts)
    assert text.index(result) < text.index(verdict)
    if "Show more" in text:
        browser.until(lambda: browser.driver.find_element("xpath", "//*[text()='Show more']").click() is None)
    script = "return [...document.images].filter(image => image.naturalWidth > 500).map(image => image.src)"
    browser.until(lambda: any("throughput.png" in source for source in browser.driver.execute_script(script)))
    browser.keep("run")
    browser.driver.set_window_size(1500, 1300)
    wide = "e => e.clientWidth > 700 && e.scrollWidth > e.clientWidth + 1"
    wide = f"return [...document.querySelectorAll('*')].filter({wide}).map(e => e.outerHTML.slice(0, 99))"
    browser.until(lambda: browser.driver.execute_script(wide) == [])
    browser.keep("run1500")
    browser.driver.set_window_size(2600, 1300)
    dataset = "(//*[contains(., 'digits (01234567-train)')])[last()]"
    browser.until(lambda: browser.driver.find_element("xpath", dataset).click() is None)
    browser.wait_for("2 datasets used", "digits (01234567-validation)", "samples: 1437")


def test_metrics_are_charts_grouped_by_prefix(browser: Browser, tracker: Tracker, page: str) -> None:
    groups = ("best (3)", "compute (1)", "loader (2)", "train (1)", "validation (2)")
    browser.open(_tab(tracker, "model-metrics"), *groups, "samples_per_s")
    browser.until(lambda: browser.driver.find_elements("css selector", ".js-plotly-plot"))


def test_system_metrics_have_a_tab_of_their_own(browser: Browser, tracker: Tracker, page: str) -> None:
    browser.open(_tab(tracker, "system-metrics"), "cpu_utilization_percenta", "process_cpu_cores")


def test_pictures_and_the_configuration_are_shown_in_place(browser: Browser, tracker: Tracker, page: str) -> None:
    browser.open(_tab(tracker, "artifacts/plots/loss.png"), "loss.png", "confusion_matrix.png", "config.yaml")

    def picture() -> bool:
        script = "return [...document.images].filter(image => image.naturalWidth > 500).map(image => image.src)"
        return any(
            "loss.png" in source or source.startswith("blob:") for source in browser.driver.execute_script(script)
        )

    browser.until(picture)
    browser.open(_tab(tracker, "artifacts/config.yaml"), "seed: 3")


def _tab(tracker: Tracker, name: str) -> str:
    base, _, query = str(tracker.url).rpartition("?")
    return f"{base}/{name}?{query}"
