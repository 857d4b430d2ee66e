"A day that went through services, exchange and flow is replayed and explained from the command line."

import csv
from datetime import date
from decimal import Decimal

from sqlalchemy import update

from tradenb.core import db

FIRST = date(2020, 1, 3)
RUN = f"{FIRST}-alpha158_ls"


def change(desk, table, where, **values) -> None:
    engine = db.connect(db.default_url(desk.root))
    with engine.begin() as connection:
        connection.execute(update(table).where(where).values(**values))
    engine.dispose()


def test_a_day_is_replayed_explained_and_a_changed_quantity_found(desk, tmp_path) -> None:
    answer = desk.tradenb("replay", str(FIRST), **{"portfolio.top_n": 7})
    assert (answer.code, "identical" in answer.out) == (0, True), answer.err + answer.out
    assert "the settings are others today" in answer.out
    assert desk.tradenb("replay", "--all").code == 0

    (row,) = desk.rows(db.runs, run_id=RUN)
    for part in (
        "settings",
        "positions",
        "model",
        "features",
        "by_feature",
        "by_symbol",
        "predictions",
        "weights",
        "plan",
    ):
        assert part in row["digests"], part
    assert row["digests"]["settings"]["portfolio"]["top_n"] == 5

    sent = next(r for r in desk.rows(db.run_signals, run_id=RUN) if r["side"])
    symbol = sent["symbol"]
    story = desk.tradenb("explain", RUN, symbol)
    assert story.code == 0, story.err
    page = (desk.root / "runs" / str(FIRST) / RUN / f"explain_{symbol}.html").read_text()
    for text in ("the prediction", symbol, "filled", str(sent["client_order_id"])):
        assert text in story.out, text
    assert "Filled at" in page and "Its life" in page

    change(desk, db.run_signals, db.run_signals.c.client_order_id == sent["client_order_id"], qty=sent["qty"] + 1)
    found = desk.tradenb("replay", RUN, "--output", str(tmp_path / "found.csv"))
    assert found.code == 2
    rows = list(csv.DictReader((tmp_path / "found.csv").read_text().splitlines()))
    assert [(r["part"], r["symbol"], r["field"]) for r in rows] == [("record", "", "plan"), ("orders", symbol, "qty")]
    assert Decimal(rows[1]["kept"]) == sent["qty"] + 1 == Decimal(rows[1]["again"]) + 1


def test_what_cannot_be_replayed_says_why(desk) -> None:
    assert "unknown run 2020-01-02-alpha158_ls" in desk.tradenb("replay", "2020-01-02").err
    assert "has no bar of N0BODY" in desk.tradenb("explain", RUN, "N0BODY").err
    assert desk.tradenb("replay").code == 3
