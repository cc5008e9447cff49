"""A dataset folder is read and checked before any work starts; each mistake is named with its number and its remedy."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from feedrate.config import resolve_path
from feedrate.dataset import Catalog
from feedrate.errors import UserError

PARTITION = {"train": ["a", "b", "scans/007"], "validation": ["c"]}
LABELS = {"a": 0, "b": 1, "scans/007": 0, "c": 1}

_listening: list[list[tuple[str, str]]] = []  # each gets the folders listed and the files opened


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if _listening and event in ("os.scandir", "os.listdir", "open"):
        _listening[0].append((event, str(arguments[0])))


sys.addaudithook(_audit)  # for the life of the process: a hook cannot be removed


def write(root: Path, partition: Any = PARTITION, labels: Any = LABELS, files: Any = None) -> Path:
    """A dataset folder; partition and labels are written as JSON, or as they are where they are text."""
    root.mkdir(parents=True, exist_ok=True)
    for name, value in (("partition.json", partition), ("labels.json", labels)):
        if value is not None:
            (root / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")
    for ID in LABELS if files is None else files:
        path = root / f"{ID}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return root


def table(root: Path, text: str) -> Path:
    write(root, None, None)
    (root / "samples.csv").write_text(text, encoding="utf-8")
    return root


def parquet(root: Path, **columns: Any) -> Path:
    import pyarrow
    import pyarrow.parquet

    write(root, None, None)
    pyarrow.parquet.write_table(pyarrow.table(columns), root / "samples.parquet")
    return root


def refused(root: Path, **options: Any) -> str:
    """The message with which the folder is refused, which must be short enough to read."""
    with pytest.raises(UserError) as caught:
        Catalog.read(root, **options)
    message = str(caught.value)
    assert len(message.splitlines()) <= 3
    assert len(message) < 700
    return message


# ---------------------------------------------------------------------------------------------------------
# the three forms
# ---------------------------------------------------------------------------------------------------------


def check_contents(catalog: Catalog) -> None:
    assert {name: list(ids) for name, ids in catalog.partition.items()} == PARTITION
    assert {name: dict(labels) for name, labels in catalog.labels.items()} == {
        "train": {"a": 0, "b": 1, "scans/007": 0},
        "validation": {"c": 1},
    }
    assert catalog.targets.num_outputs == 2
    assert catalog.notes == ()


def test_partition_and_labels_in_JSON(tmp_path: Path) -> None:
    check_contents(Catalog.read(write(tmp_path)))


def test_a_byte_order_mark_at_the_start_does_no_harm(tmp_path: Path) -> None:
    check_contents(Catalog.read(write(tmp_path, "\ufeff" + json.dumps(PARTITION), "\ufeff" + json.dumps(LABELS))))


ROWS = "id,label,partition\na,0,train\nb,1,train\nscans/007,0,train\nc,1,validation\n"


@pytest.mark.parametrize(
    "text",
    [
        ROWS,
        ROWS.replace("\n", "\r\n"),
        "\ufeff" + ROWS,
        'partition,"extra",label,id\ntrain,,0,a\ntrain,x,1,b\n"train",,0,"scans/007"\nvalidation,,1,c\n',
    ],
)
def test_one_CSV_table(tmp_path: Path, text: str) -> None:
    check_contents(Catalog.read(table(tmp_path, text)))


def test_one_Parquet_table(tmp_path: Path) -> None:
    partition = ["train", "train", "train", "validation"]
    check_contents(Catalog.read(parquet(tmp_path, id=list(LABELS), label=list(LABELS.values()), partition=partition)))


def test_an_ID_in_a_CSV_stays_text(tmp_path: Path) -> None:
    root = table(tmp_path, "id,label,partition\n007,0,train\n1e3,1,train\nNA,1,train\ntrue,0,validation\n")
    for ID in ("007", "1e3", "NA", "true"):
        (root / f"{ID}.pt").touch()
    catalog = Catalog.read(root)
    assert list(catalog.partition["train"]) == ["007", "1e3", "NA"]
    assert list(catalog.partition["validation"]) == ["true"]


def test_labels_in_tables_may_be_texts_numbers_and_vectors(tmp_path: Path) -> None:
    found = Catalog.read(table(tmp_path / "1", ROWS.replace(",0,", ",cat,").replace(",1,", ",dog,")))
    assert found.targets.classes == ("cat", "dog")
    found = Catalog.read(table(tmp_path / "2", ROWS.replace(",0,", ",0.25,")))
    assert (found.targets.task, found.labels["train"]["a"]) == ("regression", 0.25)
    columns = {"id": list(LABELS), "partition": ["train", "train", "train", "validation"]}
    found = Catalog.read(parquet(tmp_path / "3", label=[[1.0, 2.0], [3.0, 4.0], [5.0, 6.0], [7.0, 8.0]], **columns))
    assert found.labels["validation"]["c"].tolist() == [7.0, 8.0]


def test_a_test_partition_is_read_too(tmp_path: Path) -> None:
    partition = {"train": ["a"], "validation": ["b", "c"], "test": ["scans/007"]}
    assert list(Catalog.read(write(tmp_path, partition)).partition["test"]) == ["scans/007"]


def test_the_task_may_be_stated(tmp_path: Path) -> None:
    catalog = Catalog.read(write(tmp_path), task="regression")
    assert (catalog.targets.task, dict(catalog.labels["train"])["b"]) == ("regression", 1.0)


# ---------------------------------------------------------------------------------------------------------
# what is wrong with IDs and labels
# ---------------------------------------------------------------------------------------------------------

SEVEN = [f"x{i}" for i in range(7)]


@pytest.mark.parametrize(
    ("partition", "labels", "fault", "remedy"),
    [
        ({"train": [*SEVEN, *SEVEN], "validation": ["c"]}, {}, "stand twice in 'train'", "keep one"),
        ({"train": ["a", *SEVEN], "validation": SEVEN}, {}, "both in 'train' and in 'validation'", "one partition"),
        ({"train": ["a"], "validation": ["b"], "test": ["c", *SEVEN]}, LABELS, "'test' without a label", "labels.json"),
        ({"train": ["a", *SEVEN], "validation": ["b"]}, {**LABELS, **dict.fromkeys(SEVEN, 0)}, ".pt", "add the files"),
        ({"train": ["a"], "validation": [f"/etc/{x}" for x in SEVEN]}, {}, "no path below", "without leading '/'"),
        ({"train": ["a"], "validation": [f"../{x}" for x in SEVEN]}, {}, "no path below", "'..'"),
        ({"train": ["a"], "validation": [f"a/../{x}" for x in SEVEN]}, {}, "no path below", "'..'"),
        ({"train": ["a"], "validation": [f"{x}/.." for x in SEVEN]}, {}, "no path below", "'..'"),
        ({"train": ["a"], "validation": [f"./{x}" for x in SEVEN]}, {}, "no path below", "'.'"),
        ({"train": ["a"], "validation": [f"a//{x}" for x in SEVEN]}, {}, "no path below", "empty parts"),
        ({"train": ["a"], "validation": [f"{x}/" for x in SEVEN]}, {}, "no path below", "empty parts"),
        ({"train": ["a"], "validation": [""] * 7}, {}, "no path below", "empty parts"),
        ({"train": ["a"], "validation": [f"a\0{x}" for x in SEVEN]}, {}, "no path below", "NUL"),
        ({"train": ["a"], "validation": list(range(7))}, {}, "no text", '"007" in quotes'),
        ({"train": ["a", *[None] * 7], "validation": ["b"]}, {}, "no text", "in quotes"),
        ({"train": ["a", *[["x"]] * 7], "validation": ["b"]}, {}, "no text", "in quotes"),
        ({"train": ["a"], "validation": [f"\ud800{x}" for x in SEVEN]}, {}, "no valid Unicode", "rename"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_up_to_five_offenders_are_named_with_their_number_and_the_remedy(
    tmp_path: Path, partition: Any, labels: Any, fault: str, remedy: str
) -> None:
    message = refused(write(tmp_path, partition, labels))
    assert fault in message
    assert remedy in message
    assert "(7 in all)" in message
    assert ", ..." in message
    assert message.split("(7 in all)")[0].rpartition(fault)[2].count(", ") == 5


def test_three_dots_and_hidden_names_are_names(tmp_path: Path) -> None:
    names = ["...", ".a", "a.", "..a/b..", " ", "a b", "ä/ö", "\n", "..\n"]
    partition = {"train": names, "validation": ["c"]}
    root = write(tmp_path, partition, dict.fromkeys([*names, "c"], 0), [*names, "c"])
    assert list(Catalog.read(root).partition["train"]) == names


def test_a_number_in_the_place_of_an_ID_is_not_shown_as_a_text(tmp_path: Path) -> None:
    assert "no text: 7 (1 in all)" in refused(write(tmp_path, {"train": ["a"], "validation": [7]}))


def test_a_very_long_ID_does_not_fill_the_screen(tmp_path: Path) -> None:
    long = [f"{i}" + "x" * 10_000 for i in range(9)]
    assert "(9 in all)" in refused(write(tmp_path, {"train": ["a"], "validation": long}, {"a": 0}))


def test_labels_without_ID_are_a_note_with_their_number(tmp_path: Path) -> None:
    (note,) = Catalog.read(write(tmp_path, labels={**LABELS, **dict.fromkeys(SEVEN, 0)})).notes
    assert "'x0', 'x1', 'x2', 'x3', 'x4', ... (7 in all); they are not used" in note


def test_a_label_that_does_not_fit_is_named_by_its_ID(tmp_path: Path) -> None:
    message = refused(write(tmp_path, labels={**LABELS, "scans/007": {"class": 1}}))
    assert "'scans/007'" in message
    assert '{"class": 1}' in message


# ---------------------------------------------------------------------------------------------------------
# what is wrong with the files
# ---------------------------------------------------------------------------------------------------------


def test_json_and_table_at_once_are_refused(tmp_path: Path) -> None:
    (write(tmp_path) / "samples.csv").write_text("id,label,partition\n")
    assert "holds partition.json and samples.csv; keep one" in refused(tmp_path)


@pytest.mark.parametrize(
    ("partition", "labels", "parts"),
    [
        ({"train": ["a"], "validation": []}, LABELS, ["'validation' is empty", "at least one ID"]),
        ({"train": ["a"], "validation": ["b"], "test": []}, LABELS, ["'test' is empty", "or leave it out"]),
        ({"train": ["a"]}, LABELS, ["no partition 'validation'", "needed are"]),
        ({}, LABELS, ["no partition 'train'"]),
        ({"train": ["a"], "valid": ["b"]}, LABELS, ["'valid'", "did you mean validation?"]),
        ({"training": ["a"], "validation": ["b"]}, LABELS, ["'training'", "did you mean train?"]),
        ({"train": ["a"], "val": ["b"]}, LABELS, ["'val'", "did you mean validation?"]),
        ({"train": ["a"], "VAL ": ["b"]}, LABELS, ["'VAL '", "did you mean validation?"]),
        ({"train": ["a"], "dev": ["b"]}, LABELS, ["'dev'", "known are train, validation, test"]),
        ({"TRAIN": ["a"], "validation": ["b"]}, LABELS, ["'TRAIN'", "did you mean train?"]),
        ({"train": ["a"], "validation": ["b"], "holdout": ["c"]}, LABELS, ["'holdout'", "train, validation, test"]),
        ({"train": "a", "validation": ["b"]}, LABELS, ["'train' holds a str", "list of IDs"]),
        ({"train": {"a": 1}, "validation": ["b"]}, LABELS, ["'train' holds a dict", "list of IDs"]),
        ({"train": None, "validation": ["b"]}, LABELS, ["'train'", "list of IDs"]),
        (["a", "b"], LABELS, ["partition.json", "holds a list", "{partition: [ID, ...]}"]),
        (PARTITION, [0, 1, 0, 1], ["labels.json", "holds a list", "{ID: label}"]),
        (PARTITION, [], ["labels.json", "holds a list"]),
        (PARTITION, 3, ["labels.json", "{ID: label}"]),
        (PARTITION, None, ["no labels.json", "{ID: label}"]),
        (PARTITION, '{"a": 0,', ["labels.json", "not valid JSON", "line 1 column"]),
        ('{"train": [', LABELS, ["partition.json", "not valid JSON"]),
        ("", LABELS, ["partition.json", "not valid JSON"]),
        ("[" * 100_000, LABELS, ["partition.json", "not valid JSON"]),
        (PARTITION, '{"a": 0, "b": 1, "a": 1, "c": 0}', ["labels.json", "repeated keys: 'a' (1 in all)", "keep one"]),
        ('{"train": ["a"], "train": ["b"], "validation": ["c"]}', LABELS, ["repeated keys: 'train'", "keep one"]),
        (None, LABELS, ["holds no dataset", "partition.json", "samples.csv", "samples.parquet"]),
    ],
    ids=str,
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, partition: Any, labels: Any, parts: list[str]) -> None:
    message = refused(write(tmp_path, partition, labels))
    for part in parts:
        assert part in message


def test_text_that_is_no_UTF_8_is_refused(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "labels.json").write_bytes(b'{"a\xff": 0}')
    assert "labels.json: is not valid JSON" in refused(tmp_path)
    write(tmp_path / "2", None, None)
    (tmp_path / "2/samples.csv").write_bytes(ROWS.encode() + b"\xff\xfe,0,train\n")
    assert "samples.csv" in refused(tmp_path / "2")
    (tmp_path / "2/samples.csv").write_bytes("id,label,partition\na,Käse,train\nb,x,validation\n".encode("latin-1"))
    message = refused(tmp_path / "2")
    assert "samples.csv: UTF-8 is expected, and the label of row 1 is in another encoding" in message
    assert "save the table in UTF-8" in message


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("", ["cannot be read as csv"]),
        ("id,label,partition\n", ["no partition 'train'"]),
        ("a,0,train\nb,1,train\n", ["no column 'id'", "id, label and partition"]),
        (ROWS.replace("label", "Label"), ["no column 'label'"]),
        (ROWS.replace("label", "id"), ["more than one column 'id'"]),
        (ROWS + "d,1\n", ["cannot be read as csv", "row 5 has 2 columns, not 3"]),
        (ROWS + "a,1,validation\nb,1,train\n", ["more than one row: 'a', 'b' (2 in all)", "keep one"]),
        (ROWS + "x,,train\ny,,train\n", ["without a label: 'x', 'y' (2 in all)"]),
        (ROWS.replace(",0,", ",cat,") + "x,,train\n", ["without a label: 'x' (1 in all)"]),
        (ROWS + "x,0,\n", ["unknown partition ''"]),
        (ROWS + ",0,train\n", ["no path below", "''"]),
        (ROWS.replace(",0,", ",nan,").replace(",1,", ",0.5,"), ["without a label: 'a', 'scans/007' (2 in all)"]),
    ],
    ids=repr,
)
def test_a_table_of_another_form_is_refused(tmp_path: Path, text: str, parts: list[str]) -> None:
    message = refused(table(tmp_path, text))
    for part in parts:
        assert part in message


def test_a_Parquet_table_must_hold_texts_as_IDs_and_be_whole(tmp_path: Path) -> None:
    partition = ["train", "train", "validation"]
    root = parquet(tmp_path / "1", id=[7, 8, 9], label=[0, 1, 0], partition=partition)
    assert "no text: 7, 8 (2 in all); write IDs as texts" in refused(root)
    root = parquet(tmp_path / "2", id=["a", "b", None], label=[0, 1, 0], partition=partition)
    assert "no text: None (1 in all)" in refused(root)
    root = parquet(tmp_path / "3", id=["a", "b", "c"], label=[0, None, 0], partition=partition)
    assert "'b' has the label null" in refused(root)
    root = parquet(tmp_path / "4", id=["a", "b", "c"], label=[0, 1, 0], partition=["train", None, "validation"])
    assert "unknown partition None" in refused(root)
    whole = (root / "samples.parquet").read_bytes()
    for cut in (0, 10, len(whole) // 2, len(whole) - 3):
        (root / "samples.parquet").write_bytes(whole[:cut])
        assert "samples.parquet: cannot be read as parquet" in refused(root)


def test_a_root_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    message = refused(tmp_path / "nowhere")
    assert f"dataset.root={tmp_path}/nowhere: no such folder" in message
    assert "partition.json" in message
    (tmp_path / "file").touch()
    assert "is no folder" in refused(tmp_path / "file")
    (tmp_path / "dangling").symlink_to("nowhere")
    assert "no such folder" in refused(tmp_path / "dangling")


def test_what_is_no_regular_file_is_found_without_opening_it(tmp_path: Path) -> None:
    root = write(tmp_path, files=["c"])
    (root / "scans").mkdir()
    (root / "scans/007.pt").symlink_to(root / "c.pt")  # a link to a file is one
    (root / "a.pt").mkdir()
    os.mkfifo(root / "b.pt")
    assert "IDs of 'train' whose ID.pt is no regular file" in refused(root)
    assert "'a', 'b' (2 in all)" in refused(root)
    (root / "scans/007.pt").unlink()
    (root / "scans/007.pt").symlink_to("nowhere")
    assert "'a', 'b', 'scans/007' (3 in all)" in refused(root)


@pytest.mark.parametrize(
    "text", [ROWS.replace(",", ";"), ROWS.replace("label", "Label"), ROWS.replace("label", " label")]
)
def test_a_table_without_a_column_shows_those_it_has(tmp_path: Path, text: str) -> None:
    message = refused(table(tmp_path, text))
    assert "needed are id, label and partition, separated by commas" in message
    assert f"Its columns: {text.splitlines()[0].replace(',', ', ')}" in message


def test_a_list_of_numbers_in_a_CSV_is_a_vector_as_in_JSON(tmp_path: Path) -> None:
    rows = ROWS.replace(",0,", ',"[0, 1.5]",').replace(",1,", ',"[1, 2]",')
    found = Catalog.read(table(tmp_path, rows))
    assert (found.targets.task, found.targets.num_outputs) == ("regression", 2)


def test_a_missing_file_shows_what_its_folder_holds_instead(tmp_path: Path) -> None:
    write(tmp_path, files=["a", "b", "c"])
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans/007.npy").touch()
    message = refused(tmp_path)
    assert "without a file ID.pt: 'scans/007' (1 in all)" in message
    assert "holds, for example, '007.npy'" in message


def test_a_relative_root_that_is_in_the_current_folder_is_hinted_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "fresh/scans")
    monkeypatch.chdir(tmp_path)
    hint = f"relative paths count from the repository: did you mean {tmp_path}/fresh/scans?"
    assert refused(resolve_path("fresh/scans")).endswith(hint)
    assert "did you mean" not in refused(resolve_path("fresh/other"))
    assert "did you mean" not in refused(tmp_path / "no/where")


def test_a_class_may_have_files_with_another_ending_or_none(tmp_path: Path) -> None:
    write(tmp_path, files=["a", "b", "c"])
    assert "'scans/007'" in refused(tmp_path)
    assert len(Catalog.read(tmp_path, suffix=None).partition["train"]) == 3
    for ID in LABELS:
        path = tmp_path / f"{ID}.npy"
        path.parent.mkdir(exist_ok=True)
        path.touch()
    assert len(Catalog.read(tmp_path, suffix=".npy").partition["train"]) == 3


def test_a_folder_named_by_an_ID_may_be_missing_or_a_file(tmp_path: Path) -> None:
    write(tmp_path, {"train": ["a", "no/1", "b.pt/1"], "validation": ["c"]}, {**LABELS, "no/1": 0, "b.pt/1": 0})
    assert "without a file ID.pt: 'no/1', 'b.pt/1' (2 in all)" in refused(tmp_path)


# ---------------------------------------------------------------------------------------------------------
# cost and identity
# ---------------------------------------------------------------------------------------------------------


def test_files_are_found_by_listing_their_folders_once_and_are_not_opened(tmp_path: Path) -> None:
    names = [f"x{i}" for i in range(300)] + [f"scans/deep/{i}" for i in range(300)]
    root = write(tmp_path, {"train": names, "validation": ["c"]}, dict.fromkeys([*names, "c"], 0), [])
    (root / "scans/deep").mkdir(parents=True)
    for ID in [*names, "c"]:
        (root / f"{ID}.pt").touch()
    other = root / "other"
    other.mkdir()
    (other / "loop").symlink_to(other)  # a search that enters folders without samples would not end
    events: list[tuple[str, str]] = []
    _listening.append(events)
    try:
        Catalog.read(root)
    finally:
        _listening.clear()
    assert sorted(path for event, path in events if event != "open") == [str(root), str(root / "scans/deep")]
    opened = sorted(path for event, path in events if event == "open")
    assert opened == [str(root / "labels.json"), str(root / "partition.json")]


def digest(root: Path, **options: Any) -> str:
    return Catalog.read(root, **options).digest


def test_the_digest_names_partitions_IDs_and_labels_and_nothing_else(tmp_path: Path) -> None:
    names = [*LABELS, "d"]

    def of(number: int, partition: Any, labels: Any, **options: Any) -> str:
        return digest(write(tmp_path / str(number), partition, labels, names), **options)

    first = of(0, PARTITION, LABELS)
    assert len(first) == 64
    assert of(1, dict(reversed(PARTITION.items())), dict(reversed(LABELS.items()))) == first
    assert of(2, PARTITION, {**LABELS, "d": 1}) == first  # not used
    assert digest(table(tmp_path / "3", ROWS)) == first
    others = [
        of(4, {**PARTITION, "validation": ["d"]}, {**LABELS, "d": 1}),
        of(5, PARTITION, {**LABELS, "c": 0}),
        of(6, PARTITION, {ID: str(label) for ID, label in LABELS.items()}),
        of(7, {"train": ["a", "b"], "validation": ["c", "scans/007"]}, LABELS),
        of(8, {"train": ["b", "a", "scans/007"], "validation": ["c"]}, LABELS),
        of(9, {**PARTITION, "test": ["d"]}, {**LABELS, "d": 1}),
        of(10, PARTITION, LABELS, task="regression"),
    ]
    assert len({first, *others}) == 8


def test_a_catalog_of_lists_and_dictionaries_at_hand_is_checked_as_well(tmp_path: Path) -> None:
    catalog = Catalog.of(tmp_path, PARTITION, LABELS)
    assert catalog.digest == Catalog.of(tmp_path, PARTITION, LABELS).digest
    with pytest.raises(UserError, match="partition: IDs of 'train' without a label: 'x' "):
        Catalog.of(tmp_path, {**PARTITION, "train": ["x"]}, LABELS)


@pytest.mark.parametrize(
    ("ID", "file", "parts"),
    [
        ("a.pt", "a", ["write IDs without the ending .pt: there is a.pt"]),
        ("scans\\007", "scans/007", ["with '/' between folders, not '\\'", "there is scans/007.pt"]),
        ("scans\\007.pt", "scans/007", ["without the ending .pt, with '/' between folders"]),
        ("Käse/ö", "Ka\u0308se/o\u0308", ["in the Unicode form of the file names", "normalize('NFD', ID)"]),
        ("o\u0308", "ö", ["normalize('NFC', ID)"]),
    ],
)
def test_an_ID_that_is_spelled_otherwise_than_its_file_is_told_so(
    tmp_path: Path, ID: str, file: str, parts: list[str]
) -> None:
    message = refused(write(tmp_path, {"train": [ID], "validation": ["c"]}, {ID: 0, "c": 1}, [file, "c"]))
    assert f"without a file ID.pt: {ID!r} (1 in all)" in message
    for part in parts:
        assert part in message
