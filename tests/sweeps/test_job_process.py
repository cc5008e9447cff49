"""A job as a process: what it is sent and what of its output is shown, and what its exit code means."""

from __future__ import annotations

import os
import sys
import time

import pytest

from hydra_plugins.feedrate_launcher._process import JobProcess, outcome


def test_lines_of_jobs_that_run_at_once_bear_their_number_and_empty_ones_are_left_out(capsys):
    code = (
        "import sys; print('one\\n\\ntwo', flush=True); print('\\n' + sys.stdin.read(), file=sys.stderr); sys.exit(3)"
    )
    job = JobProcess([sys.executable, "-c", code], b"what it is sent", os.environ, "[1] ")
    while (ended := job.ended()) is None:
        time.sleep(0.01)
    assert ended == 3
    assert capsys.readouterr().out == "[1] one\n[1] two\n[1] what it is sent\n"


@pytest.mark.parametrize(
    ("code", "status"),
    [(1, "FAILED"), (129, "KILLED"), (130, "KILLED"), (143, "KILLED"), (-9, "KILLED"), (3, "FAILED")],
)
def test_the_exit_code_of_a_job_tells_whether_it_failed_or_was_stopped(tmp_path, code, status):
    assert outcome(code, tmp_path)[0] == status
