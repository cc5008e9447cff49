"""A table's labels are the texts that stand there, whatever its dialect; no two of them become one class."""

from __future__ import annotations

import contextlib
import datetime
import json
import random
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from feedrate.dataset import Catalog
from feedrate.errors import UserError


def written(root: Path, labels: list[str], task: str = "auto") -> Catalog:
    """The catalog of a CSV with these labels, the last of them in 'validation'."""
    rows = [f'x{i},"{label}",{"train" if i < len(labels) - 1 else "validation"}' for i, label in enumerate(labels)]
    root.mkdir(exist_ok=True)
    (root / "samples.csv").write_text("\n".join(["id,label,partition", *rows, ""]), encoding="utf-8")
    return Catalog.read(root, task, suffix=None)


def refused(root: Path, labels: list[str], task: str = "auto") -> str:
    with pytest.raises(UserError) as caught:
        written(root, labels, task)
    return str(caught.value)


def parquet(root: Path, labels: Any, task: str = "auto") -> Catalog:
    import pyarrow
    import pyarrow.parquet

    root.mkdir(exist_ok=True)
    columns = {"id": [f"x{i}" for i in range(len(labels))], "partition": ["train"] * (len(labels) - 1) + ["validation"]}
    pyarrow.parquet.write_table(pyarrow.table({**columns, "label": labels}), root / "samples.parquet")
    return Catalog.read(root, task, suffix=None)


def indices(catalog: Catalog) -> list[Any]:
    return [label for labels in catalog.labels.values() for label in labels.tensor.tolist()]


# ---------------------------------------------------------------------------------------------------------
# what labels are
# ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["01001", "1001", "02", "2"], ("01001", "02", "1001", "2")),
        (["12345678901234567890", "12345678901234567891"], ("12345678901234567890", "12345678901234567891")),
        (["12345678901234567890.0", "12345678901234567891.0"], ("12345678901234567890.0", "12345678901234567891.0")),
        (["1E2", "100"], ("100", "1E2")),
        (["true", "1"], ("1", "true")),
        (["True", "true"], ("True", "true")),
        (["06:00", "18:30"], ("06:00", "18:30")),
        (["2024-01-01", "2024-01-02"], ("2024-01-01", "2024-01-02")),
        (["10", "9", "-1"], (-1, 9, 10)),
        (["10.0", "9.0", "1.0"], ("1.0", "9.0", "10.0")),  # numbers in their order, named as they stand there
        (["010", "09", "01"], ("01", "09", "010")),
        (["1", " 1"], (" 1", "1")),
        (["-0", "0"], ("-0", "0")),
        (["12ab", "1e99", "3412", "9e999"], ("12ab", "1e99", "3412", "9e999")),  # looks like numbers, in part
        (["1_000", "1000"], ("1000", "1_000")),
        (["٣", "3"], ("3", "٣")),
        (["NA", "ZA"], ("NA", "ZA")),
        (["false", "true"], (False, True)),
        (["cat", "[sic", "[a]"], ("[a]", "[sic", "cat")),
        (["9" * 5_000, "1" * 5_000], ("1" * 5_000, "9" * 5_000)),
    ],
    ids=lambda labels: str(labels)[:30],
)
def test_each_text_in_a_CSV_is_a_class_of_its_own_named_as_it_stands_there(
    tmp_path: Path, labels: list[str], classes: tuple[Any, ...]
) -> None:
    catalog = written(tmp_path, labels)
    assert catalog.targets.classes == classes
    assert [type(name) for name in catalog.targets.classes] == [type(name) for name in classes]
    names = [name if isinstance(name, str) else json.dumps(name) for name in classes]
    assert [names[index] for index in indices(catalog)] == labels


def test_no_two_texts_are_ever_one_class(tmp_path: Path) -> None:
    draw, read = random.Random(0), 0
    parts = ["0", "1", "00", "1.", ".0", "e1", "E0", "+", "-", " ", "_", "true", "x", "é", "e\u0301", "inf", "NA"]
    for _ in range(300):
        labels = ["".join(draw.choices(parts, k=draw.randint(1, 4))) for _ in range(draw.randint(2, 6))]
        with contextlib.suppress(UserError):  # NA among numbers is no label
            catalog = written(tmp_path, labels, "classification")
            names = [name if isinstance(name, str) else json.dumps(name) for name in catalog.targets.classes or ()]
            assert [names[index] for index in indices(catalog)] == labels
            read += 1
    assert read > 280


@pytest.mark.parametrize(
    "labels",
    [["3", "1", "10"], ["true", "false", "true"], ["0.5", "1", "2.25"], ["b", "a", "b"], ["[1, 2]", "[0.5, 0]"]],
)
def test_a_CSV_and_JSON_that_say_the_same_have_one_digest(tmp_path: Path, labels: list[str]) -> None:
    found = written(tmp_path, labels)
    names = [f"x{i}" for i in range(len(labels))]
    values = labels if "b" in labels else [json.loads(label) for label in labels]
    (tmp_path / "labels.json").write_text(json.dumps(dict(zip(names, values, strict=True))))
    (tmp_path / "partition.json").write_text(json.dumps({"train": names[:-1], "validation": names[-1:]}))
    (tmp_path / "samples.csv").unlink()
    assert Catalog.read(tmp_path, suffix=None).digest == found.digest


def test_numbers_with_a_fraction_are_quantities_however_they_are_written(tmp_path: Path) -> None:
    catalog = written(tmp_path, ["1", "1.0", "2.50", "1e-1", "+3", " 4 "])
    assert (catalog.targets.task, indices(catalog)) == ("regression", pytest.approx([1, 1, 2.5, 0.1, 3, 4]))
    assert written(tmp_path, ["1", "1.0", "2.50"], "classification").targets.classes == ("1", "1.0", "2.50")
    assert indices(written(tmp_path, ["01", "1", "2"], "regression")) == [1, 1, 2]


def test_what_is_no_number_among_numbers_is_refused_or_noted_with_its_ID(tmp_path: Path) -> None:
    assert "without a label: 'x1', 'x2' (2 in all)" in refused(tmp_path, ["0", "NA", "nan", "1"])
    assert "without a label: 'x1' (1 in all)" in refused(tmp_path, ["cat", "", "dog"])
    assert "ID 'x2' has the label \"n.a.\"" in refused(tmp_path, ["0.5", "1.5", "n.a."])
    assert "ID 'x1' has the label \"inf\"" in refused(tmp_path, ["0.5", "inf", "1.5"])
    assert "ID 'x1' has the label Infinity" in refused(tmp_path, ["0.5", "1e400", "1.5"])
    assert "ID 'x1' has the label \"cat\"" in refused(tmp_path, ["1", "cat", "2"], "regression")
    catalog = written(tmp_path, ["0", "1", "0", "cat", "1"])
    assert catalog.targets.classes == ("0", "1", "cat")
    assert "1 of 5 are texts, the others are not: the first is that of ID 'x3', \"cat\"" in catalog.notes[0]


def test_labels_that_differ_only_by_case_or_outer_white_space_are_counted_in_a_note(tmp_path: Path) -> None:
    catalog = written(tmp_path, ["cat", "Cat", "dog", "cat ", "cat", "dog", "fish"])
    assert catalog.targets.num_outputs == 5
    (note,) = (note for note in catalog.notes if "case" in note)
    assert (
        '2 labels differ from others only by case, outer white space or Unicode form, such as "Cat" and "cat"' in note
    )
    labels = {"x0": "é", "x1": "e\u0301", "x2": "é"}
    (note,) = Catalog.of(tmp_path, {"train": ["x0", "x1"], "validation": ["x2"]}, labels).notes
    assert "1 labels differ" in note
    assert not any("case" in note for note in written(tmp_path, ["a", "b", "a"]).notes)


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        ([datetime.date(2024, 1, 2), datetime.date(2024, 1, 1)], ("2024-01-01", "2024-01-02")),
        ([datetime.time(6, 0), datetime.time(18, 30)], ("06:00:00.000000", "18:30:00.000000")),
        ([Decimal("10.00"), Decimal("9.00")], ("9.00", "10.00")),
        ([True, False], (False, True)),
        ([3, 1], (1, 3)),
        ([2.0, 1.0], (1, 2)),
        (["01", "1"], ("01", "1")),
    ],
    ids=str,
)
def test_types_of_Parquet_are_the_classes_that_they_show(
    tmp_path: Path, labels: list[Any], classes: tuple[Any, ...]
) -> None:
    import pyarrow

    for column in (pyarrow.array(labels), pyarrow.array(labels).dictionary_encode()):
        catalog = parquet(tmp_path, column)
        assert catalog.targets.classes == classes
        assert sorted(indices(catalog)) == [0, 1]


def test_decimals_and_lists_in_Parquet_are_quantities_and_vectors(tmp_path: Path) -> None:
    assert indices(parquet(tmp_path, [Decimal("1.50"), Decimal("2.00")])) == [1.5, 2.0]
    assert indices(parquet(tmp_path, [[True, False], [False, False]])) == [[1, 0], [0, 0]]
    assert indices(parquet(tmp_path, [[Decimal("1.5"), Decimal("0.5")], [Decimal("2.5"), Decimal("0.0")]])) == [
        [1.5, 0.5],
        [2.5, 0.0],
    ]
    with pytest.raises(UserError, match="without a label: 'x0' "):
        parquet(tmp_path, [None, datetime.date(2024, 1, 1)])


def test_a_list_of_true_and_false_is_a_vector_of_1_and_0(tmp_path: Path) -> None:
    catalog = written(tmp_path, ["[true, false]", "[false, false]"])
    assert (catalog.targets.task, indices(catalog)) == ("regression", [[1, 0], [0, 0]])
    assert "[true, 1]" in refused(tmp_path, ["[true, false]", "[true, 1]"])


def test_lists_of_one_number_are_classes_in_every_form_of_a_table(tmp_path: Path) -> None:
    for catalog in (written(tmp_path, ["[2]", "[0]", "[2]"]), parquet(tmp_path / "p", [[2], [0], [2]])):
        assert (catalog.targets.classes, indices(catalog)) == ((0, 2), [1, 0, 1])
    assert written(tmp_path / "b", ["[true]", "[false]"]).targets.classes == (False, True)


# ---------------------------------------------------------------------------------------------------------
# dialects and encodings
# ---------------------------------------------------------------------------------------------------------


def raw(root: Path, content: bytes) -> Catalog:
    (root / "samples.csv").write_bytes(content)
    return Catalog.read(root, suffix=None)


@pytest.mark.parametrize("labels", [["[1]", "[1.0]", "[ 1]", "[2]"], ["[true]", "[ true]"], ["[1.0]", "[2.0]", "[3]"]])
def test_no_two_lists_of_one_number_are_one_class(tmp_path: Path, labels: list[str]) -> None:
    catalog = written(tmp_path, labels)
    assert set(catalog.targets.classes) == set(labels)
    assert catalog.targets.num_outputs == len(labels)


def test_lists_of_one_number_with_a_fraction_are_quantities_however_they_are_written(tmp_path: Path) -> None:
    catalog = written(tmp_path, ["[0.5]", "[0.50]", "[1]"])
    assert (catalog.targets.task, catalog.targets.num_outputs) == ("regression", 1)


def test_a_quoted_newline_in_a_column_that_is_not_needed_does_no_harm_in_a_table_of_any_size(tmp_path: Path) -> None:
    rows = "".join(f'x{i},{i % 3},train,"a\nb, ""c"""\n' for i in range(100_000))
    catalog = raw(tmp_path, ("id,label,partition,report\n" + rows + 'v,0,validation,"\n"\n').encode())
    assert len(catalog.partition["train"]) == 100_000
    long = "line\n" * 1_000_000  # one cell of 5 MB
    catalog = raw(tmp_path, f'id,label,partition,report\na,0,train,"{long}"\nb,1,validation,""\n'.encode())
    assert list(catalog.partition["validation"]) == ["b"]


def test_what_is_not_needed_may_be_in_any_encoding_and_twice(tmp_path: Path) -> None:
    content = "\r\n\nGröße,id,label,Größe,partition\nä,a,ä,ß,train\nü,b,ö,ß,validation\n".encode("cp1252")
    content = content.replace(b"a,\xe4,", "a,ä,".encode()).replace(b"b,\xf6,", "b,ö,".encode())
    assert raw(tmp_path, content).targets.classes == ("ä", "ö")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_named_with_the_one_expected(tmp_path: Path, encoding: str) -> None:
    with pytest.raises(UserError) as caught:
        raw(tmp_path, "id,label,partition\na,0,train\nb,1,validation\n".encode(encoding))
    message = str(caught.value)
    assert "UTF-8 is expected" in message
    assert "\0" not in message


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ("ä,0,train", "the id of row 2 is in another encoding"),
        ("c,ä,train", "the label of row 2"),
        ("c,0,trän", "the partition of row 2"),
        ("ä,0", "cannot be read as csv"),
    ],
)
def test_a_needed_column_in_another_encoding_is_named_with_its_row(tmp_path: Path, row: str, part: str) -> None:
    with pytest.raises(UserError) as caught:
        raw(tmp_path, f"id,label,partition\na,0,train\n{row}\n".encode("cp1252"))
    assert part in str(caught.value)


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_another_separator_is_explained_whatever_the_encoding(tmp_path: Path, separator: str) -> None:
    with pytest.raises(UserError, match=r"separated by commas.*\nIts columns: id.label.partition.Gr\?\?e") as caught:
        raw(tmp_path, "id,label,partition,Größe\na,0,train,1\n".replace(",", separator).encode("cp1252"))
    str(caught.value).encode()
