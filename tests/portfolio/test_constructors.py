"What every portfolio rule promises, whatever the day looks like: sums, neutrality, and nothing done to names that cannot be traded."

import math
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.covariance import LedoitWolf

from tradenb.core.errors import InputError
from tradenb.core.settings import load
from tradenb.portfolio.constructors import (
    BetaNeutral,
    SectorNeutral,
    TopkDropout,
    TurnoverCapped,
    VolatilityScaled,
    betas,
    capped,
    constructor,
    covariance,
    lean,
    volatility,
)
from tradenb.portfolio.weights import SCHEMA, Context, LongOnly, LongShort, RankWeighted

RULES = {
    "long_short": LongShort(3, 2),
    "long_only": LongOnly(3),
    "rank_weighted": RankWeighted(3, 3),
    "sector_neutral": SectorNeutral(3, 3),
    "beta_neutral": BetaNeutral(3, 3),
    "volatility_scaled": VolatilityScaled(3, 3, 0.1, 1.5),
    "turnover_capped": TurnoverCapped(LongShort(3, 2), 0.3),
    "topk_dropout": TopkDropout(4, 2),
}


def frame(symbols, values):
    return pl.DataFrame({"symbol": list(symbols), "predicted_return": np.array(list(values), dtype=float)})


@st.composite
def days(draw, stuck=True, least=8):
    "A day of 8 to 20 names in 3 sectors: predictions with ties, returns with holes, holdings, names that cannot be traded."
    n = draw(st.integers(least, 20))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    symbols = tuple(f"S{i:02d}" for i in range(n))
    predicted = rng.normal(size=n).round(draw(st.integers(0, 3)))
    market = rng.normal(0, 0.01, (60, 1))
    returns = market * rng.normal(1, 0.3, n) + rng.normal(size=(60, n)) * rng.uniform(0.005, 0.03, n)
    returns[rng.random((60, n)) < 0.05] = np.nan
    held = np.where(rng.random(n) < 0.4, rng.normal(0, 0.1, n), 0.0)
    tradable = rng.random(n) > 0.2 if stuck else np.ones(n, bool)
    ranked = draw(st.integers(n - 2, n))  # the last names may have no prediction
    ctx = Context(symbols, held, tradable, tuple(f"K{i % 3}" for i in range(n)), returns, np.full(n, 1e8), cash=0.2)
    return frame(symbols[:ranked], predicted[:ranked]), ctx


def weights_of(table, ctx):
    found = dict(table.select("symbol", "target_weight").iter_rows())
    return np.array([found.get(s, 0.0) for s in ctx.symbols])


def ask(rule, day):
    "The table, or a discarded example when the rule says that the day does not allow it."
    try:
        return rule(*day)
    except InputError as error:
        assume(not any(k in str(error) for k in ("too few", "overlapping", "none of", "no sector", "no beta-neutral")))
        raise


@pytest.mark.parametrize("name", RULES)
@given(day=days())
@settings(max_examples=40)
def test_a_name_that_cannot_be_traded_keeps_its_weight_to_the_last_bit(name, day):
    table, ctx = ask(RULES[name], day), day[1]
    stuck = ~ctx.tradable
    assert (weights_of(table, ctx)[stuck] == ctx.held[stuck]).all()
    said = dict(table.select("symbol", "reason").iter_rows())
    assert all(
        "NOT_TRADABLE" in said[s] for s, free in zip(ctx.symbols, ctx.tradable, strict=True) if not free and s in said
    )


@pytest.mark.parametrize("name", RULES)
@given(day=days(), random=st.randoms())
@settings(max_examples=30)
def test_the_order_of_rows_and_of_names_changes_not_a_bit(name, day, random):
    predictions, ctx = day
    order = list(range(len(ctx.symbols)))
    random.shuffle(order)
    other = Context(
        tuple(ctx.symbols[i] for i in order),
        ctx.held[order],
        ctx.tradable[order],
        tuple(ctx.sectors[i] for i in order),
        ctx.returns[:, order],
        ctx.dollar_volume[order],
        ctx.cash,
    )
    rows = list(range(predictions.height))
    random.shuffle(rows)
    assert ask(RULES[name], day).equals(RULES[name](predictions[rows], other))


@pytest.mark.parametrize("name", RULES)
@given(day=days(), power=st.sampled_from([0.5, 3.0]), scale=st.sampled_from([0.25, 1024.0]))
@settings(max_examples=20)
def test_only_the_ranking_counts(name, day, power, scale):
    predictions, ctx = day
    x = predictions["predicted_return"].to_numpy()
    risen = predictions.with_columns(predicted_return=scale * np.sign(x) * np.abs(x) ** power)
    one, two = ask(RULES[name], day), RULES[name](risen, ctx)
    assert one.drop("predicted_return").equals(two.drop("predicted_return"))


@pytest.mark.parametrize("name", RULES)
@given(day=days())
@settings(max_examples=20)
def test_every_name_with_a_prediction_has_one_row_by_rank_and_the_context_stays_as_it_was(name, day):
    predictions, ctx = day
    before = (ctx.held.copy(), ctx.returns.copy())
    table = ask(RULES[name], day)
    assert table.schema == SCHEMA
    ranks = table["rank"].drop_nulls().to_list()
    assert ranks == list(range(1, predictions.height + 1))
    assert set(table.head(predictions.height)["symbol"]) == set(predictions["symbol"])
    assert table["target_weight"].is_finite().all()
    assert table.filter(pl.col("rank").is_null() & (pl.col("target_weight") == 0)).is_empty()
    np.testing.assert_array_equal(before[0], ctx.held)
    np.testing.assert_array_equal(before[1], ctx.returns)


@pytest.mark.parametrize(
    ("name", "long", "short"),
    [
        ("long_short", 1, 1),
        ("long_only", 1, 0),
        ("rank_weighted", 1, 1),
        ("beta_neutral", 1, 1),
        ("sector_neutral", 1, 1),
    ],
)
@given(day=days(stuck=False))
@settings(max_examples=30)
def test_longs_sum_to_one_and_shorts_to_minus_one(name, long, short, day):
    w = weights_of(ask(RULES[name], day), day[1])
    assert w[w > 0].sum() == pytest.approx(long, abs=1e-12)
    assert w[w < 0].sum() == pytest.approx(-short, abs=1e-12)


@pytest.mark.parametrize("name", ["long_short", "rank_weighted", "beta_neutral"])
@given(day=days())
@settings(max_examples=30)
def test_what_is_stuck_uses_up_the_room_of_its_side(name, day):
    ctx = day[1]
    w = weights_of(ask(RULES[name], day), ctx)
    for side in (1, -1):
        stuck = math.fsum(abs(h) for h, free in zip(ctx.held, ctx.tradable, strict=True) if not free and h * side > 0)
        assert math.fsum(np.abs(w[w * side > 0])) == pytest.approx(max(1.0, stuck), abs=1e-12)


@given(day=days(stuck=False, least=9))
def test_every_sector_nets_to_zero_with_longs_and_shorts_in_each(day):
    w, ctx = weights_of(ask(SectorNeutral(4, 3), day), day[1]), day[1]
    for k in set(ctx.sectors):
        own = w[[s == k for s in ctx.sectors]]
        assert own.sum() == pytest.approx(0, abs=1e-12)
        assert (own > 0).any() and (own < 0).any()


@given(day=days())
def test_a_sector_nets_to_zero_beside_what_is_stuck_in_it_unless_that_is_more_than_its_share(day):
    table, ctx = ask(SectorNeutral(3, 3), day), day[1]
    w = weights_of(table, ctx)
    ranked = set(day[0]["symbol"])
    free = [s in ranked and t for s, t in zip(ctx.symbols, ctx.tradable, strict=True)]
    sizes = {k: sum(f and s == k for f, s in zip(free, ctx.sectors, strict=True)) for k in set(ctx.sectors)}
    total = sum(n for n in sizes.values() if n > 1)
    for k, n in sizes.items():
        own = np.array([s == k for s in ctx.sectors])
        stuck = ctx.held[own & ~ctx.tradable]
        most = max(stuck[stuck > 0].sum(), -stuck[stuck < 0].sum())
        if n > 1 and most <= n / total:
            assert w[own].sum() == pytest.approx(0, abs=1e-12)


@given(day=days())
def test_the_book_has_no_beta(day):
    ctx = day[1]
    w = weights_of(ask(BetaNeutral(3, 3), day), ctx)
    assert w @ betas(ctx.returns) == pytest.approx(0, abs=1e-10)


@given(day=days(stuck=False), most=st.floats(0.34, 0.9))
def test_a_position_limit_is_part_of_the_leaning_where_a_neutral_book_allows_it(day, most):
    ctx = day[1]
    plain = weights_of(LongShort(3, 3)(*day), ctx)
    beta = betas(ctx.returns)
    try:
        w = lean(plain, beta, most=most)
    except InputError:
        w = weights_of(ask(BetaNeutral(3, 3, most), day), ctx)
    else:
        assert np.abs(w).max() <= most * (1 + 1e-12)
        np.testing.assert_array_equal(w, weights_of(BetaNeutral(3, 3, most)(*day), ctx))
    assert w @ beta == pytest.approx(0, abs=1e-10)
    assert w[plain > 0].sum() == pytest.approx(1) and w[plain < 0].sum() == pytest.approx(-1)


@given(st.lists(st.floats(1e-3, 1), min_size=1, max_size=12), st.floats(0.1, 3), st.floats(0.05, 1))
def test_capped_shares_keep_their_sum_and_their_proportions_below_the_cap(shares, total, most):
    shares = np.array(shares)
    found = capped(shares, total, most)
    assert found.sum() == pytest.approx(total)
    if total < most * len(shares):
        assert found.max() <= most * (1 + 1e-12)
        below = found < most * (1 - 1e-9)
        assert (found / shares)[below] == pytest.approx((found / shares)[below].max() if below.any() else 0)


@given(day=days(stuck=False), target=st.floats(0.01, 0.3), gross=st.floats(0.5, 3))
def test_the_book_has_the_target_volatility_or_the_gross_exposure_allowed(day, target, gross):
    ctx = day[1]
    w = weights_of(ask(VolatilityScaled(3, 3, target, gross), day), ctx)
    risk = covariance(ctx.returns[:, w != 0])
    reached = risk.annual(w[w != 0])
    assert math.fsum(np.abs(w)) <= gross * (1 + 1e-12)
    assert reached <= target * (1 + 1e-9)
    assert reached == pytest.approx(target) or math.fsum(np.abs(w)) == pytest.approx(gross)
    assert w.sum() == pytest.approx(0, abs=1e-12)


@given(day=days(), cap=st.floats(0.01, 3))
def test_no_more_is_traded_than_the_cap_and_always_in_the_direction_of_the_wish(day, cap):
    ctx = day[1]
    wish = weights_of(ask(LongShort(3, 2), day), ctx)
    w = weights_of(TurnoverCapped(LongShort(3, 2), cap)(*day), ctx)
    asked, traded = math.fsum(np.abs(wish - ctx.held)), math.fsum(np.abs(w - ctx.held))
    assert traded == pytest.approx(min(cap, asked), abs=1e-12)
    part = min(1.0, cap / asked) if asked else 1.0
    np.testing.assert_allclose(w - ctx.held, part * (wish - ctx.held), atol=1e-12)


# --- the estimates behind the rules


@given(st.integers(0, 1000), st.integers(2, 30))
@settings(max_examples=25)
def test_the_covariance_is_scikit_learns_on_standardised_returns_with_own_volatilities(seed, n):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(60, 1)) * 0.01 + rng.normal(size=(60, n)) * rng.uniform(0.005, 0.03, n)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    theirs = LedoitWolf(assume_centered=True).fit(z).covariance_ * np.outer(
        x.std(axis=0, ddof=1), x.std(axis=0, ddof=1)
    )
    risk = covariance(x)
    np.testing.assert_allclose(risk.factors.T @ risk.factors + np.diag(risk.own), theirs, rtol=1e-9, atol=1e-14)
    w = rng.normal(size=n)
    assert risk.variance(w) == pytest.approx(w @ theirs @ w)
    np.testing.assert_allclose(risk.times(w), theirs @ w, rtol=1e-9, atol=1e-14)


def test_a_missing_return_does_not_make_a_name_look_calmer():
    x = np.random.default_rng(1).normal(0, 0.02, (100, 3))
    x[50:, 1] = np.nan
    risk = covariance(x)
    assert math.sqrt(risk.variance(np.array([0.0, 1.0, 0.0]))) == pytest.approx(np.nanstd(x[:, 1], ddof=1))


def test_betas_are_least_squares_pulled_towards_their_mean_by_what_is_unknown():
    rng = np.random.default_rng(2)
    market = rng.normal(0, 0.01, 250)
    x = np.outer(market, [0.5, 1.0, 1.5, 1.0]) + rng.normal(size=(250, 4)) * [0.002, 0.002, 0.002, 0.05]
    equal = x.mean(axis=1)
    slopes, errors = [], []
    for y in x.T:
        design = np.column_stack([np.ones(250), equal])
        (_, slope), residual, *_ = np.linalg.lstsq(design, y, rcond=None)
        slopes.append(slope)
        errors.append(residual[0] / 248 / ((equal - equal.mean()) ** 2).sum())
    slopes, errors = np.array(slopes), np.array(errors)
    spread = slopes.var() - errors.mean()
    expected = (spread * slopes + errors * slopes.mean()) / (spread + errors)
    np.testing.assert_allclose(betas(x), expected, rtol=1e-10)
    pull = np.abs(betas(x) - slopes) / np.abs(slopes - slopes.mean())
    assert pull.argmax() == 3


def test_too_little_history_gives_no_volatility_and_the_mean_beta():
    x = np.random.default_rng(3).normal(0, 0.01, (60, 4))
    x[:50, 0] = np.nan
    x[:, 1] = 0.0
    assert np.isnan(volatility(x)).tolist() == [True, True, False, False]
    assert betas(x)[0] == pytest.approx(betas(x)[[1, 2, 3]].mean(), abs=0.5)
    assert betas(np.full((60, 3), np.nan)).tolist() == [1.0, 1.0, 1.0]


# --- what cannot be done is said


def quiet(n, **known):
    symbols = tuple(f"S{i:02d}" for i in range(n))
    base = Context(
        symbols, np.zeros(n), np.ones(n, bool), ("K",) * n, np.random.default_rng(1).normal(0, 0.01, (60, n))
    )
    return frame(symbols, np.linspace(1, -1, n)), replace(base, **known)


@pytest.mark.parametrize("name", RULES)
def test_a_day_on_which_nothing_can_be_traded_is_refused(name):
    with pytest.raises(InputError, match="none of 12 names"):
        RULES[name](*quiet(12, tradable=np.zeros(12, bool)))


@pytest.mark.parametrize("name", ["long_short", "rank_weighted", "beta_neutral", "volatility_scaled", "sector_neutral"])
def test_two_names_are_too_few_for_three_on_each_side(name):
    with pytest.raises(InputError, match="too few symbols: 2"):
        RULES[name](*quiet(2))


@pytest.mark.parametrize("rule", [LongShort(1, 1), RankWeighted(1, 1), SectorNeutral(1, 1), VolatilityScaled(1, 1)])
def test_two_names_make_a_pair(rule):
    table = rule(*quiet(2))
    assert np.sign(table["target_weight"]).to_list() == [1, -1]
    assert table["target_weight"].sum() == pytest.approx(0)


@pytest.mark.parametrize(
    ("name", "lacking"), [("sector_neutral", "sectors"), ("beta_neutral", "returns"), ("volatility_scaled", "returns")]
)
def test_what_a_rule_needs_and_does_not_get_is_named(name, lacking):
    with pytest.raises(InputError, match=f"lacks {lacking}"):
        RULES[name](*quiet(12, **{lacking: None}))


def test_names_without_risk_are_left_out_with_their_reason():
    day = quiet(12)
    day[1].returns[:, 0] = np.nan
    day[1].returns[:, 11] = 0.0
    table = VolatilityScaled(3, 3)(*day)
    said = dict(table.select("symbol", "reason").iter_rows())
    assert said["S00"].startswith("NO_VOLATILITY") and said["S11"].startswith("NO_VOLATILITY")
    assert table.filter(pl.col("symbol").is_in(["S00", "S11"]))["target_weight"].to_list() == [0.0, 0.0]
    day[1].returns[:] = np.nan
    with pytest.raises(InputError, match="too few symbols: 0"):
        VolatilityScaled(3, 3)(*day)


def test_sectors_of_one_name_are_left_out_and_sides_are_needed():
    predictions, ctx = quiet(7, sectors=("A", "A", "A", "B", "B", "C", None))
    table = SectorNeutral(2, 2)(predictions, ctx)
    said = dict(table.select("symbol", "reason").iter_rows())
    assert said["S05"] == "SECTOR_TOO_SMALL: sector=C, names=1, min=2"
    assert said["S06"] == "NO_SECTOR: compared with nobody"
    with pytest.raises(InputError, match="no sector has two names"):
        SectorNeutral(1, 1)(predictions, replace(ctx, sectors=tuple("ABCDEFG")))
    for rule in (SectorNeutral(2, 0), BetaNeutral(0, 2)):
        with pytest.raises(InputError, match="needs both sides"):
            rule(predictions, ctx)


def test_sides_of_separate_betas_cannot_be_made_neutral():
    with pytest.raises(InputError, match=r"longs from 1\.20 to 1\.40, shorts from 0\.70 to 0\.90"):
        lean(np.array([0.5, 0.5, -0.5, -0.5]), np.array([1.4, 1.2, 0.9, 0.7]))


def test_a_context_that_does_not_fit_is_refused():
    with pytest.raises(InputError, match=r"held \(1,\)"):
        Context(("A", "B"), np.zeros(1), np.ones(2, bool))
    with pytest.raises(InputError, match="not finite: B"):
        Context(("A", "B"), np.array([0.0, np.nan]), np.ones(2, bool))
    with pytest.raises(InputError, match="given twice"):
        Context(("A", "A"), np.zeros(2), np.ones(2, bool))
    with pytest.raises(InputError, match="does not know: Z"):
        LongShort(1, 1)(frame(["A", "Z"], [1, 2]), Context(("A",), np.zeros(1), np.ones(1, bool)))


# --- Qlib's own strategy


class Venue:
    "Where Qlib's strategy trades: a price each, some names suspended, a share of every sale for costs."

    def __init__(self, prices, suspended, cost):
        self.prices, self.suspended, self.cost = prices, suspended, cost

    def is_stock_tradable(self, stock_id, start_time, end_time, direction=None):
        return stock_id not in self.suspended

    def check_order(self, order):
        return True

    def deal_order(self, order, position):
        value = order.amount * self.prices[order.stock_id]
        position.update_order(order, value, value * self.cost, self.prices[order.stock_id])
        return value, value * self.cost, self.prices[order.stock_id]

    def get_deal_price(self, stock_id, start_time, end_time, direction):
        return self.prices[stock_id]

    def get_factor(self, stock_id, start_time, end_time):
        return 1.0

    def round_amount_by_trade_unit(self, amount, factor):
        return amount


def qlib_orders(scores, held, cash, venue, ages, **parameters):
    "Symbol → signed value that Qlib's TopkDropoutStrategy orders."
    from qlib.backtest.decision import Order
    from qlib.backtest.position import Position
    from qlib.contrib.strategy.signal_strategy import TopkDropoutStrategy

    position = Position(cash, {s: {"amount": v / venue.prices[s], "price": venue.prices[s]} for s, v in held.items()})
    for s in held:
        position.update_stock_count(s, "day", ages[s])
    when = (pd.Timestamp("2020-01-02"), pd.Timestamp("2020-01-03"))

    class Strategy(TopkDropoutStrategy):
        trade_calendar = SimpleNamespace(
            get_trade_step=lambda: 0, get_step_time=lambda *a, **k: when, get_freq=lambda: "day"
        )
        trade_position = position
        trade_exchange = venue

    strategy = Strategy(signal=pd.Series(dtype=float), **parameters)
    strategy.signal = SimpleNamespace(get_signal=lambda **_: pd.Series(scores))
    orders = strategy.generate_trade_decision().get_decision()
    return {o.stock_id: (1 if o.direction == Order.BUY else -1) * o.amount * venue.prices[o.stock_id] for o in orders}


@given(
    seed=st.integers(0, 2**32 - 1),
    topk=st.integers(2, 8),
    drop=st.integers(1, 4),
    only_tradable=st.booleans(),
    hold=st.integers(1, 3),
)
@settings(max_examples=150)
def test_the_same_names_and_amounts_as_qlibs_own_strategy(seed, topk, drop, only_tradable, hold):
    assume(drop <= topk)
    rng = np.random.default_rng(seed)
    symbols = [f"S{i:02d}" for i in range(20)]
    scores = {s: float(x) for s, x in zip(symbols, rng.normal(size=20), strict=True) if rng.random() > 0.1}
    owned = rng.choice(symbols, size=rng.integers(0, topk + 1), replace=False)
    held = {s: float(v) for s, v in zip(owned, rng.uniform(0.02, 0.3, len(owned)), strict=True)}
    ages = {s: int(rng.integers(1, 4)) for s in held}
    suspended = {s for s in symbols if rng.random() < 0.15}
    venue = Venue({s: float(p) for s, p in zip(symbols, rng.uniform(5, 200, 20), strict=True)}, suspended, 0.0015)
    theirs = qlib_orders(
        scores,
        held,
        0.4,
        venue,
        ages,
        topk=topk,
        n_drop=drop,
        only_tradable=only_tradable,
        hold_thresh=hold,
        risk_degree=0.95,
    )
    ctx = Context(
        tuple(symbols),
        np.array([held.get(s, 0.0) for s in symbols]),
        np.array([s not in suspended for s in symbols]),
        cash=0.4,
        ages=np.array([ages.get(s, 0) for s in symbols]),
    )
    assume(any(ctx.tradable[symbols.index(s)] for s in scores))
    rule = TopkDropout(topk, drop, only_tradable=only_tradable, hold_sessions=hold, sell_cost=0.0015)
    w = weights_of(rule(frame(scores.keys(), scores.values()), ctx), ctx)
    ours = {s: d for s, d in zip(symbols, w - ctx.held, strict=True) if d}
    assert ours.keys() == theirs.keys()
    assert ours == pytest.approx(theirs, abs=1e-12)


def test_a_book_of_more_than_topk_and_n_drop_names_shrinks_where_qlib_slices_with_a_negative_number():
    symbols = [f"S{i:02d}" for i in range(30)]
    scores = dict(zip(symbols, np.linspace(1, 0, 30).tolist(), strict=True))
    held = dict.fromkeys(symbols[:8], 0.1)
    venue = Venue(dict.fromkeys(symbols, 10.0), set(), 0.0)
    theirs = qlib_orders(scores, held, 0.2, venue, dict.fromkeys(held, 1), topk=4, n_drop=3)
    assert len(theirs) > 10 and min(theirs.values()) > 0  # buys, and sells none, though it shall hold four
    ctx = Context(tuple(symbols), np.array([held.get(s, 0.0) for s in symbols]), np.ones(30, bool), cash=0.2)
    w = weights_of(TopkDropout(4, 3)(frame(symbols, scores.values()), ctx), ctx)
    assert [s for s, x in zip(symbols, w, strict=True) if x] == symbols[:5]


@pytest.mark.parametrize(("topk", "drop"), [(3, 0), (3, 4), (0, 0)])
def test_more_names_dropped_than_held_are_refused(topk, drop):
    with pytest.raises(InputError, match="n_drop"):
        TopkDropout(topk, drop)


@pytest.mark.parametrize("name", [*RULES, "mean_variance"])
def test_the_settings_name_every_rule(name):
    portfolio = load().portfolio
    if name == "turnover_capped":
        slow = portfolio.model_copy(update={"max_turnover": 0.3})
        assert constructor(slow) == TurnoverCapped(LongShort(portfolio.top_n, portfolio.bottom_n), 0.3)
    else:
        rule = constructor(portfolio.model_copy(update={"constructor": name}), load().costs)
        assert type(rule).__name__.lower() == name.replace("_", "")


def test_the_settings_reach_the_rule_that_they_name():
    from tradenb.core.settings import load

    chosen = {"portfolio.constructor": "mean_variance", "portfolio.neutral": "sectors, beta", "portfolio.ic": "0.05"}
    settings = load(chosen, env={})
    rule = constructor(settings.portfolio, settings.costs)
    assert (rule.sector_neutral, rule.beta_neutral, rule.ic) == (True, True, 0.05)
    settings = load({"portfolio.constructor": "topk_dropout", "portfolio.risk_degree": "0.8"}, env={})
    assert constructor(settings.portfolio, settings.costs).risk_degree == 0.8
