"A delivery with too many bad rows ends the run, and what the gate found is kept and shown: by the run's page, in its folder, and by `tradenb etl`."

import json
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from pipelines.render import external_requests
from tradenb.core import db
from tradenb.core.calendar import sessions
from tradenb.market.quality import sample_bars
from tradenb.trading.stages import GATE_PAGE, GATE_RESULTS, REFUSED_ROWS

DAYS = sessions(date(2020, 1, 2), date(2020, 3, 31))
TRADED, AS_OF = DAYS[40], DAYS[39]
CLEAN = sample_bars(DAYS, symbols=20, seed=4).drop("vwap", "source")
TURNED = pl.col("symbol").is_in(["S003", "S007"]) & (pl.col("date") > DAYS[10])


def deliver(folder: Path, bad: pl.Expr | None = None) -> dict[str, object]:
    "Write the vendor's file, the volumes of bad rows with the wrong sign; the settings for it."
    turned = pl.when(pl.lit(False) if bad is None else bad).then(-pl.col("volume")).otherwise("volume")
    CLEAN.with_columns(turned.alias("volume")).write_csv(folder / "bars.csv")
    return {"market.source": "files", "files.bars": folder / "bars.csv"}


def refused(answer) -> str:
    "The one line of a refusal by the gate."
    assert answer.code == 2, answer
    assert [line.startswith("error: ") for line in answer.lines].count(True) == 1
    assert "Traceback" not in answer.err + answer.out
    assert "58 of 800 rows" in answer.lines[-1] and "quality.max_bad_share" in answer.lines[-1]
    return str(answer.lines[-1])


@pytest.fixture
def stopped(fresh, tmp_path):
    "A first day whose delivery is refused."
    answer = fresh.tradenb("paper-run", "--date", str(TRADED), **deliver(tmp_path, TURNED))
    refused(answer)
    return fresh


def test_the_page_of_a_refused_delivery_says_why_and_shows_the_rows(stopped):
    (stage,) = stopped.rows(db.run_stages)
    assert (stage["stage"], stage["status"]) == ("etl", "failed")
    html = Path(stage["report"]).read_text()
    assert "tn-red" in html and "58 of 800 rows (7.25%) failed the gate" in html
    assert "Negative volume (58 rows). They are of 2 symbols, on 29 days." in html
    places = [html.index(words) for words in ("<h1", "Rows that failed, by day", "Quality gate</h2>", "What failed</h2>", "S003 on", "This stage stopped here")]  # fmt: skip
    assert places == sorted(places)
    assert html.count("<figure") == 4  # by day, by name, one for each name
    assert external_requests(html) == []


def test_the_folder_of_a_refused_run_keeps_what_the_judge_said_and_every_row(stopped):
    (stage,) = stopped.rows(db.run_stages)
    folder = Path(stage["report"]).parent
    assert [suite["success"] for suite in json.loads((folder / GATE_RESULTS).read_text())] == [False, True]
    assert "Great Expectations" in (folder / GATE_PAGE).read_text()
    rows = pl.read_csv(folder / REFUSED_ROWS)
    assert len(rows) == 58 and set(rows["check"]) == {"volume"} and set(rows["symbol"]) == {"S003", "S007"}
    page = Path(stage["report"]).read_text()
    assert f'href="{GATE_PAGE}"' in page and f'href="{REFUSED_ROWS}"' in page


def test_etl_by_itself_says_which_checks_failed_and_where_to_look(fresh, tmp_path):
    answer = fresh.tradenb("etl", "--date", str(AS_OF), **deliver(tmp_path, TURNED))
    refused(answer)
    folder = fresh.root / "refused" / str(AS_OF)
    assert {path.name for path in folder.iterdir()} == {GATE_RESULTS, GATE_PAGE, REFUSED_ROWS}
    told = answer.lines[-3:-1]
    assert "volume" in told[0] and "58 rows" in told[0] and "quality.max_bad_share" not in told[0]
    assert str(folder) in told[1]
    again = fresh.tradenb("etl", "--date", str(AS_OF), **deliver(tmp_path))
    assert again.code == 0, again.err
    assert not folder.exists()


def test_a_refusal_after_good_days_draws_its_rows_among_the_bars_of_the_lake(fresh, tmp_path):
    settings = deliver(tmp_path)
    assert fresh.tradenb("etl", "--date", str(DAYS[38]), **settings).code == 0
    deliver(tmp_path, (pl.col("date") == AS_OF) & (pl.col("symbol") < "S015"))
    answer = fresh.tradenb("paper-run", "--date", str(TRADED), **settings)
    assert answer.code == 2 and "quality.max_bad_share" in answer.lines[-1], answer
    (stage,) = fresh.rows(db.run_stages)
    html = Path(stage["report"]).read_text()
    assert "They are of 15 symbols, all on 28 February 2020." in html
    assert "the lake is as it was after 27 February 2020" in html
    assert html.count("<figure") == 6
