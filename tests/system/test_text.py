"""Numbers, durations and tables read well; flat keys keep every value."""

from __future__ import annotations

import shlex

from feedrate.system.text import duration, flatten, in_columns, number, table, wrapped_command


def test_numbers_and_durations_are_short() -> None:
    values = [0.123456, 4.256, 1234567.0, 3.0, float("nan"), -1500.2, 999.7]
    assert [number(value) for value in values] == ["0.1235", "4.26", "1,234,567", "3", "nan", "-1,500", "1,000"]
    assert [duration(value) for value in (1.25, 42.4, 185, 7800)] == ["1.2 s", "42 s", "3 min 5 s", "2 h 10 min"]


def test_long_lines_are_wrapped_at_words_and_rows_of_a_table_are_not() -> None:
    row, path = f"| {150 * 'x'} | y |", 130 * "p"
    lines = in_columns(f"{40 * 'word '}end\n\n{row}\n{path}\n    indented").splitlines()
    assert [len(line) <= 100 for line in lines] == [True, True, True, True, False, False, True]
    assert lines[4:] == [row, path, "    indented"]
    assert " ".join(lines[:3]).split() == [*(40 * ["word"]), "end"]


def test_a_long_command_is_wrapped_and_stays_the_same_command() -> None:
    overrides = [f"+model.key{i}=[{i}, it's]" for i in range(20)]
    command = shlex.join(["python", "src/train.py", *overrides, "x=" + 99 * "y"])
    lines = wrapped_command(command).splitlines()
    assert len(lines) > 5
    assert max(map(len, lines[:-1])) <= 90
    assert shlex.split(wrapped_command(command).replace("\\\n", "")) == shlex.split(command)
    assert wrapped_command("python src/train.py seed=3") == "python src/train.py seed=3"


def test_tables_are_aligned_and_escape_what_separates_columns() -> None:
    rows = [["a|b", "1"], ["c", "1,000"]]
    assert table(["name", "n"], rows, left=1) == "name      n\n----  -----\na|b       1\nc     1,000"
    assert table(["name", "n"], rows, left=1, markdown=True).splitlines() == [
        "| name |     n |", "|:-----|------:|", "| a\\|b |     1 |", "| c    | 1,000 |",
    ]  # fmt: skip


def test_flat_keys_keep_empty_mappings() -> None:
    assert flatten({"loader": {"batch_size": 64, "own": {}}, "seed": None}) == {
        "loader.batch_size": 64, "loader.own": {}, "seed": None,
    }  # fmt: skip
