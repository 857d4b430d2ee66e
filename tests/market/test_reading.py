"A file that somebody else wrote becomes a table, or one line that says where it does not."

import gzip
import os
from datetime import date
from pathlib import Path

import polars as pl
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tradenb.core.errors import ConfigError, SourceError, TradenbError
from tradenb.market.layouts import require_columns
from tradenb.market.reading import TextFormat, find_files, read_table, share_classes, stem_of, typed

SHAPE: dict[str, pl.DataType] = {"symbol": pl.String(), "day": pl.Date(), "close": pl.Float64(), "volume": pl.Int64()}
HEADER = "symbol,day,close,volume\n"
ROWS = "AAPL,2014-02-03,71.65,100366000\nAAPL,2014-02-04,72.68,94170000\nMSFT,2014-02-03,36.48,64063100\n"


def read(file: Path, form: TextFormat | None = None) -> pl.DataFrame:
    form = form or TextFormat()
    table = read_table(file, form, lambda have: require_columns(file, have, {name: name for name in SHAPE}))
    return typed(table, file, SHAPE, ["symbol", "day"], form.date_format)


def written(folder: Path, content: str | bytes, name: str = "bars.csv") -> Path:
    file = folder / name
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbf" + (HEADER + ROWS).encode(),
        (HEADER + ROWS).replace("\n", "\r\n"),
        HEADER + ROWS + "\n\n",
        HEADER + "\n" + ROWS,
        HEADER + ROWS.rstrip("\n"),
        (HEADER + ROWS).replace("71.65", '"71.65"').replace("AAPL", '"AAPL"').replace("94170000", '"94,170,000"'),
        (HEADER + ROWS)
        .replace("AAPL", " AAPL ")
        .replace("94170000", " 94170000.2")
        .replace("2014-02-03", "2014-02-03 "),
        (HEADER + ROWS).replace("2014-02-03", "2014-02-03 00:00:00-05:00"),
        (HEADER + ROWS).replace(",", " , "),
    ],
    ids=["bom", "crlf", "blank-end", "blank-line", "no-newline", "quoted", "spaces", "stamped", "wide"],
)
def test_ways_to_write_the_same_table_are_one_table(tmp_path: Path, content: str | bytes):
    plain = read(written(tmp_path, HEADER + ROWS, "plain.csv"))
    assert read(written(tmp_path, content)).equals(plain)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "cp1252", "utf-8-sig"])
def test_encodings_are_read_as_stated_zipped_too(tmp_path: Path, encoding: str):
    content = (HEADER + ROWS.replace("MSFT", "MÜNCH")).replace(",", "\t").encode(encoding)
    form = TextFormat("tab", encoding)
    plain = read(written(tmp_path, content), form)
    assert plain["symbol"].to_list() == ["AAPL", "AAPL", "MÜNCH"]
    assert read(written(tmp_path, gzip.compress(content), "bars.csv.gz"), form).equals(plain)


def test_vendors_words_for_nothing_are_nulls_but_a_symbol_may_be_called_na(tmp_path: Path):
    words = ["NA", "N/A", "n/a", "null", "NULL", "None", "nan", "NaN", "-", "", '""']
    table = read(written(tmp_path, HEADER + "".join(f"NA,2014-02-03,{word},{word}\n" for word in words)))
    assert table["close"].null_count() == table["volume"].null_count() == len(words)
    assert set(table["symbol"]) == {"NA"}


def test_dates_come_as_text_as_numbers_and_as_instants(tmp_path: Path):
    zoned = (
        pl.lit(date(2014, 2, 3)).cast(pl.Datetime).dt.replace_time_zone("Asia/Tokyo")
    )  # midnight there is yesterday in UTC
    ways: list[tuple[str, pl.Expr]] = [
        ("", pl.lit("2014-02-03T21:00:00Z")),
        ("%Y%m%d", pl.lit(20140203)),
        ("%Y%m%d", pl.lit("20140203")),
        ("%d/%m/%y", pl.lit("03/02/14")),
        ("%b %d, %Y", pl.lit("Feb 03, 2014")),
        ("%d.%m.%Y %H:%M", pl.lit("03.02.2014 22:00")),
        ("", pl.lit(date(2014, 2, 3)).cast(pl.Datetime("ns"))),
        ("", zoned),
    ]
    for n, (form, value) in enumerate(ways):
        file = tmp_path / f"{n}.parquet"
        pl.DataFrame({"symbol": ["A"], "close": 1.0, "volume": 10.4}).with_columns(day=value).write_parquet(file)
        table = read(file, TextFormat(date_format=form))
        assert table.row(0) == ("A", date(2014, 2, 3), 1.0, 10), (form, value)


def test_parquet_of_other_types_is_cast_and_only_what_is_wanted_is_read(tmp_path: Path):
    file = tmp_path / "bars.parquet"
    table = pl.DataFrame({"symbol": ["A", "B"], "close": [1.5, float("nan")], "volume": [10, 2], "rest": [[1], [2]]})
    table = table.with_columns(
        pl.col("symbol").cast(pl.Categorical), pl.col("volume").cast(pl.UInt32), day=pl.lit(date(2014, 2, 3))
    )
    table.write_parquet(file)
    assert read(file).rows() == [("A", date(2014, 2, 3), 1.5, 10), ("B", date(2014, 2, 3), None, 2)]
    assert read_table(file, TextFormat(), lambda have: ["day"]).columns == ["day"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "bars.csv: the file is empty"),
        (HEADER + ROWS + "A,2014-02-03,1,1,1\n", "bars.csv row 5 has more fields than the header's 4"),
        (HEADER + ROWS.replace("36.48", "36;48"), "bars.csv row 4: close is '36;48', expected a number"),
        (HEADER + ROWS.replace("36.48", "36,48"), "row 4 has more fields"),
        (HEADER + ROWS.replace("36.48", '"36,480"'), "row 4: close is '36,480', expected a number"),
        (HEADER + ROWS.replace("64063100", "1e30"), "row 4: volume is '1e30', expected a whole number"),
        (HEADER + ROWS.replace("64063100", "inf"), "row 4: volume is 'inf', expected a whole number"),
        (HEADER + ROWS.replace("2014-02-04", "04.02.2014"), "row 3: day is '04.02.2014', expected a date (YYYY-MM-DD"),
        (HEADER + ROWS.replace("2014-02-04", "2014-02-04x"), "row 3: day is '2014-02-04x', expected a date"),
        (HEADER + ROWS.replace("2014-02-04", "2014-02-30"), "row 3: day is '2014-02-30', expected a date"),
        (HEADER + ROWS + ",2014-02-03,1,1\n", "row 5: symbol is None, expected a text"),
        (HEADER + "\n" + ROWS.replace("36.48", "x"), "row 5: close is 'x'"),
        (HEADER.encode() + b"A\xfc,2014-02-03,1,1\n", "row 2: byte 0xfc is no utf-8, set files.encoding"),
        ((HEADER + ROWS).encode() + "Ü,2014-02-03,1,1\n".encode() + b"\xdc,2014-02-03,1,1\n", "row 6: byte 0xdc"),
        (b"\xff\xfe\x00name\n\x81\x82", "bars.csv row 1: byte 0xff"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_one_line_with_its_row(tmp_path: Path, content: str | bytes, says: str):
    with pytest.raises(SourceError) as caught:
        read(written(tmp_path, content))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [pl.List(pl.Float64), pl.Binary, pl.Struct({"x": pl.Float64}), pl.Boolean])
def test_a_parquet_column_of_a_kind_that_is_no_price_is_named(tmp_path: Path, kind: pl.DataType):
    value = {pl.List: [[1.0]], pl.Binary: [b"1"], pl.Struct: [{"x": 1.0}], pl.Boolean: [True]}[kind.base_type()]
    file = tmp_path / "bars.parquet"
    table = pl.DataFrame({"symbol": ["A"], "day": [date(2014, 2, 3)], "volume": [1]})
    table.with_columns(pl.Series("close", value, dtype=kind)).write_parquet(file)
    with pytest.raises(SourceError, match=r"bars\.parquet row 1: close is .*, expected a number"):
        read(file)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_parquet_file_cut_off_or_damaged_anywhere_is_read_or_refused_in_one_line(tmp_path: Path, data):
    rows = pl.DataFrame(
        {"symbol": ["A", "B"] * 50, "day": date(2014, 2, 3), "close": [1.5, 2.5] * 50, "volume": range(100)}
    )
    file = tmp_path / "bars.parquet"
    rows.write_parquet(file)
    content = bytearray(file.read_bytes())
    if data.draw(st.booleans()):
        content = content[: data.draw(st.integers(0, len(content) - 1))]
    else:
        for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8)):
            content[at] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    try:
        read(file)
    except TradenbError as error:
        assert "\n" not in str(error) and "bars.parquet" in str(error)  # noqa: PT017


@pytest.mark.parametrize("name", ["bars.csv.gz", "bars.parquet", "bars.csv"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_torn_file_is_named(tmp_path: Path, name: str, share: float):
    rows = pl.DataFrame({"symbol": "A", "day": date(2014, 2, 3), "close": [x / 7 for x in range(999)], "volume": 1})
    if name.endswith("parquet"):
        rows.write_parquet(tmp_path / name)
    else:
        text = rows.write_csv().encode()
        (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    if name == "bars.csv" and share:  # a text that ends early still is one
        assert 0 < len(read(tmp_path / name)) < 999
        return
    with pytest.raises(SourceError, match=name):
        read(tmp_path / name)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=200),
        st.text("AB,;\"'\n\r-.01x\x00é", max_size=120).map(lambda s: (HEADER + ROWS + s).encode()),
    ),
    st.sampled_from(["utf-8", "latin-1", "utf-16"]),
)
@example(b'symbol,day,close,volume\n"A,2014-02-03,1,1\n', "utf-8")
def test_whatever_the_bytes_a_text_is_read_or_refused_in_one_line(tmp_path: Path, content: bytes, encoding: str):
    file = written(tmp_path, content)
    try:
        table = read_table(file, TextFormat(encoding=encoding))
        if set(SHAPE) <= set(table.columns):
            typed(table, file, SHAPE, ["symbol", "day"])
    except TradenbError as error:
        assert "\n" not in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("form", "says"), [({"delimiter": ";;"}, "files.delimiter"), ({"encoding": "utf-99"}, "files.encoding")]
)
def test_a_format_that_cannot_be_is_a_setting_to_mend(form, says):
    with pytest.raises(ConfigError, match=says):
        TextFormat(**form)


def test_a_folder_gives_its_tables_and_below_only_when_it_has_none_itself(tmp_path: Path):
    for name in ("a.csv", "b.CSV", "c.parquet", "d.csv.gz", ".hidden.csv", "notes.md", "e.csv.bak", "sub/f.csv"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    found = find_files(str(tmp_path), "files.bars")
    assert [f.name for f in found] == ["a.csv", "b.CSV", "c.parquet", "d.csv.gz"]
    assert [stem_of(f) for f in found] == ["a", "b", "c", "d"]
    assert find_files(str(tmp_path / "sub"), "files.bars") == [tmp_path / "sub" / "f.csv"]
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / "deep" / "er" / "AAPL.csv").touch()
    assert find_files(str(tmp_path / "deep"), "files.bars") == [tmp_path / "deep" / "er" / "AAPL.csv"]


def test_what_is_not_there_and_an_empty_folder_are_named(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="pipe is no regular file"):
        find_files(str(tmp_path / "pipe"), "files.bars")
    with pytest.raises(ConfigError, match=r"files\.bars is empty"):
        find_files("", "files.bars")
    with pytest.raises(ConfigError, match="no such file or folder"):
        find_files(str(tmp_path / "nowhere"), "files.bars")
    with pytest.raises(ConfigError, match="holds no file that ends in"):
        find_files(str(tmp_path), "files.bars")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take another user's eyes")
def test_what_may_not_be_read_is_named(tmp_path: Path):
    file = written(tmp_path, HEADER + ROWS)
    closed = tmp_path / "closed"
    closed.mkdir()
    shut = [file, closed, *(folder for folder in tmp_path.parents if len(folder.parts) > 2)]
    modes = {path: path.stat().st_mode for path in shut}
    for path in shut:
        path.chmod(0o755)
    file.chmod(0), closed.chmod(0)
    os.seteuid(65534)
    try:
        with pytest.raises(SourceError, match=r"bars\.csv.* cannot be read: .*[Pp]ermission"):
            read(file)
        with pytest.raises(ConfigError, match=r"files\.bars=.*closed cannot be listed: Permission denied"):
            find_files(str(closed), "files.bars")
    finally:
        os.seteuid(0)
        for path, mode in modes.items():
            path.chmod(mode)


@given(st.from_regex(r"[A-Z]{1,5}([-_/. ]?[A-Z0-9]{1,6})?", fullmatch=True))
def test_a_share_class_stands_behind_a_dot_and_nothing_else_is_touched(symbol: str):
    (found,) = share_classes(pl.Series([symbol]))
    letters = symbol.replace("-", ".").replace("_", ".").replace("/", ".").replace(" ", ".")
    is_class = len(letters) > 2 and letters[-2] == "." and letters[-1].isalpha() and letters[:-2].isalpha()
    assert found == (letters if is_class else symbol)
    assert share_classes(pl.Series([found])).to_list() == [found]
