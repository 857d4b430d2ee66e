"A day, the next day, and the same day again, from the command line in this process."

import json
from datetime import date
from pathlib import Path

import psutil
import pytest

from tradenb.core import db
from tradenb.market.lake import Lake

FIRST, SECOND = date(2020, 1, 3), date(2020, 1, 6)
STAGES = ("1_etl", "2_train", "3_signals", "4_trade", "5_reconcile", "6_report")


def picture(root: Path) -> dict[str, tuple[int, int]]:
    "Size and time of every file whose change would be one of substance."
    kept = [p for name in ("lake", "runs", "mlflow") for p in (root / name).rglob("*") if p.is_file()]
    return {str(p): (p.stat().st_size, p.stat().st_mtime_ns) for p in kept}


def folder(root: Path, day: date) -> Path:
    return root / "runs" / str(day) / f"{day}-alpha158_ls"


def test_a_first_day_is_traded_reconciled_and_reported(desk):
    assert desk.status(FIRST) == "completed"
    desk.check_books()
    (close,) = desk.rows(db.account_snapshots, moment="close")
    assert close["equity"] > 0
    for stage in STAGES:
        page = (folder(desk.root, FIRST) / f"{stage}.html").read_text()
        assert (folder(desk.root, FIRST) / f"{stage}.ipynb").is_file()
        assert "Traceback" not in page, stage
        assert len(page) > 2_000, stage


def test_a_second_day_goes_on_where_the_first_ended_and_leaves_nothing_running(desk, tmp_path):
    answer = desk.tradenb("paper-run", "--output", str(tmp_path / "out" / "day.json"))
    assert answer.code == 0, answer.err
    assert "completed" in answer.out and "Traceback" not in answer.err
    result = json.loads((tmp_path / "out" / "day.json").read_text())
    assert result["run_id"] == f"{SECOND}-alpha158_ls"
    assert (result["status"], result["repeated"], result["summary"]["matched"]) == ("completed", False, True)
    assert [stage["status"] for stage in result["stages"]] == ["completed"] * 6
    assert Path(result["report"]).is_file()
    desk.check_books()
    index = (desk.root / "runs" / "index.html").read_text()
    assert index.count(f"{FIRST}-alpha158_ls/6_report.html") >= 1
    assert index.count(f"{SECOND}-alpha158_ls/6_report.html") >= 1
    assert [c for c in psutil.Process().children(recursive=True) if "prefect" in " ".join(c.cmdline())] == []


def test_a_repeated_date_changes_nothing_and_says_so(desk):
    before = picture(desk.root), desk.counts(), Lake(desk.root / "lake").vintage(), desk.at_exchange("orders")
    answer = desk.day(FIRST)
    assert "nothing was changed" in answer.out
    assert (
        picture(desk.root), desk.counts(), Lake(desk.root / "lake").vintage(), desk.at_exchange("orders")
    ) == before  # fmt: skip


@pytest.mark.long
def test_profit_and_loss_of_the_names_is_the_change_in_equity(desk):
    first = desk.rows(db.account_snapshots, trade_date=FIRST, moment="close")[0]["equity"]
    desk.day()
    second = desk.rows(db.account_snapshots, trade_date=SECOND, moment="close")[0]["equity"]
    (row,) = desk.rows(db.runs, trade_date=SECOND)
    assert float(row["summary"]["pnl"]) == round(float(second - first), 2)
