"""A job as a process: what of its output is shown, and what its exit code means."""

from __future__ import annotations

import os
import sys

import pytest

from hydra_plugins.feedrate_launcher._process import JobProcess, outcome


def test_lines_of_jobs_that_run_at_once_bear_their_number_and_empty_ones_are_left_out(capsys):
    code = "import sys; print('one\\n\\ntwo'); print('\\nSIGTERM: stopping', file=sys.stderr)"
    assert JobProcess([sys.executable, "-c", code], os.environ, "[1] ").wait() == 0
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("[1] one\n[1] two\n", "[1] SIGTERM: stopping\n")


@pytest.mark.parametrize(
    ("code", "status"),
    [(1, "FAILED"), (129, "KILLED"), (130, "KILLED"), (143, "KILLED"), (-9, "KILLED"), (3, "FAILED")],
)
def test_the_exit_code_of_a_job_tells_whether_it_failed_or_was_stopped(tmp_path, code, status):
    assert outcome(code, tmp_path, "its last words")[0] == status
