"Whatever happens to an account of the exchange, a client that books its activities one by one holds the same."

import os
from contextlib import suppress
from datetime import date
from decimal import Decimal
from pathlib import Path
from tempfile import mkdtemp

from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.core.clock import new_york
from tradenb.exchange import venue as floor
from tradenb.exchange.feed import Feed, write_rows
from tradenb.exchange.matching import FillModel
from tradenb.exchange.rules import NewOrder, Reject
from tradenb.exchange.store import Store
from tradenb.exchange.wire import activity_json
from tradenb.execution.broker import entry_of
from tradenb.execution.entries import fold_account, fold_positions

EXAMPLES = int(os.environ.get("TRADENB_TEST_EXCHANGE_EXAMPLES", "20"))
DAYS = [date(2024, 3, d) for d in (4, 5, 6, 7)]
SYMBOLS = ("ACME", "BETA", "CORE", "DELT")
PRICES = {"ACME": 60.0, "BETA": 25.0, "CORE": 10.0, "DELT": 100.0}

events = st.lists(
    st.one_of(
        st.tuples(st.just("split"), st.sampled_from([0.125, 1.5, 3.0]), st.sampled_from([0.0, 0.25]), st.none()),
        st.tuples(st.just("dividend"), st.just(1.0), st.sampled_from([0.1, 2.37]), st.none()),
        st.tuples(st.just("stock_dividend"), st.just(1.05), st.just(0.0), st.none()),
        st.tuples(
            st.just("spin_off"), st.sampled_from([0.3, 2.0]), st.sampled_from([0.0, 5.0]), st.sampled_from(SYMBOLS)
        ),
        st.tuples(st.just("symbol_change"), st.just(1.0), st.just(0.0), st.sampled_from(SYMBOLS)),
        st.tuples(st.just("delisting"), st.just(0.4), st.sampled_from([0.0, 7.5]), st.sampled_from([*SYMBOLS, None])),
    ).flatmap(lambda e: st.tuples(st.sampled_from(SYMBOLS), st.sampled_from(DAYS[1:]), st.just(e))),
    max_size=4,
    unique_by=lambda e: (e[0], e[1]),
)
orders = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from(SYMBOLS), st.sampled_from(["buy", "sell"]), st.integers(1, 90)),
    max_size=12,
)


def rows(actions: list) -> list[tuple]:
    return [(s, day, kind, ratio, cash, None, target) for s, day, (kind, ratio, cash, target) in actions if target != s]


@given(events, orders)
@settings(max_examples=EXAMPLES, deadline=None)
def test_activities_booked_one_by_one_are_the_account(actions, sent):
    bars = [(s, d, p, p * 1.1, p * 0.9, p * 1.02, 90_000) for s, p in PRICES.items() for d in [date(2024, 3, 1), *DAYS]]
    bars += [("NEWCO", d, 30.0, 31.0, 29.0, 30.5, 90_000) for d in DAYS[2:]]
    folder = write_rows(Path(mkdtemp()), bars, rows(actions))
    model = FillModel(fee_bps=Decimal(1))
    venue = floor.Venue(Feed(folder), Store(None), model, new_york(DAYS[0], 9))
    book = floor.open_account(venue, "test", Decimal(100_000), Decimal(4))
    for n, day in enumerate(DAYS):
        floor.step(venue, new_york(day, 9))
        for at, symbol, side, qty in sent:
            if at == n:
                with suppress(Reject):
                    floor.submit(book, NewOrder(symbol=symbol, side=side, type="market", time_in_force="day", qty=qty))
        floor.step(venue, new_york(day, 18))
    entries = [entry_of(activity_json(line, str(book.id))) for line in book.activities]
    ours, theirs = fold_positions(entries), book.account.positions
    assert {s: p.qty for s, p in ours.items() if p.qty} == {s: p.qty for s, p in theirs.items()}
    assert fold_account(entries).cash == book.account.cash
    assert sorted(line.id for line in book.activities if not line.execution_id) == [
        line.id for line in book.activities if not line.execution_id
    ]
    for symbol, held in theirs.items():
        assert abs(ours[symbol].avg_entry_price - held.avg_entry_price) < Decimal("0.0001"), symbol
    assert abs(sum(p.realised_pnl for p in ours.values()) - book.account.realised) < Decimal("0.05")
