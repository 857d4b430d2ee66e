"`tradenb backtest`: the same record for the same question, whichever way the predictions come, and one line for what cannot be."

import io
import json
from datetime import date
from pathlib import Path

import polars as pl
import pytest

from pipelines.lake import open_filled
from pipelines.parts import train_now
from pipelines.research import Ask, Found, research
from tradenb.cli.main import run
from tradenb.core.clock import SimulatedClock, new_york
from tradenb.core.settings import Settings, load
from tradenb.market.catalog import open_source
from tradenb.market.etl import run_etl
from tradenb.market.lake import open_lake
from tradenb.models import performance
from tradenb.models.inference import Trials
from tradenb.models.registry import open_registry

SMALL = {
    "demo.symbols": 24, "demo.start": "2019-01-02", "demo.years": 2, "demo.bad_rows": 0,
    "training.train_sessions": 120, "training.valid_sessions": 30, "training.test_sessions": 90, "training.rounds": 5,
    "training.min_data_in_leaf": 20, "training.threads": 1, "portfolio.top_n": 4, "portfolio.bottom_n": 4,
}  # fmt: skip
LAST = date(2020, 12, 31)


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    "A lake of two years and a registered model."
    made = load(SMALL | {"core.root": str(tmp_path_factory.mktemp("research") / "data")}, env={})
    run_etl(made, open_source(made), open_lake(made), LAST, SimulatedClock(new_york(date(2021, 1, 4), 9)))
    train_now(made, None, "for the tests")
    return made


@pytest.fixture(scope="module")
def first(settings: Settings) -> Found:
    return research(settings, Ask(version=1))


def tell(
    settings: Settings, *arguments: str, capsys: pytest.CaptureFixture[str], command: str = "backtest"
) -> tuple[int, str, list[str]]:
    "Run the command: its exit code, what it answered, and the lines of its error stream."
    values = SMALL | {"core.root": str(settings.root)}
    sets = [part for name, value in values.items() for part in ("--set", f"{name}={value}")]
    capsys.readouterr()
    code = run([command, *arguments, *sets])
    said = capsys.readouterr()
    return code, said.out, said.err.strip().splitlines()


def test_a_record_holds_the_page_the_orders_the_accounts_and_the_plan(first: Found, settings: Settings) -> None:
    assert first.folder.parent == settings.root / "research"
    assert {file.name for file in first.folder.iterdir()} == {"tearsheet.html", "orders.parquet", "daily.parquet", "plan.json"}  # fmt: skip
    plan = json.loads((first.folder / "plan.json").read_text())
    assert plan["fingerprint"] == first.sheet.book.fingerprint
    assert first.folder.name == f"{first.sheet.book.daily['date'][-1]}-{plan['record'][:8]}"
    assert pl.read_parquet(first.folder / "daily.parquet").equals(first.sheet.book.daily)


def test_the_same_question_again_writes_nothing(first: Found, settings: Settings) -> None:
    before = {file: file.stat().st_mtime_ns for file in first.folder.iterdir()}
    again = research(settings, Ask(version=1))
    assert (first.repeated, again.repeated) == (False, True)
    assert {file: file.stat().st_mtime_ns for file in again.folder.iterdir()} == before


def test_a_registered_version_and_a_training_anew_trade_the_same(first: Found, settings: Settings) -> None:
    anew = research(settings, Ask())
    assert anew.sheet.book.fingerprint == first.sheet.book.fingerprint


def test_the_predictions_of_a_version_may_come_from_a_file(first: Found, settings: Settings, tmp_path: Path) -> None:
    assert first.sheet.evidence
    file = tmp_path / "predictions.parquet"
    first.sheet.evidence.predictions.write_parquet(file)
    found = research(settings, Ask(predictions=file, folder=tmp_path / "mine"))
    assert found.sheet.book.fingerprint == first.sheet.book.fingerprint
    assert (tmp_path / "mine" / "tearsheet.html").is_file()


def test_dearer_costs_charge_the_same_orders(first: Found, settings: Settings, tmp_path: Path) -> None:
    dear = research(settings, Ask(version=1, costs=3, folder=tmp_path))
    assert dear.sheet.book.fingerprint == first.sheet.book.fingerprint
    assert dear.sheet.book.daily["spread"].sum() == pytest.approx(3 * first.sheet.book.daily["spread"].sum(), rel=1e-6)
    assert performance.sharpe(dear.sheet.returns) < performance.sharpe(first.sheet.returns)


def test_every_other_recipe_that_was_tried_is_counted_once(first: Found, settings: Settings, tmp_path: Path) -> None:
    assert first.sheet.evidence and isinstance(first.sheet.trials, Trials)
    other = first.sheet.evidence.predictions.with_columns(pl.col("prediction").shuffle(1))
    other.write_parquet(tmp_path / "other.parquet")
    for start in (date(2020, 8, 3), date(2020, 9, 1)):
        research(settings, Ask(predictions=tmp_path / "other.parquet", start=start))
    later = research(settings, Ask(version=1, costs=2))
    assert isinstance(later.sheet.trials, Trials)
    assert later.sheet.trials.count == first.sheet.trials.count + 1
    assert later.judged.luck > first.judged.luck


def test_the_page_says_that_the_market_is_simulated_and_names_its_vintage(first: Found) -> None:
    html = first.page.read_text()
    assert "The market is simulated" in html
    assert "bars " in first.sheet.papers["Data"]


def test_the_command_answers_with_figures_and_a_path(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = tell(settings, "--version", "1", capsys=capsys)
    assert code == 0
    assert "Sharpe ratio," in out and out.startswith("figure,value,remark")
    assert Path(err[-1].removeprefix("was there already: ")).name == "tearsheet.html"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--version", "99"), "version 99"),
        (("--predictions", "nowhere.parquet"), "no file nowhere.parquet"),
        (("--version", "1", "--predictions", "x.parquet"), "give one of them"),
        (("--version", "1", "--start", "2031-01-02"), "no predictions from 2031-01-02"),
        (("--version", "1", "--costs", "-1"), "from 0"),
        (("--version", "1", "--constructor", "astrology"), "portfolio.constructor"),
        (("--version", "1", "--vintage", "99"), "99"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    settings: Settings, arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = tell(settings, *arguments, capsys=capsys)
    assert code in (2, 3)
    assert len(err) == 1 and said in err[0]


def test_predictions_beyond_the_lake_are_refused(settings: Settings, tmp_path: Path, first: Found) -> None:
    assert first.sheet.evidence
    late = first.sheet.evidence.predictions.with_columns(pl.col("date").dt.offset_by("1y"))
    late.write_parquet(tmp_path / "late.parquet")
    with pytest.raises(Exception, match="lake ends on 2020-12-31"):
        research(settings, Ask(predictions=tmp_path / "late.parquet"))
    assert open_filled(settings)


def test_a_search_goes_on_where_it_was_and_each_of_its_trials_is_counted(settings: Settings, capsys) -> None:
    until, registry = "2020-10-30", open_registry(settings)
    before = registry.trials().height
    for trials in ("1", "2"):
        code, out, said = tell(
            settings,
            "--trials",
            trials,
            "--until",
            until,
            "--set",
            "training.model=ridge",
            capsys=capsys,
            command="search",
        )
        assert code == 0, said
    table = pl.read_csv(io.StringIO(out))
    assert sorted(table["trial"]) == [0, 1]
    assert registry.trials().height == before + 2
    assert f"Judge it on the sessions after {until}" in "".join(said)
    assert "tradenb backtest --start " in "".join(said)


def test_a_search_with_too_little_history_left_says_how_much_it_wants(settings: Settings, capsys) -> None:
    code, _, said = tell(settings, "--trials", "1", "--until", "2019-03-01", capsys=capsys, command="search")
    assert (code, len(said)) == (3, 1)
    assert "sessions of history" in said[0]
