"What cannot be done is refused in one line on the error stream, with the exit code that says whose fault it is."

import fcntl
import json
import shutil
import socket
from datetime import date
from pathlib import Path

import pytest

from tradenb.core import db

FIRST, SECOND = date(2020, 1, 3), date(2020, 1, 6)
KEYS = {
    "TRADENB_SERVICES__API_KEY": "the-key-of-the-services",
    "TRADENB_EXECUTION__BROKER_KEY_ID": "PKTEST",
    "TRADENB_EXECUTION__BROKER_SECRET": "the-secret-of-the-broker",
}


def one_line(answer, code: int, *words: str) -> None:
    "The answer is a refusal with this code, whose single line holds the words."
    assert answer.code == code, answer
    line = answer.lines[-1]
    assert line.startswith("error: "), answer.err
    assert sum(text.startswith("error: ") for text in answer.lines) == 1
    assert "Traceback" not in answer.err + answer.out
    for word in words:
        assert word in line, line


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        (["--symbols", "NOSUCH"], {}, ["NOSUCH"]),
        (["--date", "2020-01-04"], {}, ["2020-01-04", "2020-01-03", "2020-01-06"]),
        (["--date", "2020-01-20"], {}, ["2020-01-20", "2020-01-21"]),
        (["--date", "2020-13-01"], {}, ["2020-13-01"]),
        (["--date", "tomorrow"], {}, ["tomorrow"]),
        (["--date", "2045-01-03"], {}, ["2045-01-03"]),
        (["--date", "2017-01-03"], {}, ["2017-01-03"]),
        (["--capital", "-5"], {}, ["portfolio.capital", "-5"]),
        (["--capital", "0"], {}, ["portfolio.capital"]),
        (["--capital", "much"], {}, ["portfolio.capital", "much"]),
        (["--capital", "NaN"], {}, ["portfolio.capital"]),
        (["--source", "bloomberg"], {}, ["market.source", "bloomberg"]),
        (["--set", "portfolio.topn=3"], {}, ["portfolio.topn", "top_n"]),
        (["--set", "portfolio.top_n"], {}, ["portfolio.top_n"]),
        (["--set", "exchange.cash=three"], {}, ["exchange.cash", "three"]),
        (["--set", "top_n=3"], {}, ["top_n"]),
        (["--set", "execution.trade_at=open"], {}, ["label.price", "execution.trade_at"]),
        (["--source", "files"], {}, ["files.bars"]),
        (["--set", "features.set=alpha159"], {}, ["features.set=alpha159", "alpha158, alpha360"]),
        (["--set", "features.set=/nowhere/mine.toml"], {}, ["/nowhere/mine.toml"]),
        ([], {"files.bars": "/nowhere/bars.csv", "market.source": "files"}, ["/nowhere/bars.csv"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_slips_end_with_code_3_and_leave_no_run(fresh, arguments, settings, words):
    one_line(fresh.tradenb("paper-run", *arguments, **settings), 3, *words)
    assert not (fresh.root / "runs").exists()


@pytest.mark.parametrize("check", [[], ["--dry-run"]], ids=["run", "check"])
def test_features_that_know_the_future_are_refused_before_anything_starts(fresh, tmp_path, check):
    path = tmp_path / "mine.toml"
    path.write_text('[features]\nMOM = "$close/Ref($close,5)"\nNEXT = "Ref($close,-1)/$close"\n')
    answer = fresh.tradenb("paper-run", *check, "--set", f"features.set={path}")
    one_line(answer, 3, str(path), "feature NEXT", "Ref($close,-1)", "looks at a later session")
    assert not (fresh.root / "runs").exists() and not (fresh.root / "lake").exists()


HEADER = "symbol,date,open,high,low,close,volume\n"
ROW = "AAA,2020-01-02,1,2,1,2,100\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["bars.csv"]),
        (HEADER, ["bars.csv"]),
        ("symbol,date,open,high,low,volume\nAAA,2020-01-02,1,2,1,100\n", ["close"]),
        (HEADER + ROW + "AAA,2020-01-03,1,2\n" + 'AAA,"2020-01-06,1,2,1,2,100\n', ["bars.csv"]),
        (HEADER + ROW + "AAA,third of January,1,2,1,2,100\n", ["third of January"]),
        (HEADER + ROW + "AAA,2020-01-03,one,2,1,2,100\n", ["one"]),
        ("\x00\x01\x02\xff", ["bars.csv"]),
    ],
    ids=["empty", "header only", "a missing column", "malformed", "a bad date", "a bad number", "binary"],
)
def test_a_file_that_is_no_table_of_bars_is_named(fresh, tmp_path, text, words):
    (tmp_path / "bars.csv").write_text(text, encoding="latin-1")
    answer = fresh.tradenb("paper-run", **{"market.source": "files", "files.bars": tmp_path / "bars.csv"})
    one_line(answer, answer.code, *words)
    assert answer.code in (2, 3)


def test_a_session_before_the_last_traded_one_is_refused(desk):
    before = desk.counts()
    one_line(desk.tradenb("paper-run", "--date", "2020-01-02"), 3, "2020-01-02", str(FIRST))
    assert desk.counts() == before


def test_a_second_run_on_the_same_root_is_turned_away(desk):
    with (desk.root / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        one_line(desk.tradenb("paper-run"), 1, "another run")
        one_line(desk.tradenb("etl"), 1, "another run")
    assert len(desk.rows(db.runs)) == 1


@pytest.mark.parametrize("service", ["exchange", "execution", "signals", "orchestrator"])
def test_dead_services_are_dependencies(desk, service):
    desk.env |= KEYS
    answer = desk.tradenb("paper-run", **{f"services.{service}_url": "http://127.0.0.1:9"})
    one_line(answer, 1, "127.0.0.1:9")
    assert len(desk.rows(db.runs)) == 1


def test_an_exchange_elsewhere_wants_keys(desk):
    one_line(desk.tradenb("paper-run", **{"services.exchange_url": "http://127.0.0.1:9"}), 3, "BROKER_KEY_ID")


def test_a_taken_port_is_a_dependency(desk):
    desk.env |= KEYS
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        one_line(desk.tradenb("serve", "signals", "--port", str(port)), 1, str(port))
        one_line(desk.tradenb("serve", "exchange", "--port", str(port)), 1, str(port))


def test_a_dry_run_checks_health_and_begins_nothing(desk):
    before = desk.counts()
    answer = desk.tradenb("paper-run", "--dry-run")
    assert answer.code == 0, answer.err
    assert str(SECOND) in answer.out
    assert desk.counts() == before
    assert not (desk.root / "runs" / str(SECOND)).exists()


@pytest.mark.long
def test_execution_in_dry_run_goes_the_full_path_and_sends_nothing(desk):
    there = desk.at_exchange("orders")
    desk.day(SECOND, **{"execution.dry_run": True})
    orders = desk.rows(db.orders, trade_date=SECOND)
    assert orders
    assert {(row["status"], row["dry_run"]) for row in orders} == {("dry_run", True)}
    assert sorted(row["client_order_id"] for row in orders) == desk.plan(SECOND)
    assert desk.at_exchange("orders") == there
    assert desk.rows(db.fills, trade_date=SECOND) == []
    assert desk.status(SECOND) == "completed"


@pytest.mark.long
def test_a_failed_stage_keeps_its_error_and_the_same_command_goes_on_from_there(desk):
    table, aside = desk.root / "lake" / "bars", desk.root / "aside"
    part = max(table.rglob("*.parquet"), key=lambda p: p.stat().st_size)
    shutil.copy(part, aside)
    part.write_bytes(b"no parquet")
    answer = desk.tradenb("paper-run")
    one_line(answer, 2)
    (row,) = desk.rows(db.runs, trade_date=SECOND)
    assert row["status"] == "failed" and row["error"] in answer.lines[-1]
    (failed,) = [s for s in desk.rows(db.run_stages, run_id=row["run_id"]) if s["status"] == "failed"]
    assert failed["error"] and Path(failed["report"]).is_file()
    assert "Traceback" in Path(failed["report"]).with_suffix(".ipynb").read_text()
    assert f"{SECOND}" in (desk.root / "runs" / "index.html").read_text()
    done = [s for s in desk.rows(db.run_stages, run_id=row["run_id"]) if s["status"] == "completed"]
    shutil.copy(aside, part)
    desk.day()
    assert desk.status(SECOND) == "completed"
    again = desk.rows(db.run_stages, run_id=row["run_id"])
    assert [s for s in done if s not in again] == []
    desk.check_books()


@pytest.mark.long
def test_a_history_too_short_to_train_on_fails_the_run_and_says_how_much_is_wanted(desk):
    greedy = {"training.train_sessions": 5000, "training.retrain_sessions": 1}
    for _ in range(2):
        one_line(desk.tradenb("paper-run", **greedy), 3, "505 sessions")
        (row,) = desk.rows(db.runs, trade_date=SECOND)
        assert row["status"] == "failed"
    states = {s["stage"]: s["status"] for s in desk.rows(db.run_stages, run_id=row["run_id"])}
    assert states == {"etl": "completed", "train": "failed"}
    assert desk.rows(db.orders, trade_date=SECOND) == []


def test_an_error_is_said_once_more_in_full_when_asked_for(desk):
    answer = desk.tradenb("paper-run", "--verbose", "--date", "2020-01-04")
    assert answer.code == 3
    assert "Traceback" in answer.err


def test_parts_of_a_day_work_by_themselves(desk, tmp_path):
    for command, words in {
        "runs": "2020-01-03-alpha158_ls",
        "etl": "lake up to 2020-01-03",
        "signals": "2020-01-0",
    }.items():
        answer = desk.tradenb(command)
        assert answer.code == 0, answer.err
        assert words in answer.out
    again = desk.tradenb("etl")
    assert ", 0 new sessions, 0 new bars" in again.out
    trained = desk.tradenb("train", "--why", "to see whether it works")
    assert trained.code == 0, trained.err
    assert "champion is version 2" in trained.out
    lines = desk.tradenb("logs", "--service", "train", "--event", "step").out.splitlines()
    assert any(json.loads(line)["trace_id"] in trained.err for line in lines)
    assert [row["why"] for row in desk.rows(db.model_activations)][-1] == "to see whether it works"


def test_parts_of_a_day_on_an_empty_root_say_what_is_missing(fresh):
    assert fresh.tradenb("runs").out.startswith("no runs yet")
    one_line(fresh.tradenb("signals"), 2, "tradenb etl")
    one_line(fresh.tradenb("train"), 2, "tradenb etl")
    one_line(fresh.tradenb("backfill", "--from", "2020-01-04", "--to", "2020-01-05"), 3, "no session")
    one_line(fresh.tradenb("backfill", "--from", "2020-01-08", "--to", "2020-01-06"), 3, "no session")
    one_line(fresh.tradenb("backfill", "--from", "2020-01-08", "--to", "soon"), 3, "soon")
