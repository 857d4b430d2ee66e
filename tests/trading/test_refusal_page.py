"The page of a refused delivery stands whatever is wrong with the rows: it must never hide the refusal behind an error of its own."

from datetime import date
from pathlib import Path

import polars as pl
import pytest

from tradenb.core.calendar import sessions
from tradenb.core.errors import QualityError
from tradenb.core.settings import load
from tradenb.market.lake import Lake
from tradenb.market.quality import GateResult, Limits, run_gate, sample_bars
from tradenb.market.tables import TABLES
from tradenb.trading.pages.refusal import in_common, neighbours, refusal, shown_if_refused
from tradenb.trading.run import Run, start_run
from tradenb.trading.stages import GATE_PAGE, GATE_RESULTS, REFUSED_ROWS, keeping_refusals

DAYS = sessions(date(2024, 1, 2), date(2024, 2, 29))
CLEAN = sample_bars(DAYS, symbols=8, seed=2)
NO_ACTIONS = pl.DataFrame(schema=TABLES["corporate_actions"].schema)
NAN, NOTHING = float("nan"), pl.lit(None)
HIT = (pl.col("symbol") == "S003") | (pl.col("date") == DAYS[20])


def judged(where: pl.Expr = HIT, **values: pl.Expr) -> GateResult:
    spoilt = [pl.when(where).then(value).otherwise(pl.col(name)).alias(name) for name, value in values.items()]
    return run_gate(CLEAN.with_columns(spoilt), DAYS[-1], NO_ACTIONS, Limits())


@pytest.fixture
def run(tmp_path: Path):
    begun = start_run(load({"core.root": str(tmp_path)}, env={}), date(2024, 3, 1))
    yield begun
    begun.engine.dispose()


@pytest.mark.parametrize(
    "gate",
    [
        judged(symbol=NOTHING),
        judged(date=NOTHING),
        judged(close=NOTHING),
        judged(close=pl.lit(NAN)),
        judged(high=pl.lit(float("inf"))),
        judged(open=pl.lit(0.0), close=pl.lit(-1.0)),
        judged(date=pl.lit(date(2999, 1, 4))),
        judged(date=pl.lit(date.max)),
        judged(date=pl.lit(date(2024, 1, 6))),
        judged(pl.lit(True), volume=pl.lit(-1)),
        judged(pl.lit(True), date=pl.lit(DAYS[3])),
        judged(volume=pl.lit(-1), symbol=pl.lit("<b>&")),
    ],
    ids=["no symbol", "no date", "no close", "NaN", "infinite", "zero and less", "year 2999", "last date", "Saturday", "all bad", "all copies", "markup"],
)  # fmt: skip
def test_whatever_is_wrong_with_the_rows_they_are_kept_and_shown(run: Run, gate: GateResult) -> None:
    with pytest.raises(QualityError, match=r"quality\.max_bad_share") as stopped, keeping_refusals(run.folder):
        gate.require(Limits())
    assert stopped.value.gate is gate
    assert {GATE_RESULTS, GATE_PAGE, REFUSED_ROWS} <= {path.name for path in run.folder.iterdir()}
    assert len(pl.read_csv(run.folder / REFUSED_ROWS)) == len(gate.quarantined)
    html = refusal(run, gate).html
    assert "The delivery was refused" in html and "What failed" in html and "<b>&" not in html


def test_rows_of_one_day_or_of_one_name_are_told_as_such() -> None:
    assert in_common(judged(pl.col("date") == DAYS[20], volume=pl.lit(-1))) == (
        "Negative volume (8 rows). They are of 8 symbols, all on 31 January 2024."
    )
    assert "mostly of S003, on 41 days" in in_common(judged(volume=pl.lit(-1)))


def test_an_error_that_has_no_verdict_is_not_shown_as_one_and_keeps_nothing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(QualityError, match="no column"), shown_if_refused(run), keeping_refusals(tmp_path / "kept"):
        raise QualityError("the delivery has no column close")
    assert not (tmp_path / "kept").exists()


def test_without_a_lake_the_neighbours_are_those_of_the_delivery(tmp_path: Path) -> None:
    gate = judged(HIT & (pl.col("date") > DAYS[9]), volume=pl.lit(-1))
    good = neighbours(Lake(tmp_path), gate, gate.quarantined.filter(symbol="S003"))
    assert good["symbol"].unique().to_list() == ["S003"] and len(good) == 10
