"""Tables of the user's for mlp/: what is read, learned, stored, predicted, and refused."""

import csv
import json
import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from common.device import Device
from mlp import sample, train
from mlp.reading import as_numbers, comma_of, read_table
from mlp.tables import choose_task, encode, learn, load_table, read_source

HEADER = ["age", "colour", "weight", "kind"]
FAST = ["--quiet", "--epochs", "2"]


def rows(count=60):
    """Rows whose kind follows from the age, and weight from the colour."""
    random = np.random.default_rng(0)
    for number in range(count):
        age, colour = round(random.uniform(1, 90), 1), ("red", "green", "blue")[number % 3]
        yield [age, colour, len(colour) * 10 + age / 10, "old" if age > 45 else "young"]


def write(name="t.csv", table=None, header=HEADER, encoding="utf-8", text=None, **how):
    """Writes rows, or text, to a file; returns its name for --data."""
    if text is not None:
        Path(name).write_bytes(text if isinstance(text, bytes) else text.encode(encoding))
        return f"csv:{name}"
    with open(name, "w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, **how)
        writer.writerows([header, *(rows() if table is None else table)])
    return f"csv:{name}"


def dataset(folder):
    """The facts in a run's checkpoint."""
    return torch.load(Path(folder, "last.pt"))["dataset"]


def loaded(data, *flags):
    """The parts of a table as the script has them."""
    args = train.parse_args(["--data", data, *flags])
    return load_table(args, Device(args, "fp32"))


def facts_of(data, *flags):
    """What is learned of a table, and stored."""
    return loaded(data, "--quiet", *flags)[0].facts


def content(data, *flags):
    """All that the network gets of a table, and what it is to say."""
    parts = [part for part in loaded(data, "--quiet", *flags) if part]
    return [[part.inputs.tolist(), part.targets.tolist()] for part in parts], parts[0].facts


def as_frame(cells):
    return pd.DataFrame(cells).astype("string")


# ---------------------------------------------------------------------- what is learned


def test_what_is_learned_is_what_scikit_learn_s_transformers_do():
    table = as_frame({"n": ["1", "2", None, "10", "2"], "c": ["x", "y", "y", "z", "x"]})
    columns = learn(table, [])
    new = as_frame({"c": ["z", "q", "x"], "n": ["4", None, "-1"], "more": ["1", "2", "3"]})
    found, _ = encode(new, columns)
    numbers = as_numbers(table["n"]).to_numpy()[:, None]
    imputer = SimpleImputer(strategy="median").fit(numbers)
    scaler = StandardScaler().fit(imputer.transform(numbers))
    scaled = scaler.transform(imputer.transform(as_numbers(new["n"]).to_numpy()[:, None]))
    encoder = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    encoder.fit(table["c"].to_numpy(object)[:, None])
    hot = encoder.transform(new["c"].to_numpy(object)[:, None])
    wanted = np.concatenate([scaled, [[0], [1], [0]], hot], 1)  # the second: the cell was empty
    np.testing.assert_allclose(found.numpy(), wanted, rtol=1e-6)
    assert json.loads(json.dumps(columns)) == columns  # plain values


def test_only_the_training_part_is_learned_from():
    """A value that is in the test set alone is no category, and moves no mean."""
    table = list(rows())
    data = write(table=table)
    ages = {column["name"]: column for column in facts_of(data)["columns"]}["age"]
    args = train.parse_args(["--data", data, "--quiet"])
    source, _ = read_source(args)
    for line in source.parts["test"].table.index:
        table[line - 2][:2] = [1e6, "violet"]
    write(table=table)
    again = {column["name"]: column for column in facts_of(data)["columns"]}
    assert again["age"] == ages
    assert "violet" not in again["colour"]["categories"]


@pytest.mark.parametrize("name", ["iris", "wine", "breast-cancer", "diabetes"])
def test_tables_of_scikit_learn(name):
    metrics = train.main(["--data", name, "--quiet", "--epochs", "3", "--run-dir", "run"])
    facts = dataset("run")
    if name == "diabetes":
        assert set(metrics) == {"test_loss", "test_rmse", "test_r2"}
        assert 40 < metrics["test_rmse"] < 90  # in the target's own units
        assert Path("run/predicted.png").exists()
    else:
        assert set(metrics) == {"test_loss", "test_accuracy"}
        assert metrics["test_accuracy"] > 0.6
        assert Path("run/confusion.png").exists()
    sizes = {"iris": (4, 3), "wine": (13, 3), "breast-cancer": (30, 2), "diabetes": (10, 0)}
    assert (facts["in_features"], len(facts["classes"])) == sizes[name]


def test_numbers_are_predicted_in_their_own_units():
    table = [[x, 1000 * x + 5000] for x in range(200)]
    data = write(table=table, header=["x", "y"])
    metrics = train.main(["--data", data, "--quiet", "--run-dir", "run"])
    assert metrics["test_r2"] > 0.95
    assert metrics["test_rmse"] < 0.25 * np.std([y for _, y in table])
    write("new.csv", [[50], [150]], header=["x"])
    found = sample.main(["--checkpoint", "run/last.pt", "new.csv", "--out", "out"])
    answers = [float(value) for value in found["predicted y"]]
    assert answers == pytest.approx([55_000, 155_000], rel=0.2)


def test_metrics_are_those_of_scikit_learn():
    from sklearn.metrics import r2_score, root_mean_squared_error

    metrics = train.main(["--data", "diabetes", *FAST, "--run-dir", "run"])
    found = sample.main(["--checkpoint", "run/last.pt", "--out", "out"])
    with open("out/predictions.csv", newline="") as file:
        table = list(csv.DictReader(file))
    truth = [float(row["target"]) for row in table]
    answers = [float(row["predicted target"]) for row in table]
    assert found["predicted target"] == [row["predicted target"] for row in table]
    assert metrics["test_rmse"] == pytest.approx(root_mean_squared_error(truth, answers), rel=1e-3)
    assert metrics["test_r2"] == pytest.approx(r2_score(truth, answers), abs=1e-3)


def test_the_task_is_told_from_the_target_or_by_the_flag(refused):
    def task(values, flag="auto"):
        return choose_task(as_frame({"y": values})["y"], flag, "y", ",")[0]

    assert task(["a", "b", "a"]) == "classification"
    assert task(["3", "4", "3", "5"]) == "classification"
    assert task(["3.5", "4", "3", "3"]) == "regression"
    assert task([str(i % 11) for i in range(50)]) == "regression"
    assert task(["3", "4", "3", "5"], "regression") == "regression"
    assert task(["3.5", "4", "3", "3"], "classification") == "classification"
    assert "is 'b' in line 1, no number" in refused(task, ["3", "b", "3"], "regression")
    prices = as_frame({"y": [f"${i % 12}" for i in range(60)]})["y"]
    assert "text (line 0 has '$0'): classification" in choose_task(prices, "auto", "y", ",")[1]
    assert facts_of(write(), "--target", "weight")["task"] == "regression"


def test_classes_are_in_order():
    table = [[i, i % 3 + 9] for i in range(60)]
    assert facts_of(write(table=table, header=["x", "y"]))["classes"] == ["9", "10", "11"]


def test_it_learns_a_rule():
    metrics = train.main(["--data", write(table=rows(300)), "--quiet"])
    assert metrics["test_accuracy"] >= 0.93


# ---------------------------------------------------------------------- ways to write a table


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_other_separators(separator):
    assert content(write("b.csv", delimiter=separator)) == content(write("a.csv"))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_byte_order_mark_quotes_line_ends_and_blank_lines(encoding):
    plain = content(write("a.csv"))
    text = Path("a.csv").read_text()
    quoted = "\r\n".join(
        ",".join(f'"{cell}"' for cell in line.split(",")) for line in text.splitlines()
    )
    data = write("b.csv", text=f"{quoted}\r\n   \r\n\r\n", encoding=encoding)
    assert content(data) == plain
    assert read_table(Path("b.csv")).columns[0] == "age"


def test_quoted_cells_hold_separators_quotes_and_line_ends():
    write("a.csv", [["1", 'a, "b"\nc', "x"], ["2", "d", "y"]], header=["n", "t", "y"])
    table = read_table(Path("a.csv"))
    assert table["t"].tolist() == ['a, "b"\nc', "d"]
    assert table.index.tolist() == [2, 4]  # the lines that rows begin in


def test_decimal_commas_and_thousands():
    def numbers(values, separator):
        column = as_frame({"x": values})["x"]
        return as_numbers(column, comma_of(column, separator)).tolist()

    assert numbers(["1,5", "2", "-3,25"], ";") == [1.5, 2, -3.25]
    assert numbers(["1.234,5", "2,5"], ";") == [1234.5, 2.5]
    assert numbers(["1,234", "12,345.5"], ",") == [1234, 12345.5]
    assert numbers(["1,5", "2,25"], ",") == [1.5, 2.25]
    table = [[str(cell).replace(".", ",") for cell in row] for row in rows()]
    plain = content(write("a.csv"), "--target", "weight")
    assert plain[0] == content(write("b.csv", table, delimiter=";"), "--target", "weight")[0]


def test_a_comma_means_in_new_rows_what_it_meant_in_training():
    columns = learn(as_frame({"x": ["1,25", "2,5", "3,75"]}), [])
    found, _ = encode(as_frame({"x": ["2,500"]}), columns)
    assert found.item() == pytest.approx(0, abs=1e-6)


def test_empty_cells_and_their_names():
    table = [[age if i % 4 else ("", "?", "NA", "NaN")[i // 4 % 4], *rest]
             for i, (age, *rest) in enumerate(rows())]  # fmt: skip
    table[7][1] = ""
    metrics = train.main(["--data", write(table=table), *FAST, "--run-dir", "run"])
    assert all(map(math.isfinite, metrics.values()))
    columns = {column["name"]: column for column in dataset("run")["columns"]}
    assert columns["age"]["kind"] == "number"
    assert columns["age"]["missing"]
    assert not columns["weight"]["missing"]


def test_a_table_and_its_own_test_part():
    write("a.csv", rows(60))
    write("b.csv", [row[::-1] for row in rows(20)], header=HEADER[::-1])
    metrics = train.main(["--data", "csv:a.csv,b.csv", "--target", "kind", *FAST, "--run-dir", "r"])
    found = sample.main(["--checkpoint", "r/last.pt", "--out", "out"])
    assert len(found["predicted kind"]) == 20
    right = sum(a == row[3] for a, row in zip(found["predicted kind"], rows(20), strict=True))
    assert metrics["test_accuracy"] == pytest.approx(right / 20)
    Path("odd,name.csv").write_text(Path("a.csv").read_text())
    assert train.main(["--data", "csv:odd,name.csv", *FAST])


def test_points_for_thousands():
    def numbers(values, decimal=False, known="", separator=";"):
        column = as_frame({"x": values})["x"]
        return as_numbers(column, comma_of(column, separator, decimal, known)).tolist()

    assert numbers(["963", "1.037", "2.511.037"]) == [963, 1037, 2511037]
    assert numbers(["1.000,50", "2.500"]) == [1000.5, 2500]
    assert numbers(["2,003.8", "12"]) == [2003.8, 12]
    assert numbers(["963", "1.037"]) == [963, 1.037]  # nothing tells
    assert numbers(["963", "1.037"], decimal=True) == [963, 1037]
    assert numbers(["0.963", "1.037"], decimal=True) == [0.963, 1.037]
    assert numbers(["1.037"], known="points") == [1037]
    assert numbers(["1037.5"], known="points", separator=",") == [1037.5]
    assert numbers(["1,5"], known="thousands") == [1.5]
    assert numbers(["1.037,5"], known="decimal") == [1037.5]
    assert numbers(["0,942", "2,511"], separator=",") == [0.942, 2.511]


def test_points_for_thousands_in_a_file(capsys):
    header, plain = ["x", "z", "y"], [[i * 37, i / 2, i * 41 + 700.5] for i in range(60)]
    wanted = content(write("a.csv", plain, header))

    def german(x, digits):
        return f"{x:,.{digits}f}".translate(str.maketrans(",.", ".,"))

    table = [[german(x, 0), german(z, 1), german(y, 1)] for x, z, y in plain]
    data = write("b.csv", table, header, delimiter=";")
    assert content(data)[0] == wanted[0]
    table = [[i, german(i * 37, 0)] for i in range(60)]
    said_of = said(capsys, write("c.csv", table, ["x", "y"], delimiter=";"))
    assert "points are taken for decimal, 1.234 for little more than 1: y" in said_of


def test_each_file_has_its_own_commas():
    """Two parts of a table, one with decimal points and one with decimal commas."""
    table = [[i / 4, i * 1.5] for i in range(60)]
    write("a.csv", table, ["x", "y"])
    comma = [[str(cell).replace(".", ",") for cell in row] for row in table]
    write("b.csv", comma, ["x", "y"], delimiter=";")
    wanted = content("csv:a.csv,a.csv")
    assert content("csv:a.csv,b.csv") == wanted
    assert content("csv:b.csv,a.csv")[0] == wanted[0]


def test_whole_numbers_are_the_same_class_however_they_are_spelt():
    write("a.csv", [[i, i % 2] for i in range(60)], ["x", "y"])
    write("b.csv", [[i, f"{i % 2}.0"] for i in range(60)], ["x", "y"])
    wanted = train.main(["--data", "csv:a.csv,a.csv", *FAST, "--run-dir", "run"])
    assert content("csv:a.csv,b.csv") == content("csv:a.csv,a.csv")
    assert facts_of("csv:a.csv,b.csv")["classes"] == ["0", "1"]
    assert train.main(["--evaluate", "run/last.pt", "--data", "csv:b.csv,b.csv"]) == wanted
    table = [[i, ("1", "1.0", "01", "02", "3")[i % 5]] for i in range(60)]
    assert facts_of(write("c.csv", table, ["x", "y"]))["classes"] == ["1", "2", "3"]
    table = [[i, ("01", "02")[i % 2]] for i in range(60)]
    assert facts_of(write("d.csv", table, ["x", "y"]))["classes"] == [
        "01",
        "02",
    ]  # one way each: it stays


def test_whole_numbers_are_the_same_category_however_they_are_spelt():
    columns = learn(as_frame({"x": ["1", "2", "none", "1.0"]}), [])
    assert columns[0]["categories"] == ["1", "2", "none"]
    found, notes = encode(as_frame({"x": ["2.0", "01", "none"]}), columns)
    assert found.tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 1]]
    assert not notes


def test_words_for_no_value_are_words_among_words(capsys):
    """A country NA and a class None are none of a number's missing cells."""
    table = [[("US", "NA")[i % 2], i if i % 9 else "NA", ("None", "some")[i % 2]]
             for i in range(60)]  # fmt: skip
    data = write(table=table, header=["country", "x", "y"])
    out = said(capsys, data)
    train.main(["--data", data, *FAST, "--run-dir", "run"])
    assert "48 train, 12 test rows" in out
    assert "'None' in line 2 is taken for a y" in out
    columns = {column["name"]: column for column in dataset("run")["columns"]}
    assert columns["country"]["categories"] == ["NA", "US"]
    assert (columns["x"]["kind"], columns["x"]["missing"]) == ("number", True)
    assert dataset("run")["classes"] == ["None", "some"]
    sample.main(["--checkpoint", "run/last.pt", "t.csv", "--out", "out"])
    assert [[row["country"], row["x"]] for row in predictions()] == [
        [str(cell) for cell in row[:2]] for row in table
    ]  # as they stand in the file


def test_the_separator_makes_rows_of_one_width():
    text = '"a,x";"b,y";"c,z"\n' + "".join(f"{i};{i % 7};{'ab'[i % 2]}\n" for i in range(20))
    write("a.csv", text=text)
    table = read_table(Path("a.csv"))
    assert table.columns.tolist() == ["a,x", "b,y", "c,z"]
    write("b.csv", text="sep=;\r\na,1;b\r\n1,5;2\r\n3,5;4\r\n")
    table = read_table(Path("b.csv"))
    assert table.columns.tolist() == ["a,1", "b"]
    assert table.index.tolist() == [3, 4]


@pytest.mark.parametrize("gap", [" ", "\u00a0", "\u2009", "\u202f", "'", "\u2019"])
def test_gaps_and_apostrophes_for_thousands(gap):
    values = ["1 234", "987", "-12 345 678,5"]
    column = as_frame({"x": [value.replace(" ", gap) for value in values]})["x"]
    assert as_numbers(column, comma_of(column, ";")).tolist() == [1234, 987, -12345678.5]
    for no in ("12 34", "0 123", "1 2345", "1 234 5", "1  234"):
        assert as_numbers(as_frame({"x": [no.replace(" ", gap)]})["x"]).isna().all(), no


def test_thousands_in_a_file():
    table = [[i * 9_377, i / 8, i * 41_000 + 0.5] for i in range(60)]
    wanted = content(write("a.csv", table, "xzy"))
    parted = [[f"{x:,}".replace(",", " "), z, f"{y:,}".replace(",", "'")] for x, z, y in table]
    found = content(write("b.csv", parted, "xzy"))
    assert (found[0], found[1]["columns"]) == (wanted[0], wanted[1]["columns"])


COMMENTS = "# made by hand\n\n  # in two days, by, us\n"


@pytest.mark.parametrize(
    ("text", "columns", "line", "count"),
    [
        (f"{COMMENTS}a,b,c\n1,2,3\n", "abc", 5, 2),
        (f"sep=;\n{COMMENTS}a;b\n1;2\n", "ab", 6, 2),
        ("#id,b\n1,2\n", ["#id", "b"], 2, 0),
        ("# x, y\n#id,b\n1,2\n#3,4\n", ["#id", "b"], 3, 1),
        ("#made by us, who\na,b,c\n1,2,3\n", "abc", 3, 1),
        ("a,b\n#,2\n", "ab", 2, 0),
    ],
)
def test_lines_of_comment_above_the_header_are_skipped_and_said(text, columns, line, count):
    write("a.csv", text=text)
    table = read_table(Path("a.csv"))
    assert table.columns.tolist() == list(columns)
    assert table.index[0] == line
    notes = {0: [], 1: ["a.csv: 1 line above the header, marked #, skipped"]}
    assert table.attrs["notes"] == notes.get(
        count, ["a.csv: 2 lines above the header, marked #, skipped"]
    )


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("%Y-%m-%d", "year-month-day"),
        ("%Y-%m-%dT%H:%M:%SZ", "year-month-day"),
        ("%d.%m.%Y", "day.month.year"),
        ("%d/%m/%Y", "day/month/year"),
        ("%m/%d/%Y %I:%M %p", "month/day/year"),
        ("%d-%b-%Y", "day-month-year"),
        ("%b %d, %Y", "month day, year"),
    ],
)
def test_dates_are_numbers(form, words, capsys):
    """Prices of weekends, whatever the dates look like; new rows may be written another way."""
    days = [pd.Timestamp("2020-02-20 17:30") + pd.Timedelta(days=i) for i in range(1300)]
    table = [[f"{day:{form}}" if i % 9 else "", i, 0.5 + (day.weekday() > 4)]
             for i, day in enumerate(days)]  # fmt: skip
    out = said(capsys, write("a.csv", table, ["when", "x", "y"]), "--task", "classification")
    assert f"when is read as dates, {words}: days, month, weekday" in out
    assert "1 number and 1 date a row" in out
    (date, _) = facts_of("csv:a.csv")["columns"]
    assert list(date["parts"]) == ["days", "month", "weekday"]  # the hour is the same in all
    assert date["missing"]
    new = pd.DataFrame({"when": ["2021-12-05", "soon"], "x": ["1", "1"]}).astype("string")
    inputs, notes = encode(new, [date])
    sunday, weekday = 6, date["parts"]["weekday"]
    wanted = (sunday - weekday["mean"]) / weekday["std"]
    assert float(inputs[0, 2]) == pytest.approx(wanted, rel=1e-5)
    month = date["parts"]["month"]
    assert float(inputs[0, 1]) == pytest.approx((12 - month["mean"]) / month["std"], rel=1e-5)
    assert inputs[:, 3].tolist() == [0, 1]
    assert notes == ["when: 'soon' in line 1 is no such date: it counts as missing"]


def test_what_is_no_date_among_dates_is_said(capsys):
    table = [[f"2024-01-{i % 28 + 1:02d}" if i != 50 else "2024-13-45", i % 2] for i in range(100)]
    out = said(capsys, write(table=table, header=["when", "y"]))
    assert "when is taken for categories: 99% of it are dates, but line 52 has '2024-13-45'" in out


def test_a_network_learns_from_dates():
    days = [pd.Timestamp("2020-02-20") + pd.Timedelta(days=i) for i in range(400)]
    table = [[f"{day:%d.%m.%Y}", "off" if day.weekday() > 4 else "on"] for day in days]
    flags = ["--quiet", "--run-dir", "run", "--epochs", "30"]
    assert (
        train.main(["--data", write(table=table, header=["when", "y"]), *flags])["test_accuracy"]
        > 0.95
    )
    write("new.csv", [["2021-04-03"], ["2021-04-05"]], header=["when"])  # Saturday and Monday
    found = sample.main(["--checkpoint", "run/last.pt", "new.csv", "--out", "out"])
    assert found["predicted y"] == ["off", "on"]


def test_codes_and_prices_with_a_sign_are_said_to_be_categories(capsys):
    table = [[f"${i % 30}", f"{'ab'[i % 2]}1", i % 2] for i in range(90)]
    out = said(capsys, write(table=table, header="xzy"))
    assert re.search(r"x is taken for \d\d categories: line \d+ has '\$\d+', no number", out)
    assert "z is taken" not in out  # two names are plain


# ---------------------------------------------------------------------- what is said, and refused


def said(capsys, data, *flags):
    """What the script says of a table."""
    capsys.readouterr()
    loaded(data, *flags)
    return capsys.readouterr().out


def test_columns_that_tell_nothing_are_left_out_and_it_is_said(capsys):
    table = [["", "same", f"{i}", *row] for i, row in enumerate(rows())]
    header = ["nothing", "equal", "", *HEADER]
    data = write(table=table, header=header)
    out = said(capsys, data)
    assert "left out, empty: nothing" in out
    assert "left out, constant: equal" in out
    assert "left out, without a name: (column 3)" in out
    assert [c["name"] for c in facts_of(data)["columns"]] == HEADER[:3]
    assert "the last column, kind, is the target" in out
    assert [c["name"] for c in facts_of(data, "--drop", "weight", "age")["columns"]] == ["colour"]


def test_text_in_a_number_column_makes_it_categories(capsys):
    table = [[age if i != 9 else "unknown", *rest] for i, (age, *rest) in enumerate(rows())]
    out = said(capsys, write(table=table))
    assert "age is taken for categories: 98% of it are numbers, but line 11 has 'unknown'" in out
    kinds = {column["name"]: column["kind"] for column in facts_of("csv:t.csv")["columns"]}
    assert kinds == {"age": "category", "colour": "category", "weight": "number"}


def test_empty_cells_and_rows_without_a_target_are_said(capsys):
    table = [[age if i % 5 else "", *rest] for i, (age, *rest) in enumerate(rows())]
    table[3][3] = table[8][3] = ""
    out = said(capsys, write(table=table))
    assert "2 rows without kind left out (line 5 has none)" in out
    assert "empty cells, marked as such, numbers filled with the median: age (" in out
    assert "46 train, 12 test rows" in out


ODD = "a,b\n" + "".join(f"{i},{i * 1.5}\n" for i in range(30)) + "1,no idea\n"


@pytest.mark.parametrize(
    ("text", "flags", "words"),
    [
        ("", "", "is empty"),
        ("\n \n", "", "is empty"),
        ("a,b\n", "", "a header and no rows"),
        ("a,b,a\n1,2,3\n", "", "columns 1 and 3 are both called 'a'"),
        ("a,b\n1,2\n3\n4,5\n", "", "line 3 has 1 cell, not the 2 of the header"),
        ("a;b\n1;2\n3;4;5\n", "", "line 3 has 3 cells, not the 2 of the header (semicolons"),
        ("a,b\n1,2\n1,'x\n", "--target c", "unknown column 'c'"),
        ("price,size\n1,2\n3,4\n", "--target prize", "did you mean price?"),
        ("a,b\n1,7\n2,7\n3,7\n", "", "'b' has one value, '7'"),
        ("a,b\n1,7\n2,7.0\n3,7\n", "--task regression", "has one value"),
        ("a,b\n1,x\n2,y\n3,z\n", "", "each of the 3 rows has a class of its own"),
        ("a,b\n1,\n2,\n", "", "0 rows with a b: that is too few"),
        ("a,b\n1,x\n", "", "1 row with a b: that is too few"),
        ("a,b\n1,x\n1,y\n1,x\n1,y\n1,x\n", "", "no column is left to learn from"),
        ('a,b\n1,x\n2,"y\n3,x\n', "", "a quotation mark in line 3 is never closed"),
        ("a,b\n1,x\n2,y\n3,x\n", "--task regression", "'b' is 'x' in line 2, no number"),
        ("a,b\n1,x\n2,y\n3,x\n", "--drop c", "unknown column 'c'"),
        ("a,b\n1,x\n2,y\n3,x\n", "--drop b", "that is the column to predict"),
        (b"a,b\n1,x\n2,\xe9\n", "", "line 3 is not UTF-8"),
        ("a,b\n1,x\n".encode("utf-16"), "", "is UTF-16, not UTF-8: convert it (iconv"),
        ("a,b\n1,x\n".encode("utf-16-le"), "", "line 1 is not UTF-8 text but holds a zero byte"),
        ("price,size\n1,2\n3,4\n", "--target Price", "did you mean price?"),
        ("a,b\n1,$5\n2,$6\n3,$7\n", "", "nothing to learn (line 2 has '$5', no number)"),
        (ODD, "", "'b' is numbers, but line 32 has 'no idea': mend or empty the cell"),
        ("sep=;\n", "", "is empty"),
    ],
)  # fmt: skip
def test_bad_tables(text, flags, words, refused):
    data = write(text=text)
    assert words in refused(train.main, ["--data", data, *flags.split()])
    assert [path.name for path in Path().iterdir()] == ["t.csv"]


def test_the_last_column_with_a_name_is_the_target(capsys):
    text = "".join(f"{','.join(map(str, row))},\n" for row in [HEADER, *rows()])
    assert "the last column, kind, is the target" in said(capsys, write(text=text))
    assert [c["name"] for c in facts_of("csv:t.csv")["columns"]] == HEADER[:3]


def test_a_first_line_of_numbers_is_said(capsys):
    table = [[i * 1.5, i % 7, "ab"[i % 2]] for i in range(1, 60)]
    out = said(capsys, write("a.csv", table[1:], table[0]))
    assert "the first line is taken for the names of the columns: 1.5, 1, b" in out
    for names in (["0", "1", "y"], ["x", "z", "y"]):  # as pandas counts columns
        assert "the first line" not in said(capsys, write("b.csv", table, names))


def test_rows_without_a_target_are_named_by_word_and_line(capsys):
    table = [[i, "?" if i == 7 else "ab"[i % 2]] for i in range(60)]
    assert "1 row without y left out (line 9 has '?')" in said(capsys, write("a.csv", table, "xy"))


def test_classes_that_training_has_not(capsys, refused):
    table = list(rows())
    write("a.csv", table)
    write("b.csv", [*table, [1, "red", 2, "ancient"]])
    line = refused(train.main, ["--data", "csv:a.csv,b.csv"])
    assert "the test set has the class 'ancient', which the training set has not" in line
    assert "classes with too few rows to train on: ancient (" in said(capsys, "csv:b.csv")


def test_too_many_categories_and_classes(refused):
    table = [[f"name {i}", i % 2, i * 1.5] for i in range(1400)]
    data = write(table=table, header=["name", "x", "y"])
    line = refused(train.main, ["--data", data])
    assert "'name' is text with" in line
    assert "at most 1,000" in line
    assert "--drop 'name'" in line
    assert facts_of(data, "--drop", "name")["in_features"] == 1
    line = refused(loaded, data, "--task", "classification")
    assert "1,400 different values, at most 1,000 can be classes" in line
    assert "--target y" not in line


def test_files_that_are_not_there(refused):
    Path("folder").mkdir()
    assert "there is no such file" in refused(train.main, ["--data", "csv:nowhere.csv"])
    assert "folder: a folder" in refused(train.main, ["--data", "csv:folder"])
    assert "unknown data set" in refused(train.main, ["--data", "csv:"])
    write("a.csv")
    assert "b.csv: there is no such file" in refused(train.main, ["--data", "csv:a.csv,b.csv"])
    assert "name one file, or two" in refused(train.main, ["--data", "csv:a.csv,b.csv,c.csv"])
    write("b.csv", [["1", "2"]], header=["age", "kind"])
    line = refused(train.main, ["--data", "csv:a.csv,b.csv"])
    assert "b.csv has no column 'colour', which a.csv has" in line


def test_more_columns_than_rows_and_one_row_to_test():
    table = [[*(i * j * 7 % 13 for j in range(100)), "ab"[i % 2]] for i in range(20)]
    header = [*(f"c{j}" for j in range(100)), "y"]
    metrics = train.main(["--data", write(table=table, header=header), *FAST])
    assert all(map(math.isfinite, metrics.values()))
    data = write("b.csv", [[i, i * 1.5] for i in range(4)], header=["x", "y"])
    assert train.main(["--data", data, *FAST])["test_r2"] == 0  # of one row there is none


def test_infinite_and_enormous_numbers():
    table = [[("inf", "-inf", "1e308", "1e-300", "5")[i % 5], i, "ab"[i % 2]] for i in range(60)]
    metrics = train.main(["--data", write(table=table, header=["x", "z", "y"]), *FAST])
    assert all(map(math.isfinite, metrics.values()))


# ---------------------------------------------------------------------- runs and predictions


@pytest.fixture
def trained():
    data = write()
    train.main(["--data", data, "--quiet", "--epochs", "30", "--run-dir", "run"])
    return ["--checkpoint", "run/last.pt"]


def predictions(folder="out"):
    with open(f"{folder}/predictions.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_predictions_of_rows_in_any_order(trained):
    table = list(rows(10))
    write("a.csv", table)
    other = dict(delimiter=";", encoding="utf-8-sig", header=["weight", "more", "colour", "age"])
    write("b.csv", [[row[2], "note", row[1], row[0]] for row in table], **other)
    one = sample.main([*trained, "a.csv", "--out", "out"])
    two = sample.main([*trained, "b.csv", "--out", "out2"])
    assert one == two
    assert list(one) == ["predicted kind", "p(old)", "p(young)"]
    found = predictions("out2")
    assert [row["more"] for row in found] == ["note"] * 10
    assert [row["age"] for row in found] == [str(row[0]) for row in table]
    for row in found:
        assert float(row["p(old)"]) + float(row["p(young)"]) == pytest.approx(1, abs=1e-3)
        assert float(row[f"p({row['predicted kind']})"]) >= 0.5
    right = sum(row["predicted kind"] == line[3] for row, line in zip(found, table, strict=True))
    assert right >= 8


def test_predictions_with_what_is_new(trained, capsys):
    write("a.csv", [["12", "violet", "40"], ["many", "", ""]], header=HEADER[:3])
    sample.main([*trained, "a.csv", "--out", "out"])
    err = capsys.readouterr().err
    assert "colour: 'violet' in line 2 is new: it counts as none of the known" in err
    assert "age: 'many' in line 3 is no number: it counts as missing" in err
    assert "weight: 1 empty cell, as never in training" in err
    assert len(predictions()) == 2


def test_predictions_are_refused_with_the_reason(trained, refused):
    write("a.csv", [["12", "40"]], header=["age", "wieght"])
    line = refused(sample.main, [*trained, "a.csv"])
    assert "have no column 'colour', 'weight'" in line
    write("b.csv", [["12", "red", "40"]], header=["age", "colour", "wieght"])
    line = refused(sample.main, [*trained, "b.csv"])
    assert (
        "have no column 'weight', which the network was trained with: did you mean wieght" in line
    )
    assert "nothing.csv: there is no such file" in refused(sample.main, [*trained, "nothing.csv"])
    assert "one CSV file at a time" in refused(sample.main, [*trained, "a.csv", "b.csv"])
    write("c.csv", text="age,colour,weight\n1,red\n")
    assert "line 2 has 2 cells" in refused(sample.main, [*trained, "c.csv"])
    assert not Path("run/samples").exists()


def test_predictions_overwrite_nothing(trained, refused):
    write("predictions.csv", list(rows(3)))
    before = Path("predictions.csv").read_text()
    line = refused(sample.main, [*trained, "predictions.csv", "--out", "."])
    assert "predictions.csv is there already: name another folder with --out" in line
    assert Path("predictions.csv").read_text() == before
    Path("out").mkdir()
    Path("out/confusion.png").write_text("mine")
    assert "confusion.png is there" in refused(sample.main, [*trained, "--out", "out"])
    sample.main([*trained, "predictions.csv", "--out", "out"])  # which draws none


def test_columns_named_as_predictions_are_kept(trained):
    table = [[*row[:3], "mine", "0.5"] for row in rows(4)]
    write("a.csv", table, header=[*HEADER[:3], "predicted kind", "p(old)"])
    found = sample.main([*trained, "a.csv", "--out", "out"])
    for row, answer in zip(predictions(), found["predicted kind"], strict=True):
        assert (row["predicted kind"], row["p(old)"]) == ("mine", "0.5")
        assert row["predicted kind (new)"] == answer


def test_predictions_of_the_test_part(trained, capsys):
    found = sample.main([*trained, "--out", "out"])
    assert len(found["predicted kind"]) == 12
    assert {path.name for path in Path("out").iterdir()} == {"predictions.csv", "confusion.png"}
    assert "test_accuracy" in capsys.readouterr().out


def test_evaluation_scales_as_training_did(trained, refused):
    before = json.loads(Path("run/metrics.jsonl").read_text().splitlines()[-1])
    again = train.main(["--evaluate", "run/last.pt", "--quiet"])
    assert again == {key: before[key] for key in again}
    table = list(rows())
    write("other.csv", table[:30])
    write("half.csv", [row[::-1] for row in table[30:]], header=HEADER[::-1])
    metrics = train.main(
        ["--evaluate", "run/last.pt", "--data", "csv:half.csv,other.csv", "--quiet"]
    )
    assert metrics["test_accuracy"] >= 0.8
    table[4][3] = "ancient"
    write("strange.csv", table)
    line = refused(train.main, ["--evaluate", "run/last.pt", "--data", "csv:strange.csv"])
    assert "'ancient', a class that the network wasn't trained on" in line
    line = refused(train.main, ["--resume", "--run-dir", "run", "--target", "age"])
    assert "target" in line


def test_a_quantity_is_measured_on_numbers_alone(refused):
    train.main(["--data", write(), "--target", "weight", *FAST, "--run-dir", "run"])
    table = list(rows())
    table[5][2] = "heavy"
    write("other.csv", table)
    line = refused(train.main, ["--evaluate", "run/last.pt", "--data", "csv:other.csv"])
    assert "weight is 'heavy' in line 7, no number" in line


def test_yes_and_no_are_categories():
    table = as_frame({"x": ["True", "False", "True"], "y": ["yes", "no", "no"]})
    assert [column["kind"] for column in learn(table, [])] == ["category", "category"]


def test_a_run_on_a_table_resumes_exactly():
    flags = ["--data", write(), "--quiet", "--epochs", "4"]
    train.main([*flags, "--run-dir", "a"])
    train.main([*flags, "--run-dir", "b", "--max-steps", "7"])
    train.main(["--quiet", "--resume", "--run-dir", "b"])
    a, b = (torch.load(f"{name}/last.pt")["model"] for name in "ab")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert dataset("a") == dataset("b")


def test_small_tables_get_small_batches():
    write("a.csv", [[i, i % 2] for i in range(100)], header=["x", "y"])
    write("b.csv", [[i, i % 2] for i in range(3000)], header=["x", "y"])
    sizes = [train.parse_args(["--data", f"csv:{name}.csv"]).batch_size for name in "ab"]
    assert sizes == [16, 64]
    a, b = (train.parse_args(["--data", f"csv:{name}.csv"]) for name in "ab")
    assert (a.val, a.patience) == (0, None)  # so few rows choose nothing
    assert (b.val, b.patience) == (5000, 20)
    assert train.parse_args(["--data", "csv:a.csv", "--val", "10"]).patience == 20
    assert train.parse_args(["--data", "csv:b.csv", "--val", "0"]).patience is None


def test_the_claim_on_tables_compares_three_methods(monkeypatch, refused):
    from mlp import claims

    Path("d/tabular").mkdir(parents=True)
    table = [[row[0] if i % 9 else "", *row[1:]] for i, row in enumerate(rows(90))]
    for name in ("one", "two"):
        write(f"d/tabular/{name}.csv", table)
    arms = {"one": ["one.csv"], "two": ["two.csv", "--target", "weight"]}
    monkeypatch.setattr(claims, "FILES", arms)
    argv = ["tables", "--seeds", "0", "1", "--data-dir", "d", "--out", "out", "--epochs", "2"]
    summary = claims.main(argv)
    assert {arm: list(values)[1] for arm, values in summary.items()} == {
        "one, mlp": "test_accuracy", "one, logistic": "test_accuracy",
        "one, trees": "test_accuracy", "two, mlp": "test_rmse", "two, ridge": "test_rmse",
        "two, trees": "test_rmse",
    }  # fmt: skip
    assert summary["one, trees"]["test_accuracy"]["mean"] > 0.8
    assert summary["two, mlp"]["command"].endswith("--target weight --seed SEED")
    assert "csv:PATH/tabular/two.csv" in summary["two, mlp"]["command"]
    assert claims.main(argv) == summary
    Path("d/tabular/two.csv").unlink()
    assert "two.csv is not in d/tabular" in refused(claims.main, argv)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("iris", 0.9), ("wine", 0.9), ("breast-cancer", 0.93)])
def test_the_tables_of_scikit_learn_are_learned(name, least):
    assert train.main(["--data", name, "--quiet"])["test_accuracy"] >= least
