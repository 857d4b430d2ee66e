"Small markets with everything that happens to a position: splits, dividends, a delisting, early closes, thin volume."

import random
from dataclasses import dataclass
from datetime import date
from functools import lru_cache
from pathlib import Path

from tradenb.core.calendar import sessions, shift
from tradenb.exchange.feed import write_rows

SYMBOLS = ("ABLE", "BIRD", "CORK", "DUSK", "ECHO", "FERN", "GOLD", "HAZE")
STARTS = (
    date(2016, 11, 17),
    date(2017, 6, 26),
    date(2018, 11, 29),
    date(2019, 12, 20),
)  # holidays and early closes near
LENGTH = 45  # sessions


@dataclass(frozen=True)
class Market:
    "One market's feed on disk, and its closes for those who decide."

    folder: Path
    days: tuple[date, ...]
    closes: dict[tuple[str, date], float]


@lru_cache(16)
def market(root: Path, number: int) -> Market:
    "The market of a number, written once per process."
    rng, days = random.Random(number), sessions(STARTS[number % 4], shift(STARTS[number % 4], LENGTH))
    actions = _actions(rng, days)
    ends = {symbol: days[days.index(day) - 1] for symbol, day, kind, *_ in actions if kind == "delisting"}
    rows = [
        row for symbol in SYMBOLS for row in _bars(rng, symbol, days, actions) if row[1] <= ends.get(symbol, days[-1])
    ]
    folder = write_rows(root / f"market-{number}", rows, actions, ends)
    return Market(folder, tuple(days), {(row[0], row[1]): row[5] for row in rows})


def _actions(rng: random.Random, days: list[date]) -> list[tuple]:
    found: list[tuple] = []
    for symbol in SYMBOLS[:6]:
        for day in sorted(rng.sample(days[3:], 4)):
            kind = rng.choice(("split", "dividend", "dividend", "stock_dividend"))
            ratio = {"split": rng.choice((2.0, 3.0, 1.5, 0.5)), "stock_dividend": 1.1}.get(kind, 1.0)
            cash = round(rng.uniform(0.05, 1.5), 2) if kind == "dividend" else 0.0
            found.append((symbol, day, kind, ratio, cash))
    return [*found, (SYMBOLS[7], rng.choice(days[8:30]), "delisting", 1.0, 12.5)]


def _bars(rng: random.Random, symbol: str, days: list[date], actions: list[tuple]) -> list[tuple]:
    price, found = rng.uniform(8, 120), []
    ratios = {day: ratio for name, day, _, ratio, _ in actions if name == symbol}
    for day in days:
        price /= ratios.get(day, 1.0)
        first = round(price * (1 + rng.gauss(0, 0.01)), 2)
        last = round(max(1.0, first * (1 + rng.gauss(0, 0.02))), 2)
        high, low = (
            round(max(first, last) * (1 + rng.random() / 50), 2),
            round(min(first, last) * (1 - rng.random() / 50), 2),
        )
        found.append((symbol, day, first, high, low, last, rng.choice((400, 1500, 6000, 40000))))
        price = last
    return found
