"""Tables of users: what is read is what the file says, and what is no table is refused with the file and the line."""

import datetime
import gzip
import importlib
import os
import sys
import warnings

import numpy as np
import pandas as pd
import pytest

import bnn_pyro as bnn
from bnn_pyro import table_files
from bnn_pyro.errors import place
from bnn_pyro.table_files import read_table


@pytest.fixture
def write(tmp_path):
    def write_file(content, name="t.csv"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write_file


def refused(path, *parts, **options):
    """One sentence that starts with the file and holds all ``parts``."""
    with pytest.raises(bnn.DataError) as caught:
        read_table(path, **options)
    text = str(caught.value)
    assert text.startswith(f"table {path}") and "expected" in text and "got" in text and "\n" not in text, text
    for part in parts:
        assert part in text, text
    return text


TABLE = "n,x,who,yes\n1,1.5,ab,True\n-2,,c d,False\n3,1e-3,=1+2,True\n"


def check(table):
    assert list(table.columns) == ["n", "x", "who", "yes"]
    assert table["n"].dtype == np.int64 and table["n"].tolist() == [1, -2, 3]
    assert table["x"].dtype == float and table["x"].isna().tolist() == [False, True, False]
    assert table["x"].iloc[0] == 1.5 and table["x"].iloc[2] == 1e-3
    assert table["who"].tolist() == ["ab", "c d", "=1+2"] and table["yes"].dtype == bool
    assert table["yes"].tolist() == [True, False, True]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_kinds_of_columns_delimiters_and_line_ends(write, delimiter, end, bom):
    content = bom + TABLE.replace(",", delimiter).replace("\n", end).encode()
    check(read_table(write(content)))
    check(read_table(str(write(content.rstrip(), "T.TSV"))))  # no end of the last line, a text as path
    check(read_table(write(gzip.compress(content), "t.csv.gz")))


def test_quotes_blank_lines_and_spaces(write):
    table = read_table(write('"a; or; b",c \n\n"x\ny, z", 1\n\n"say ""no""",2 \n'))
    assert list(table.columns) == ["a; or; b", "c"] and table["c"].tolist() == [1, 2]
    assert table.iloc[:, 0].tolist() == ["x\ny, z", 'say "no"']
    assert read_table(write("a b\u2028c\nx\u2028y\n")).iloc[0, 0] == "x\u2028y"  # a line separator of Unicode is text


def test_a_row_is_named_by_its_number_and_its_line(write):
    table = read_table(write('a,b\n\n1,"x\ny"\n2,z\n\n3,z\n'))  # blank lines are no rows, and a quoted value has two
    assert [place(table, i) for i in range(3)] == [
        "row 0 (line 4 of the file)",
        "row 1 (line 5 of the file)",
        "row 2 (line 7 of the file)",
    ]
    assert place(table[table["a"] > 1]["b"], 0) == "row 1 (line 5 of the file)"  # rows keep theirs when others leave
    for rows in (table.reset_index(drop=True), table.to_numpy(), [1, 2, 3], {"x": table}, None):
        assert place(rows, 2) == "row 2"


def test_numbers_are_exact(write):
    values = [0.1 + 0.2, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0, 123456789.123456789]
    table = read_table(write("v\n" + "\n".join(map(repr, values)) + "\n"))
    assert (table["v"].to_numpy().view(np.int64) == np.array(values).view(np.int64)).all()
    whole = read_table(write("a,b,c\n007,9007199254740993,inf\n+5,-1,2.\n"))
    assert whole["a"].tolist() == [7, 5] and whole["b"].tolist() == [9007199254740993, -1]
    assert whole["c"].tolist() == [np.inf, 2.0]
    assert read_table(write("a\n1_000\nb\n"))["a"].tolist() == ["1_000", "b"]  # Python's own float() takes 1_000
    assert read_table(write("a\n" + "9" * 5000 + "\n1\n"))["a"].dtype == float


def test_names_may_be_whole_numbers_and_one_column_is_a_table(write):
    assert list(read_table(write("0,1,2\n1,2,3\n")).columns) == ["0", "1", "2"]
    assert read_table(write("v\n1\n2\n"))["v"].tolist() == [1, 2]


def test_missing_values(write):
    path = write("a,b,c,d\n1,x,NA,?\n?,?,,?\n3,-,NaN,?\nnan,y,null,?\n")
    table = read_table(path, na=("?", "-"))
    assert table["a"].tolist()[::2] == [1, 3] and table["a"].isna().tolist() == [False, True, False, True]
    assert table["b"].isna().tolist() == [False, True, True, False] and table["b"].iloc[0] == "x"
    assert table["c"].dtype == float and table["c"].isna().all() and table["d"].isna().all()
    refused(path, "na: expected a tuple of texts, got '?'. Pass na=('?',)", na="?")


def test_a_text_among_numbers_is_named_with_its_line(write):
    values = ["1"] * 32 + ["?"] + ["2.5"] * 340
    path = write("id,v\n" + "\n".join(f"r{i},{v}" for i, v in enumerate(values)))
    text = refused(
        path, "column 'v': expected numbers, as 372 of 373 values are, got '?' at row 32 (line 34 of the file)."
    )
    assert text.endswith("Mark it as missing: na=('?',) / --na '?'")
    assert read_table(path, na=("?",))["v"].isna().sum() == 1
    half = write("v\n1\n2\na\nb\n")
    assert read_table(half)["v"].tolist() == ["1", "2", "a", "b"]  # half is not most
    refused(write("v\n1\n2\n3\na\nb\n"), "as 3 of 5 values are, got 'a' at row 3 (line 5 of the file)")
    refused(
        write('v,w\n1,"x\ny"\n?,z\n3,z\n'), "got '?' at row 1 (line 4 of the file)"
    )  # a quoted value over two lines


@pytest.mark.parametrize(
    ("rows", "bad", "line"),
    [
        (["1", '"1,234"', "2"], "1,234", 3),
        (['"1,234"', '"12,345,678.9"', "?"], "1,234", 2),
        (['"1,5"', '"-2,25"'], "1,5", 2),
        (['"1.234,5"', '"2.000,25"'], "1.234,5", 2),
        (["?", '"0,5"', '"0,25"'], "0,5", 3),
    ],
)
def test_commas_inside_numbers_are_refused(write, rows, bad, line):
    path = write("v,w\n" + "".join(f"{row},a\n" for row in rows))
    refused(
        path,
        f"got {bad!r} at row {line - 2} (line {line} of the file). Write a point for the decimal comma, and nothing between",
    )


def test_decimal_commas_between_semicolons(write):
    refused(write("a;b\n1,5;2\n2,5;3\n"), "column 'a'", "got '1,5' at row 0 (line 2 of the file)")


@pytest.mark.parametrize("name", ["", "Unnamed: 0"])
def test_an_index_that_was_written_along_is_dropped_with_a_warning(write, name):
    for start in (0, 1):
        path = write(f"{name},v\n" + "".join(f"{start + i},{i / 2}\n" for i in range(3)))
        with pytest.warns(UserWarning, match="first column has no name and only numbers the rows; dropped") as caught:
            table = read_table(path)
        assert list(table.columns) == ["v"] and table["v"].tolist() == [0, 0.5, 1] and caught[0].filename == __file__


def test_other_nameless_columns_are_refused(write):
    refused(write(",v\n5,1\n7,2\n"), "got none for one at the start")
    refused(write("v,\n1,\n2,\n"), "got none for one after 'v'")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(read_table(write("id,v\n0,1\n1,2\n")).columns) == ["id", "v"]  # a named one may count


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (b"", "got an empty file"),
        (b" \n\n", "got an empty file"),
        (b"a,b\n", "expected rows below the header, got none"),
        (b"a,b,a\n1,2,3\n", "got 'a' twice"),
        (b"a, a\n1,2\n", "got 'a' twice"),
        (b"5.1,3.5,0\n4.9,3.0,0\n", "got numbers ('5.1', ...). Add a header."),
        (b"a,b\n1,2\n3\n5,6\n", "line 3: expected 2 values between commas, as in the header, got 1"),
        (b"a;b\n1;2\n3;4;5\n", "line 3: expected 2 values between semicolons, as in the header, got 3"),
        (b'a,b\n1,2\n"3,4\n5,6\n', "line 4: expected CSV with each quote closed"),
        (b'a,b\n1,2\n"3"x,4\n', "line 3: expected CSV with each quote closed"),
        (b"a,b\n1,\x002\n", "line 2: expected text, got a NUL byte"),
        (b"a,b\n1,caf\xe9\n", "line 2: expected UTF-8, got the byte 0xe9"),
        ("a,b\n1,2\n".encode("utf-16"), "expected UTF-8, got UTF-16"),
        (b"a\n" + b"x" * 1_000_001 + b"\n", "expected lines of at most 1000000 characters, got one of 1000001"),
        (b"a,b\n1," + b"x" * 200_000 + b"\n", "field larger than field limit"),
    ],
)
def test_what_is_no_table(write, content, part):
    refused(write(content), part)
    if content:
        refused(write(gzip.compress(content), "t.tsv.gz"), part)


def test_files_that_are_not_there_or_are_something_else(write, tmp_path):
    path = write(TABLE, "prices.csv")
    refused(tmp_path / "price.csv", "got none of that name. Did you mean 'prices.csv'?")
    refused(tmp_path / "zzz.csv", "got none of that name. Check the path.")
    refused(tmp_path / "no" / "prices.csv", "got no folder")
    refused(tmp_path, "got a directory")
    refused(write("x", "t.xlsx"), "got '.xlsx'. Save it as CSV.")
    refused(write(b"plain", "t.csv.gz"), "Not a gzipped file")
    refused(write(gzip.compress(TABLE.encode())[:-4], "u.csv.gz"), "expected a file that can be read")
    os.mkfifo(tmp_path / "pipe.csv")
    refused(tmp_path / "pipe.csv", "expected a regular file")
    check(read_table(path))


# ---- Parquet

needs_pyarrow = pytest.mark.skipif(importlib.util.find_spec("pyarrow") is None, reason="pyarrow is not installed")


@pytest.fixture
def parquet(tmp_path):
    def write_file(table, **options):
        path = tmp_path / "t.parquet"
        table.to_parquet(path, engine="pyarrow", **options)
        return path

    return write_file


@needs_pyarrow
def test_parquet_reads_as_the_same_table(parquet):
    table = pd.DataFrame(
        {"n": [1, -2, 3], "x": [1.5, np.nan, 1e-3], "who": ["ab", "c d", "=1+2"], "yes": [True, False, True]}
    )
    check(read_table(parquet(table)))
    table["who"] = table["who"].astype("category")
    check(read_table(parquet(table)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(read_table(parquet(table, index=False)))
    table.index = [5, 6, 8]
    with pytest.warns(UserWarning, match="the index has no name and only numbers the rows; dropped") as caught:
        check(read_table(parquet(table)))
    assert len(caught) == 1 and caught[0].filename == __file__
    table.index = [0, 1, 2]
    with pytest.warns(UserWarning, match="only numbers the rows"):
        check(read_table(parquet(table, index=True)))


@needs_pyarrow
def test_parquet_text_is_judged_as_in_csv(parquet):
    path = parquet(pd.DataFrame({"v": ["1", "2", "?", None], "w": ["a", None, "b", "-"]}))
    refused(path, "column 'v': expected numbers, as 2 of 3 values are, got '?' at row 2.")
    table = read_table(path, na=("?", "-"))
    assert table["v"].tolist()[:2] == [1, 2] and table["v"].isna().tolist() == [False, False, True, True]
    assert table["w"].isna().tolist() == [False, True, False, True]


@needs_pyarrow
def test_parquet_that_is_no_table(parquet, write):
    refused(write(b"PAR1 no", "bad.parquet"), "expected a Parquet file")
    refused(write(b"", "empty.pq"), "expected a Parquet file")
    refused(parquet(pd.DataFrame({"a": [1.0]})[:0]), "got shape (0, 1)")
    refused(parquet(pd.DataFrame({"a": [[1, 2], [3]]})), "column 'a': expected numbers or text, got")
    refused(parquet(pd.DataFrame({"a": [b"x"]})), "column 'a': expected numbers or text, got bytes")
    refused(parquet(pd.DataFrame({"a": [datetime.date(2020, 1, 1)]})), "expected numbers or text, got date")
    import pyarrow
    import pyarrow.parquet

    double = pyarrow.table([[1], [2]], names=["a", "a"])
    path = write(b"", "double.parquet")
    pyarrow.parquet.write_table(double, path)
    refused(path, "got 'a' twice")


def test_parquet_without_pyarrow_says_what_to_install(write, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused(write(b"PAR1", "t.parquet"), "got no such package. Run: pip install pyarrow")


def test_reading_leaves_the_csv_module_as_it_was(write):
    before = table_files.csv.field_size_limit()
    read_table(write(TABLE))
    assert table_files.csv.field_size_limit() == before


@needs_pyarrow
@pytest.mark.parametrize("index", [[7, 2, 5], ["x", "y", "z"], [[1, 1, 2], ["a", "b", "a"]]])
def test_an_index_without_a_name_is_no_column_of_a_parquet_file(parquet, index):
    """After a split that shuffles it tells where each row stood, which new rows cannot say; one with a name is a column."""
    table = pd.DataFrame({"a": [1.5, 2.5, 3.5]}, index=index)
    with pytest.warns(UserWarning, match="index has no name") as caught:
        assert list(read_table(parquet(table)).columns) == ["a"]
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert set(read_table(parquet(pd.DataFrame({"a": [1.5, 2.5]}, pd.Index([7, 2], name="id")))).columns) == {
            "a",
            "id",
        }
    with pytest.warns(UserWarning, match="index has no name"):
        refused(parquet(table[[]]), "expected columns and rows, got shape (3, 0)")


def test_truth_values_may_have_gaps(write):
    table = read_table(write("a,b,c\nTrue,,1\n,,x\nfalse,,y\n"))
    assert (
        table["a"].tolist() == [True, None, False]
        and table["b"].isna().all()
        and table["c"].tolist() == ["1", "x", "y"]
    )


def test_columns_that_are_known_as_text_are_text(write):
    """Whatever their cells look like, and as they stand; the others are judged as ever."""
    path = write("a,b,c,d\n1, 007,True,1\n2,x,,2\n3,4,False,3\n")
    table = read_table(path, text=("a", "b", "c", "z"))
    assert table["a"].tolist() == ["1", "2", "3"] and table["b"].tolist() == [" 007", "x", "4"]
    assert table["c"].dropna().tolist() == ["True", "False"] and table["d"].dtype == np.int64
    refused(path, "column 'b': expected numbers")


@needs_pyarrow
def test_text_of_a_parquet_file_that_is_known_as_text_is_text(parquet):
    path = parquet(pd.DataFrame({"a": ["1", None], "b": ["1", "2"], "c": [1, 2]}))
    table = read_table(path, text=("a", "c"))
    assert table["a"].dropna().tolist() == ["1"] and table["b"].dtype == table["c"].dtype == np.int64
