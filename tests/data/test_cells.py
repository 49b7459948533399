"""What is a name, a number, a label or missing in CSV files: the rules of the how-to, by hand."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flwr_dmml.data import DataError
from flwr_dmml.data.reading.cells import (
    as_number,
    is_missing,
    label_problems,
    names_rows,
    ordered,
    read_numbers,
)


def numbers(
    folder: Path, text: str, *columns: str, **how: object
) -> tuple[list[object], tuple[str, ...]]:
    (folder / "a.csv").write_text(text, encoding="utf-8")
    found = read_numbers(folder / "a.csv", columns, **how)  # type: ignore[arg-type]
    return found.table.tolist(), found.names


@pytest.mark.parametrize(
    ("text", "rows", "names"),
    [
        ("x,y\n1,2\n", [[1, 2]], ("x", "y")),
        ("1,2\n3,4\n", [[1, 2], [3, 4]], ()),
        ("\ufeff1e-3,+2.\n", [[0.001, 2]], ()),
        # pandas: columns 0, 1, 2 of floats, and its unnamed index
        ("0,1,2\n0.5,1.5,2.5\n", [[0.5, 1.5, 2.5]], ("0", "1", "2")),
        (",0,1\n0,0.5,1.5\n1,2.5,3.5\n", [[0.5, 1.5], [2.5, 3.5]], ("0", "1")),
        (",x,y\n7,1,2\n9,3,4\n", [[1, 2], [3, 4]], ("x", "y")),
        ("Unnamed: 0,x\n0,5\n", [[5]], ("x",)),
        # R: row names in quotes, which need not be numbers
        ('"","x"\n"a",1\n"b",2\n', [[1], [2]], ("x",)),
        # nothing but 0, 1, 2 is a vector; a column of whole numbers may begin with 0
        ("0,1,2\n", [[0, 1, 2]], ()),
        ("0\n1\n0\n", [[0], [1], [0]], ()),
        ("id,0,1\n3,4,5\n", [[3, 4, 5]], ("id", "0", "1")),
        # blank lines do not count, but those within a single column
        ("x,y\r\r\n1,2\r\r\n\n3,4\n\n", [[1, 2], [3, 4]], ("x", "y")),
        ("1\n2\n\n\n", [[1], [2]], ()),
    ],
)
def test_numbers(tmp_path, text, rows, names):
    assert numbers(tmp_path, text) == (rows, names)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x,y\n1,2\n,\n3,4\n", "line 3, column 1 (x): a value is missing; fill it in, or leave"),
        ("1,2\n3,NA\n", "line 2, column 2: 'NA' is a missing value; fill it in"),
        ("1,2\n-nan,null\n", "line 2, column 1: '-nan' is a missing value"),
        ("x\n1\n\n2\n", "line 3 is blank: a value is missing"),
        (",x,\n0,1,2\n", "line 1: column 3 has no name; give it one"),
        ("0,1\n1,0\n0,1\n", "line 1, 0, 1, may be the names that pandas gives to columns, or"),
        ("0\n0.5\n", "line 1, 0, may be the names"),
        ("0,1,2,3\n1,1,1,1\n", "line 1, 0, 1, 2, ..., may be the names"),
        ("x;y\n1;2\n", "line 1: semicolons are between its cells; save it with commas"),
        ("1\t2\n", "line 1: tabs are between its cells"),
        ("1,2\n3\n", "line 2 has 1 columns, not 2"),
        ("x,5\n1,2\n", "line 1, column 1: 'x' is not a number"),
        ("1_000,2\n", "line 1, column 1: '1_000' is not a number"),
        ('"1,000",2\n', "line 1, column 1: '1,000' is not a number"),
        ('x,y\n1,"2\n3,"4\n', "line 2: it cannot be read as CSV: ',' expected after '\"'; a cell"),
        ('x,y\n1,2\n3,"4\n5,6\n', "line 3: it cannot be read as CSV: unexpected end of data; a"),
        ("1,inf\n", "line 1, column 2: inf is not a finite number"),
        (
            "a,b\n" + "1,z\n" * 5,
            "line 2, column 2 (b): 'z' is not a number; line 3, column 2 (b): ",
        ),
    ],
)
def test_what_is_no_number_is_named_by_its_line(tmp_path, text, problem):
    with pytest.raises(DataError) as error:
        numbers(tmp_path, text)
    assert problem in str(error.value)
    assert "5 more" not in str(error.value)


def test_columns_are_chosen_by_name_whatever_the_others_hold(tmp_path):
    text = "time,who,y,x,activity\n17e11,ann,1,2,walk\n17e11,ann,3,,sit\n"
    assert numbers(tmp_path, text, "y") == ([[1], [3]], ("y",))
    with pytest.raises(DataError, match=r"line 3, column 4 \(x\): a value is missing"):
        numbers(tmp_path, text, "x", "y")
    found = read_numbers(tmp_path / "a.csv", ("x", "y"), text="activity", gaps=True)
    assert found.texts == ("walk", "sit") and found.lines == [2, 3]
    assert found.table[0].tolist() == [2, 1] and math.isnan(found.table[1, 0])
    with pytest.raises(DataError, match="there is no column 'z'; there are time, who, y, x, act"):
        numbers(tmp_path, text, "z")
    with pytest.raises(DataError, match="line 1 does not name its columns"):
        numbers(tmp_path, "1,2\n", "x")
    with pytest.raises(DataError, match="several columns are named 'x'"):
        numbers(tmp_path, "x,x\n1,2\n", "x")


def test_other_encodings_are_named(tmp_path):
    (tmp_path / "a.csv").write_bytes("x,größe\n1,2\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"it is not in UTF-8 .*; save it as UTF-8"):
        read_numbers(tmp_path / "a.csv")


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.lists(
            st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=3, max_size=3
        ),
        min_size=1,
        max_size=5,
    )
)
def test_what_pandas_writes_comes_back(tmp_path_factory, rows):
    """With names or without, with its index or without."""
    pandas = pytest.importorskip("pandas")
    path = tmp_path_factory.mktemp("pandas") / "a.csv"
    frame = pandas.DataFrame(np.array(rows, np.float64))
    for how in ({"index": False}, {"index": True}, {"index": False, "header": ["a", "b", "c"]}):
        text = io.StringIO()
        frame.to_csv(text, **how)
        path.write_text(text.getvalue())
        assert read_numbers(path).table.tolist() == rows


def test_missing_values_and_names_of_rows():
    assert all(
        map(is_missing, ["", " ", "nan", "NaN", "NA", "n/a", "NULL", "None", "<NA>", "-nan"])
    )
    assert not any(map(is_missing, ["0", "-", "nano", "unknown", "-1"]))
    assert names_rows("") and names_rows("Unnamed: 0") and not names_rows("Unnamed: 1")
    assert [as_number(x) for x in ("01", "1.0", "1e2", "1_0", "nan", "x", "\u0661")] == [
        1, 1.0, 100.0, None, None, None, None,
    ]  # fmt: skip


def test_classes_are_ordered_as_numbers_if_all_are():
    assert ordered(["10", "9", "", "nan", "9"]) == ("9", "10")
    assert ordered(["10", "9", "x"]) == ("10", "9", "x")
    assert ordered([str(10**30 + 1), str(10**30)]) == (str(10**30), str(10**30 + 1))


@pytest.mark.parametrize(
    ("train", "test", "problem"),
    [
        ("1 2", "1 2", ""),
        ("a b", "a", ""),
        ("1 2", "1.0 2.0", "the labels '1' and '1.0' are one number; write them alike"),
        ("01 02", "1 2", "the labels '01' and '1' are one number"),
        ("0 1", "-1", "no training row has the label '-1'; training rows have '0', '1'"),
        ("-2.0 0.4 3", "1.5", "its labels are real numbers, such as '0.4': labels are classes"),
        ("caf\u00e9 tea", "cafe\u0301", r"labels 'cafe\u0301' and 'caf\xe9' both look like 'caf"),
        ("a 1.5", "a", ""),  # versions, for instance
    ],
)
def test_labels_as_a_whole(train, test, problem):
    labels = [*train.split(), *test.split(), "left out"]
    splits = ["train"] * len(train.split()) + ["test"] * len(test.split()) + ["out"]
    found = "; ".join(label_problems(labels, splits))
    assert problem in found and bool(problem) == bool(found)
