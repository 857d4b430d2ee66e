"The command line's questions to the lake: a table for people, CSV for programs, one line for what cannot be."

import csv
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tradenb.cli.main import run
from tradenb.core.settings import load
from tradenb.market.lake import Lake, open_lake
from tradenb.market.sample import EVENINGS, LAST, MARKET, SPLIT_DAY, SPLITS, build_sample
from tradenb.trading import records
from tradenb.trading.run import start_run

PROJECT = Path(__file__).resolve().parents[1]
Tell = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A data root whose lake has a history of five evenings."
    root = tmp_path_factory.mktemp("sample") / "data"
    build_sample(root)
    return root


@pytest.fixture
def lake(sample: Path) -> Lake:
    return open_lake(load({"core.root": str(sample)}, env={}))


@pytest.fixture
def own(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    "A copy that a test may change, with the settings that it was made with."
    root = tmp_path / "data"
    shutil.copytree(sample, root)
    for name, value in (MARKET | {"core.root": str(root)}).items():
        section, _, key = name.partition(".")
        monkeypatch.setenv(f"TRADENB_{section.upper()}__{key.upper()}", str(value))
    return root


@pytest.fixture
def tell(sample: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tell:
    "Run a command: its exit code, what it answered, and the lines of its error stream."
    monkeypatch.setenv("TRADENB_CORE__ROOT", str(sample))
    monkeypatch.delenv("COLUMNS", raising=False)

    def ask(*arguments: str) -> tuple[int, str, list[str]]:
        capsys.readouterr()
        code = run(list(arguments))
        said = capsys.readouterr()
        return code, said.out, said.err.strip().splitlines()

    return ask


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# Asking in SQL


def test_an_answer_in_a_pipe_is_csv_with_every_row_and_digit(tell: Tell, lake: Lake) -> None:
    code, out, err = tell("sql", "select symbol, date, adj_close from bars order by symbol, date")
    assert (code, err) == (0, [])
    answered = pl.read_csv(io.StringIO(out), try_parse_dates=True)
    assert answered.equals(lake.read("bars", columns=["symbol", "date", "adj_close"]))


def test_an_answer_on_a_terminal_is_a_table_that_says_how_much_it_leaves_out(
    tell: Tell, lake: Lake, monkeypatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    code, out, _ = tell("sql", "select symbol, close from bars", "--limit", "3")
    lines = out.strip().splitlines()
    assert code == 0 and len(lines) == 6
    assert lines[0] == "select symbol, close from bars"
    assert lines[-1].startswith(f"3 of {len(lake.read('bars')):,} rows") and "--output" in lines[-1]
    assert len(tell("sql", "select symbol from bars")[1].splitlines()) == 43


def test_a_query_may_come_from_a_file(tell: Tell, tmp_path: Path) -> None:
    file = tmp_path / "answer.sql"
    file.write_text("select 6 * 7\n  as answer -- of course\n")
    assert tell("sql", str(file))[1] == "answer\n42\n"
    code, _, err = tell("sql", str(tmp_path / "nowhere.sql"))
    assert code == 3 and "no such file" in err[0]


def test_a_query_may_come_on_standard_input(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("select 6 * 7 as answer\n"))
    assert tell("sql", "-")[1] == "answer\n42\n"


@pytest.mark.parametrize("ending", ["csv", "parquet", "json"])
def test_an_answer_goes_to_a_file_by_its_ending(tell: Tell, tmp_path: Path, ending: str) -> None:
    file = tmp_path / "new" / f"answer.{ending}"
    code, out, err = tell(
        "sql", "select symbol, count(*) as bars from bars group by all order by all", "--output", str(file)
    )
    assert (code, out) == (0, "") and str(file) in err[0]
    read = {"csv": pl.read_csv, "parquet": pl.read_parquet, "json": pl.read_json}[ending](file)
    assert read.columns == ["symbol", "bars"] and len(read) > 30


def test_an_answer_with_lists_and_instants_is_csv_all_the_same(tell: Tell) -> None:
    query = "select [1, 2] as pair, {'a': 1} as thing, timestamptz '2024-01-08 21:00:00+00' as at, null as nothing"
    (row,) = rows(tell("sql", query)[1])
    assert (json.loads(row["pair"]), json.loads(row["thing"])) == ([1, 2], {"a": 1})
    assert (row["at"], row["nothing"]) == ("2024-01-08T21:00:00Z", "")


def test_a_reader_who_has_had_enough_is_no_error(sample: Path) -> None:
    command = Path(sys.executable).with_name("tradenb")
    shell = f"set -o pipefail; {command} sql 'select * from raw_bars' --set core.root={sample} | head -1"
    done = subprocess.run(["bash", "-c", shell], cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("symbol,date,open")


def test_the_tables_and_their_columns_are_listed(tell: Tell, lake: Lake) -> None:
    listed = {row["table"]: row for row in rows(tell("sql", "--tables")[1])}
    assert set(lake.vintage()) | {"vintages", "raw_latest"} == set(listed)
    assert int(listed["bars"]["rows"]) == len(lake.read("bars"))
    assert "adj_close" in listed["bars"]["columns"]


# Asking about the past


def test_an_earlier_vintage_answers_as_it_did_then(tell: Tell) -> None:
    query = f"select round(adj_close, 4) as c from bars where symbol = '{SPLITS}' and date = '{EVENINGS[0]}'"
    before, after = (float(rows(tell("sql", query, "--vintage", n)[1])[0]["c"]) for n in ("2", "3"))
    assert before / after == pytest.approx(4, rel=1e-3)
    known = float(rows(tell("sql", query, "--as-of", str(EVENINGS[1]))[1])[0]["c"])
    assert known == before
    assert rows(tell("sql", "select max(date) as day from bars", "--vintage", "1")[1])[0]["day"] == str(EVENINGS[0])


def test_a_run_is_asked_for_what_it_saw(tell: Tell, own: Path) -> None:
    settings = load({"core.root": str(own)}, env={})
    runs = [start_run(settings, day) for day in (EVENINGS[3], LAST)]
    seen = open_lake(settings).at(3).vintage()
    records.learn(runs[0].engine, runs[0].run_id, vintage=dict(seen))
    for one in runs:
        one.engine.dispose()
    here = ("--set", f"core.root={own}")
    query = "select max(date) as day from bars"
    assert rows(tell("sql", query, "--run", runs[0].run_id, *here)[1]) == [{"day": str(SPLIT_DAY)}]
    code, _, err = tell("sql", query, "--run", runs[1].run_id, *here)
    assert code == 3 and "saw no market data" in err[0]


def test_prices_are_adjusted_as_the_settings_say(tell: Tell) -> None:
    query = f"select adj_close from bars where symbol = '{SPLITS}' order by date limit 1"
    ways = [("total_return", "prev_close"), ("total_return", "ex_close"), ("split", "prev_close")]
    first = [
        float(
            rows(tell("sql", query, "--set", f"market.adjustment={how}", "--set", f"market.convention={close}")[1])[0][
                "adj_close"
            ]
        )
        for how, close in ways
    ]
    assert len(set(first)) == 3 and max(first) == first[2]  # Splits alone take no dividends out


def test_the_commit_log_has_a_line_for_each_evening(tell: Tell) -> None:
    book = rows(tell("lake", "vintages")[1])
    assert [row["as_of"] for row in book] == [str(day) for day in reversed(EVENINGS)]
    assert [row["number"] for row in book] == ["5", "4", "3", "2", "1"]
    assert "adjustments" in book[2]["changed"] and "adjustments" not in book[3]["changed"]


def test_late_corrections_are_listed_with_both_values(tell: Tell) -> None:
    found = rows(tell("lake", "revisions", "--symbols", SPLITS, "--since", "2019-11-01")[1])
    close = next(row for row in found if row["field"] == "close")
    assert float(close["after"]) / float(close["before"]) == pytest.approx(0.99, abs=1e-3)
    assert close["seen_at"].startswith(str(LAST))
    assert len(rows(tell("lake", "revisions")[1])) > len(found)


# The lake itself


def test_the_status_counts_what_is_there(tell: Tell, lake: Lake) -> None:
    code, out, err = tell("lake", "status")
    tables = {row["table"]: row for row in rows(out)}
    assert code == 0 and int(tables["bars"]["rows"]) == len(lake.read("bars"))
    assert tables["bars"]["last"] == str(LAST) and int(tables["vintages"]["rows"]) == len(EVENINGS)
    assert any("vintage 5" in line and str(LAST) in line for line in err)
    assert any("nobody" in line for line in err)


def test_the_status_names_who_is_writing(tell: Tell, lake: Lake) -> None:
    with lake.writing():
        assert any("process" in line for line in tell("lake", "status")[2] if line.startswith("written by"))


def test_upkeep_says_what_it_did_and_leaves_every_vintage_as_it_was(tell: Tell, own: Path) -> None:
    lake = open_lake(load({"core.root": str(own)}, env={}))
    before = [lake.at(number).read("bars") for number in (1, 3, 5)]
    here = ("--set", f"core.root={own}")
    assert "years of tables compacted" in tell("lake", "compact", *here, "--set", "lake.compact_after=2")[1]
    assert "files would be removed" in tell("lake", "vacuum", "--dry-run", *here)[1]
    assert "files removed" in tell("lake", "vacuum", *here)[1]
    assert all(lake.at(number).read("bars").equals(rows) for number, rows in zip((1, 3, 5), before, strict=True))


@pytest.mark.parametrize("kind", ["qlib", "parquet"])
def test_an_export_goes_to_a_new_folder(tell: Tell, lake: Lake, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "copy"
    code, out, _ = tell("lake", "export", kind, str(folder), "--as-of", str(SPLIT_DAY))
    known = lake.known(SPLIT_DAY).read("bars")
    assert code == 0 and f"{len(known):,} rows" in out and str(folder) in out
    if kind == "parquet":
        assert pl.read_parquet(folder / "bars.parquet").equals(known)
    else:
        assert len(list((folder / "features").iterdir())) == known["symbol"].n_unique()
    code, _, err = tell("lake", "export", kind, str(folder))
    assert code == 2 and "there already" in err[-1]


# The quarantine


def test_what_waits_is_listed_newest_first_and_can_be_narrowed(tell: Tell, lake: Lake) -> None:
    waiting = rows(tell("quarantine", "list")[1])
    assert len(waiting) == len(lake.read("quarantine"))
    assert [row["date"] for row in waiting] == sorted((row["date"] for row in waiting), reverse=True)
    moves = rows(tell("quarantine", "list", "--check", "move", "--since", "2019-01-01")[1])
    assert {row["check"] for row in moves} == {"move"} and min(row["date"] for row in moves) >= "2019-01-01"
    assert all("peers" in row["reason"] for row in moves)
    assert rows(tell("quarantine", "list", "--check", "gap")[1]) == []


def test_a_row_let_go_by_name_is_taken_in_by_the_next_etl(tell: Tell, own: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRADENB_CORE__ROOT", str(own))
    row = next(row for row in rows(tell("quarantine", "list", "--check", "move")[1]) if row["date"] == str(LAST))
    symbol, close = row["symbol"], float(row["close"])
    code, out, _ = tell("quarantine", "release", symbol, str(LAST), "--who", "ada")
    assert code == 0 and f"{close:g}" in out and "ada" in out
    assert rows(tell("lake", "vintages")[1])[0]["source"] == "released by ada"
    released = rows(tell("quarantine", "list", "--all", "--symbols", symbol)[1])
    assert [row["released_by"] for row in released if row["date"] == str(LAST)] == ["ada"]
    query = f"select close from bars where symbol = '{symbol}' and date = '{LAST}'"
    assert rows(tell("sql", query)[1]) == []
    code, out, err = tell("etl", "--date", str(LAST))
    assert (code, rows(tell("sql", query)[1])) == (0, [{"close": str(close)}])
    assert f"lake up to {LAST}" in out and any("judging" in line or "gate" in line for line in err)


def test_an_etl_by_hand_is_a_trace_that_the_log_knows(tell: Tell, own: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRADENB_CORE__ROOT", str(own))
    said = tell("etl", "--date", str(LAST))[2][-1]
    trace = re.fullmatch(r"trace ([0-9a-f]{32}) \(tradenb trace [0-9a-f]{8}\)", said)
    assert trace
    (line,) = [json.loads(text) for text in tell("logs", "--trace", trace[1], "--event", "step")[1].splitlines()]
    assert (line["service"], line["context"]["name"]) == ("etl", "etl")
    assert trace[1] in tell("trace", trace[1][:8])[1]


def test_a_row_that_does_not_wait_cannot_be_let_go(tell: Tell, own: Path) -> None:
    here = ("--who", "ada", "--set", f"core.root={own}")
    for symbol, day, code, says in (
        (SPLITS, str(LAST), 3, "none waits"),
        ("NOSUCH", str(LAST), 3, "NOSUCH"),
        (SPLITS, "soon", 3, "write it as"),
    ):
        ended, _, err = tell("quarantine", "release", symbol, day, *here)
        assert (ended, len(err)) == (code, 1) and says in err[0]
    assert tell("quarantine", "release", SPLITS, str(LAST))[0] == 3


def test_a_training_or_a_backfill_beyond_what_there_is_is_refused_before_anything_starts(tell: Tell, own: Path) -> None:
    here = ("--set", f"core.root={own}")
    for asked, says in (
        (("train", "--date", "2031-01-02"), f"2031-01-02 lies beyond the lake, which ends with {LAST}"),
        (("backfill", "--from", "2019-06-08", "--to", "2019-06-09"), "no session between"),
    ):
        code, _, err = tell(*asked, *here)
        assert (code, len(err)) == (3, 1) and says in err[0]
    assert not (own / "prefect").exists()  # a scheduler's home


# Taking in again


def test_an_etl_again_says_that_nothing_changed_and_since_asks_for_more(tell: Tell, own: Path, monkeypatch) -> None:
    monkeypatch.setenv("TRADENB_CORE__ROOT", str(own))
    assert tell("etl", "--date", str(LAST))[0] == 0  # The vendor takes its corrections back
    code, out, err = tell("etl", "--date", str(LAST))
    assert code == 0 and "nothing changed" in out
    few = next(line for line in err if "rows" in line)
    many = next(line for line in tell("etl", "--date", str(LAST), "--since", "2019-06-03")[2] if "rows" in line)
    count = lambda line: int("".join(c for c in line.split("rows")[0].split()[-1] if c.isdigit()))
    assert count(many) > 5 * count(few)


# The universe


def test_the_members_of_a_day_come_with_their_liquidity(tell: Tell) -> None:
    code, out, err = tell("universe", str(SPLIT_DAY), "--set", "universe.min_dollar_volume=20000000")
    members = rows(out)
    assert code == 0 and len({row["symbol"] for row in members}) == len(members) > 30
    out_of_it = [row for row in members if row["left_out"]]
    assert all(float(row["dollar_volume"]) < 2e7 for row in out_of_it) and out_of_it
    assert f"{len(members)} members on {SPLIT_DAY}, {len(members) - len(out_of_it)} of them" in err[0]


def test_without_a_day_the_universe_is_that_of_the_newest_session(tell: Tell) -> None:
    assert any(str(LAST) in line for line in tell("universe")[2])


# What cannot be


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["sql", "select * from prices"], 2, "tables here: "),
        (["sql", "selec 1"], 2, "syntax error"),
        (["sql", "select clse from bars"], 2, "clse"),
        (["sql", "delete from bars"], 2, "expected one SELECT"),
        (["sql", "drop table bars"], 2, "expected one SELECT"),
        (["sql", "copy bars to 'x.csv'"], 2, "expected one SELECT"),
        (["sql", "select 1; select 2"], 2, "expected one SELECT"),
        (["sql"], 3, "--tables"),
        (["sql", " "], 3, "nothing was asked"),
        (["sql", "select 1", "--vintage", "99"], 2, "no vintage 99"),
        (["sql", "select 1", "--vintage", "x"], 3, "--vintage"),
        (["sql", "select 1", "--as-of", "1.1.2019"], 3, "write it as"),
        (["sql", "select 1", "--as-of", "2001-01-01"], 2, "tradenb lake vintages"),
        (["sql", "select 1", "--run", "2019-01-02-x"], 3, "unknown run"),
        (["sql", "select 1", "--vintage", "1", "--as-of", "2019-12-02"], 3, "give one of them"),
        (["sql", "select 1", "--output", "answer.xlsx"], 3, ".parquet"),
        (["sql", "select 1", "--limit", "0"], 3, "limit"),
        (["lake", "nonsense"], 3, "nonsense"),
        (["lake", "revisions", "--since", "yesterday"], 3, "write it as"),
        (["lake", "revisions", "--symbols", "NOSUCH"], 3, "NOSUCH"),
        (["lake", "export", "parquet", "copy", "--tables", "bars,prices"], 3, "prices"),
        (["lake", "export", "csv", "copy"], 3, "csv"),
        (["etl", "--since", "monday"], 3, "write it as"),
        (["quarantine", "list", "--symbols", "TOCO"], 3, "did you mean TUCO"),
        (["quarantine", "list", "--check", "beauty"], 3, "stuck"),
        (["universe", "2019-12-01"], 3, "Sunday"),
        (["universe", "2010-01-04"], 3, "nobody belonged"),
        (["universe", "tomorrow"], 3, "write it as"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_one_line_and_an_exit_code(tell: Tell, arguments: list[str], code: int, says: str) -> None:
    ended, out, err = tell(*arguments)
    assert (ended, out) == (code, "")
    assert len(err) == 1 and err[0].startswith("error: ") and says in err[0]


@pytest.mark.parametrize("arguments", [["lake"], ["quarantine"]])
def test_a_group_without_a_command_shows_its_commands(tell: Tell, arguments: list[str]) -> None:
    code, out, err = tell(*arguments)
    assert code == 3 and f"Usage: tradenb {arguments[0]}" in out
    assert err == ["error: name one of these commands"]


@pytest.mark.parametrize(
    "arguments",
    [["sql", "select 1"], ["sql", "--tables"], ["lake", "status"], ["lake", "vintages"], ["lake", "revisions"],
     ["lake", "compact"], ["lake", "vacuum"], ["lake", "export", "qlib", "copy"], ["lake", "export", "parquet", "copy"],
     ["quarantine", "list"], ["quarantine", "release", "TUCO", "2019-12-30", "--who", "ada"], ["universe"]],
)  # fmt: skip
def test_without_a_lake_every_question_says_how_to_get_one(tell: Tell, tmp_path: Path, arguments: list[str]) -> None:
    nowhere = tmp_path / "nowhere"
    code, out, err = tell(*arguments, "--set", f"core.root={nowhere}")
    assert (code, out, len(err)) == (2, "", 1)
    assert "tradenb etl" in err[0] and not nowhere.exists()
