"A run is computed again from its record alone, comes out the same to the bit, and whatever differs is named."

import json
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import Engine, delete, select, update

from tests.trading.planned import AS_OF, TRADED, plan_a_run, prepare, settings_at
from tradenb.core.db import connect, default_url, migrate, run_signals, runs
from tradenb.core.errors import InputError, LakeError, NoModelError
from tradenb.core.settings import Settings
from tradenb.market.lake import open_lake
from tradenb.market.tables import conform
from tradenb.models.registry import open_registry, stored
from tradenb.portfolio.sizing import PlannedOrder
from tradenb.trading import records
from tradenb.trading.orchestrator import Leg, plan_digest, written
from tradenb.trading.replay import PARTS, Replay, compare, kept_of, plan_differences, replay

RUN = f"{TRADED}-alpha158_ls"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A root with a lake, a model and a planned run; never change it."
    root = tmp_path_factory.mktemp("replay") / "data"
    prepare(root)
    engine = migrate(connect(default_url(root)))
    plan_a_run(engine, settings_at(root))
    engine.dispose()
    return root


@dataclass
class House:
    root: Path
    engine: Engine

    @property
    def folder(self) -> Path:
        return self.root / "runs" / str(TRADED) / RUN

    def settings(self, **changed: object) -> Settings:
        return settings_at(self.root, **changed)

    def replay(self, **changed: object) -> Replay:
        return replay(self.engine, self.settings(**changed), RUN, self.folder)

    def change(self, table: Any, where: Any, **values: object) -> None:
        with self.engine.begin() as connection:
            connection.execute(update(table).where(where).values(**values))

    def digests(self, **changed: object) -> None:
        "Change what the run's row keeps."
        kept = dict(records.require(self.engine, RUN).digests)
        self.change(runs, runs.c.run_id == RUN, digests=kept | changed)


@pytest.fixture
def house(prepared: Path, tmp_path: Path) -> Iterator[House]:
    shutil.copytree(prepared, tmp_path / "data")
    engine = migrate(connect(default_url(tmp_path / "data")))
    yield House(tmp_path / "data", engine)
    engine.dispose()


def named(done: Replay) -> list[tuple[str, str, str]]:
    return [(d.part, d.symbol, d.field) for d in done.differences]


def test_a_run_comes_out_the_same_to_the_bit_wherever_its_root_was_moved(house: House) -> None:
    done = house.replay()
    assert named(done) == []
    assert done.identical
    assert set(done.parts["state"]) == {"identical"}
    assert plan_digest(done.again.day.plan) == done.kept.digests["plan"]


def test_the_settings_of_today_are_told_and_not_used(house: House) -> None:
    done = house.replay(**{"portfolio.top_n": 5, "portfolio.constructor": "long_only", "universe.min_price": 1e6})
    assert done.identical
    assert done.kept.settings.portfolio.top_n == 3
    assert any("the settings are others today" in said for said in done.kept.notes)


def test_another_code_version_is_said_and_compared_all_the_same(house: House) -> None:
    house.change(runs, runs.c.run_id == RUN, code_version="0.0.1+0ld")
    done = house.replay()
    assert done.identical
    assert "the run was made by code 0.0.1+0ld" in done.kept.notes[0]


def test_a_lost_folder_is_not_missed_and_helps_out_where_the_row_lost_its_settings(house: House) -> None:
    done = house.replay()
    assert done.identical
    assert any("is gone; a replay does not need it" in said for said in done.kept.notes)
    effective = done.kept.settings.effective
    house.digests(settings=None)
    with pytest.raises(InputError, match="are lost: neither its row nor"):
        house.replay()
    house.folder.mkdir(parents=True)
    (house.folder / "settings.json").write_text(json.dumps(effective | {"services": {"host": "elsewhere"}}))
    assert house.replay(**{"portfolio.top_n": 5}).identical


def test_a_run_of_before_digests_were_kept_is_compared_by_its_plan(house: House) -> None:
    effective = house.replay().kept.settings.effective
    house.folder.mkdir(parents=True)
    (house.folder / "settings.json").write_text(json.dumps(effective))
    house.change(runs, runs.c.run_id == RUN, digests=None)
    done = house.replay()
    assert done.identical
    assert (done.state("features"), done.state("orders")) == ("not kept", "identical")
    assert "no digests were kept" in done.kept.notes[-1]


def test_a_run_that_never_planned_says_how_far_it_came(house: House) -> None:
    with house.engine.begin() as connection:
        connection.execute(delete(run_signals))
    records.begin_stage(house.engine, RUN, "train", records.require(house.engine, RUN).started_at)
    with pytest.raises(InputError, match=f"run {RUN} never planned: it is running, its last stage train running"):
        house.replay()
    with pytest.raises(InputError, match="unknown run"):
        replay(house.engine, house.settings(), "2020-01-02-x", house.folder)


def test_an_altered_record_of_the_settings_is_named(house: House) -> None:
    kept = records.require(house.engine, RUN).digests["settings"]
    house.digests(settings=kept | {"portfolio": kept["portfolio"] | {"top_n": 4}})
    done = house.replay()
    assert ("record", "", "settings") in named(done)
    assert done.state("weights") == done.state("orders") == "differs"
    assert done.state("predictions") == done.state("features") == "identical"


# ---- the stored plan


@pytest.mark.parametrize(
    ("field", "value", "part"),
    [
        ("predicted_return", 0.0123, "predictions"),
        ("target_weight", 0.5, "weights"),
        ("price", Decimal("1.000000001"), "sizes"),
        ("current_qty", Decimal(7), "sizes"),
        ("qty", Decimal(1), "orders"),
        ("reason", "because", "orders"),
    ],
)  # fmt: skip
def test_a_changed_value_of_the_plan_is_named_with_both(house: House, field: str, value: Any, part: str) -> None:
    leg = next(leg for leg in house.replay().kept.plan if leg.order.side)
    house.change(run_signals, run_signals.c.symbol == leg.order.symbol, **{field: value})
    done = house.replay()
    assert named(done) == [("record", "", "plan"), (part, leg.order.symbol, field)]
    found = done.differences[1]
    assert found.again == written(leg)[field]
    assert found.kept == (
        value if isinstance(value, str) else repr(value) if isinstance(value, float) else f"{value:f}"
    )


def test_a_line_that_is_gone_or_was_added_is_named(house: House) -> None:
    legs = house.replay().kept.plan
    sent, idle = next(x for x in legs if x.order.side), next(x for x in legs if not x.order.side)
    with house.engine.begin() as connection:
        connection.execute(delete(run_signals).where(run_signals.c.symbol == sent.order.symbol))
        connection.execute(update(run_signals).where(run_signals.c.symbol == idle.order.symbol).values(symbol="NOBODY"))
    done = house.replay()
    lost = [d for d in done.differences if d.part == "orders"]
    assert {(d.symbol, d.kept is None, d.again is None) for d in lost} == {
        (sent.order.symbol, True, False), (idle.order.symbol, True, False), ("NOBODY", False, True),
    }  # fmt: skip


amount = st.decimals(-10_000, 10_000, places=9)
number = st.floats(allow_nan=False, allow_infinity=False, width=64)
leg = st.builds(
    Leg,
    st.builds(
        PlannedOrder, st.sampled_from("ABCDEF"), st.integers(0, 1), st.sampled_from(["buy", "sell", None]),
        st.decimals(0, 10_000, places=9), st.none() | amount, st.none() | number, st.none() | st.integers(1, 500), number,
        amount, amount, st.text(max_size=5),
    ),
    st.none() | st.text("0123456789abcdef", min_size=3, max_size=3),
)  # fmt: skip
plans = st.lists(leg, max_size=8, unique_by=lambda one: (one.order.symbol, one.order.leg))


@settings(max_examples=40)
@given(plans, plans)
def test_plans_are_the_same_exactly_when_nothing_is_named(one: list[Leg], other: list[Leg]) -> None:
    found = plan_differences(one, other)
    assert (plan_digest(one) == plan_digest(other)) == (not found)
    assert plan_differences(one, one[::-1]) == []
    back = plan_differences(other, one)
    assert {(d.symbol, d.field, d.kept, d.again) for d in found} == {(d.symbol, d.field, d.again, d.kept) for d in back}
    parts = [list(PARTS).index(d.part) for d in found]
    assert parts == sorted(parts)


@given(plans.filter(bool), number, st.data())
def test_the_smallest_step_of_a_number_is_seen(plan: list[Leg], value: float, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(plan) - 1))
    then, now = (replace(plan[at], order=replace(plan[at].order, target_weight=v)) for v in (value, math.nextafter(value, math.inf)))  # fmt: skip
    (found,) = plan_differences([*plan[:at], then, *plan[at + 1 :]], [*plan[:at], now, *plan[at + 1 :]])
    assert (found.symbol, found.field) == (plan[at].order.symbol, "target_weight")
    assert float(found.kept or "nan") != float(found.again or "nan")


# ---- the model


@pytest.fixture
def model_file(house: House) -> Iterator[Path]:
    "The trees of the run's model. MLflow names files by their whole path, so this one is shared: it is put back."
    file = stored(open_registry(house.settings()), 1).fitted / "model.lgb"
    before = file.read_bytes()
    yield file
    file.write_bytes(before)


def test_leaves_that_were_changed_in_the_model_are_named_with_what_that_does(house: House, model_file: Path) -> None:
    "Another fourth digit in every leaf of the first tree: a whole model file still, of the same length."
    head, leaves, rest = model_file.read_text().partition("leaf_value=")
    line, _, rest = rest.partition("\n")
    line = re.sub(r"(\.\d{3})(\d)", lambda found: found[1] + str((int(found[2]) + 5) % 10), line)
    model_file.write_text(f"{head}{leaves}{line}\n{rest}")
    done = house.replay()
    model = [d for d in done.differences if d.part == "model"]
    assert {"digest", "golden"} <= {d.field for d in model}
    assert all(d.kept != d.again for d in model)
    assert (done.state("features"), done.state("predictions")) == ("identical", "differs")


def test_a_model_that_cannot_be_read_is_named_and_nothing_is_computed_with_it(house: House, model_file: Path) -> None:
    model_file.write_text(model_file.read_text()[:1_000])
    done = house.replay()
    assert {d.part for d in done.differences} == {"model"}
    assert any("no whole LightGBM model" in str(d.again) for d in done.differences)
    assert done.state("orders") == "not computed"
    with pytest.raises(InputError, match="cannot be read"):
        compare(done)


def test_a_file_and_its_record_in_the_registry_do_not_convince_a_run_that_kept_the_digest(house: House) -> None:
    house.digests(model="0" * 64)
    (found,) = house.replay().differences
    assert (found.part, found.kept) == ("model", "0" * 64)
    assert "in the registry" in found.field


def test_a_version_that_is_gone_says_so(house: House) -> None:
    house.change(runs, runs.c.run_id == RUN, model_version="77")
    with pytest.raises(NoModelError, match="has no version 77"):
        house.replay()


# ---- the lake


def deliver(house: House, rows: pl.DataFrame, as_of: date = AS_OF) -> None:
    lake = open_lake(house.settings())
    with lake.writing() as draft:
        draft.merge("bars", rows)
        draft.record(as_of, "late", records.require(house.engine, RUN).started_at)


def corrected(house: House, symbol: str, factor: float) -> pl.DataFrame:
    bars = open_lake(house.settings()).read("bars", AS_OF, AS_OF, [symbol], ["symbol", "date", "open", "high", "low", "close", "volume", "vwap"])  # fmt: skip
    low = pl.min_horizontal("low", pl.col("close") * factor)
    return bars.with_columns(pl.col("close") * factor, low=low)


def test_late_corrections_change_nothing_of_a_replay_and_are_listed_against_today(house: House) -> None:
    plan = house.replay().kept.plan
    best = min((leg.order.rank, leg.order.symbol) for leg in plan if leg.order.rank)[1]
    rows = corrected(house, best, 0.8)
    deliver(house, rows)
    done = house.replay()
    assert done.identical
    beside = compare(done)
    assert set(beside.facts["symbol"]) == set(beside.features["symbol"]) == {best}
    told = beside.facts.filter(pl.col("field") == "close").row(0, named=True)
    assert (told["table"], told["date"], float(told["now"])) == ("bars", AS_OF, rows["close"].item())
    assert float(told["then"]) == pytest.approx(rows["close"].item() / 0.8)
    assert {"predictions", "sizes"} <= {d.part for d in beside.differences}
    price = next(d for d in beside.differences if d.symbol == best and d.field == "price")
    assert float(price.again or 0) == pytest.approx(rows["close"].item(), abs=1e-6)


def test_without_news_today_says_the_same(house: House) -> None:
    beside = compare(house.replay())
    assert (beside.facts.height, beside.features.height, beside.differences) == (0, 0, ())


def test_later_sessions_and_later_events_are_no_difference(house: House) -> None:
    "The day after brings bars, and a dividend that shifts every adjusted price before it."
    lake, at = open_lake(house.settings()), records.require(house.engine, RUN).started_at
    bars = lake.read("bars", AS_OF, AS_OF, columns=["symbol", "date", "open", "high", "low", "close", "volume", "vwap"])
    events = lake.read("adjustments").clear()
    symbol, close = bars["symbol"][0], bars["close"][0]
    later = pl.DataFrame([dict(symbol=symbol, ex_date=date(2023, 7, 5), ratio=1.0, cash=0.05 * close, spun=0.0, spun_on=None, prev_date=AS_OF, prev_close=close, date=date(2023, 7, 5), close=close)], events.schema)  # fmt: skip
    with lake.writing() as draft:
        draft.merge("bars", bars.with_columns(date=pl.lit(TRADED)))
        draft.merge("adjustments", later)
        draft.record(TRADED, "later", at)
    beside = compare(house.replay())
    assert (beside.facts.height, beside.features.height, beside.differences) == (0, 0, ())


def test_an_event_of_the_day_itself_is_a_difference_only_where_it_was_told_otherwise(house: House) -> None:
    "What it adjusts by can be derived only once the day has a bar; what was told of it was known before."
    lake, at = open_lake(house.settings()), records.require(house.engine, RUN).started_at
    bars = lake.read("bars", AS_OF, AS_OF, columns=["symbol", "close"])
    symbol, close = bars.row(0)
    derived = pl.DataFrame([dict(symbol=symbol, ex_date=TRADED, ratio=1.0, cash=0.01 * close, spun=0.0, spun_on=None, prev_date=AS_OF, prev_close=close, date=TRADED, close=close)], lake.read("adjustments").schema)  # fmt: skip
    told = pl.DataFrame([dict(symbol=symbol, ex_date=TRADED, kind="dividend", ratio=1.0, cash=0.01 * close)])
    with lake.writing() as draft:
        draft.merge("adjustments", derived)
        draft.record(TRADED, "later", at)
    assert compare(house.replay()).facts.is_empty()
    with lake.writing() as draft:
        draft.merge("corporate_actions", conform("corporate_actions", told).drop("year"))
        draft.record(TRADED, "corrected", at)
    facts = compare(house.replay()).facts
    assert set(facts["table"]) == {"corporate_actions"} and set(facts["symbol"]) == {symbol}
    assert facts.filter(pl.col("field") == "kind")["now"].item() == "dividend"


def test_a_vintage_whose_files_are_gone_cannot_be_replayed_and_says_which_table(house: House) -> None:
    for file in (house.root / "lake" / "bars").rglob("*.parquet"):
        file.unlink()
    with pytest.raises(LakeError, match="table bars cannot be read"):
        house.replay()


def test_features_that_come_out_otherwise_are_named_by_feature_and_by_symbol(house: House) -> None:
    kept = records.require(house.engine, RUN).digests
    feature, symbol = sorted(kept["by_feature"])[3], sorted(kept["by_symbol"])[5]
    house.digests(features="f" * 64, by_feature=kept["by_feature"] | {feature: "0" * 12}, by_symbol=kept["by_symbol"] | {symbol: "1" * 12})  # fmt: skip
    done = house.replay()
    assert named(done) == [("features", "", "digest"), ("features", "", feature), ("features", symbol, "features")]
    assert done.differences[1].kept == "0" * 12


# ---- every database, every rule


def test_a_record_is_the_same_in_every_database(prepared: Path, engine: Engine) -> None:
    plan_a_run(engine, settings_at(prepared))
    done = replay(engine, settings_at(prepared), RUN, prepared / "nowhere")
    assert done.identical, done.table


@pytest.mark.parametrize(
    "rule", ["rank_weighted", "sector_neutral", "volatility_scaled", "topk_dropout", "mean_variance"]
)
def test_every_rule_comes_out_the_same(prepared: Path, rule: str) -> None:
    engine = migrate(connect("sqlite://"))
    chosen = settings_at(prepared, **{"portfolio.constructor": rule, "portfolio.max_turnover": 0.5})
    plan_a_run(engine, chosen)
    done = replay(engine, settings_at(prepared), RUN, prepared / "nowhere")
    assert done.identical, done.table
    assert done.kept.settings.portfolio.constructor == rule
    engine.dispose()


def test_positions_are_those_that_the_plan_was_made_for(house: House) -> None:
    kept = kept_of(house.engine, house.settings(), RUN, house.folder)
    with house.engine.connect() as connection:
        rows = connection.execute(select(run_signals.c.symbol, run_signals.c.current_qty)).all()
    assert dict(kept.positions) == {row.symbol: row.current_qty for row in rows if row.current_qty}
    assert len(kept.positions) == 4
