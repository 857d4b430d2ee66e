"What goes wrong, how often, and how often it did."

import random
from collections import Counter
from dataclasses import dataclass, field, fields, replace


@dataclass(frozen=True)
class Rates:
    "Probability per occasion."

    # a request to the broker
    lost_request: float = 0.0  # never arrives: the caller times out
    lost_answer: float = 0.0  # arrives, is done, and the answer never comes
    reset_before: float = 0.0  # the connection breaks before the request arrived
    reset_after: float = 0.0  # the connection breaks after the request was done
    late_request: float = 0.0  # arrives after the caller gave up
    late_answer: float = 0.0  # done at once, answered after the caller gave up
    duplicate_request: float = 0.0  # arrives twice
    rate_limited: float = 0.0  # 429 with Retry-After, never reaches the broker
    server_error: float = 0.0  # 500, 502 or 503, never reaches the broker
    gateway_timeout_before: float = 0.0  # 504, never reaches the broker
    gateway_timeout_after: float = 0.0  # 504, and the broker did it
    garbled: float = 0.0  # 200 and not what was asked for
    slow: float = 0.0  # seconds instead of milliseconds
    late_history: float = 0.0  # the account's history does not show the newest trades yet
    # an event of the stream or a webhook
    dropped_event: float = 0.0
    duplicate_event: float = 0.0
    late_event: float = 0.0
    reordered_event: float = 0.0
    disconnect: float = 0.0
    # a gateway
    crash: float = 0.0  # per point
    hang: float = 0.0  # per point: the whole task stands still for a while
    clock_jump: float = 0.0  # per point
    # a transaction
    locked: float = 0.0  # refused at BEGIN
    disk_full: float = 0.0  # refused at COMMIT, rolled back
    lost_database: float = 0.0  # the connection is gone at COMMIT, rolled back
    unknown_commit: float = 0.0  # committed, and the caller is told that the connection is gone

    def scaled(self, factor: float) -> "Rates":
        "All of them, more or less."
        return replace(self, **{f.name: getattr(self, f.name) * factor for f in fields(self)})


CALM = Rates()
ROUGH = Rates(
    lost_request=0.02,
    lost_answer=0.05,
    reset_before=0.015,
    reset_after=0.02,
    late_request=0.02,
    late_answer=0.01,
    duplicate_request=0.015,
    rate_limited=0.015,
    server_error=0.015,
    gateway_timeout_before=0.01,
    gateway_timeout_after=0.06,
    garbled=0.004,
    slow=0.03,
    late_history=0.4,
    dropped_event=0.05,
    duplicate_event=0.05,
    late_event=0.05,
    reordered_event=0.05,
    disconnect=0.02,
    crash=0.004,
    hang=0.002,
    clock_jump=0.002,
    locked=0.004,
    disk_full=0.003,
    lost_database=0.003,
    unknown_commit=0.003,
)
FAMILIES = {
    "network": [f.name for f in fields(Rates)][:14],
    "stream": [f.name for f in fields(Rates)][14:19],
    "process": [f.name for f in fields(Rates)][19:22],
    "database": [f.name for f in fields(Rates)][22:],
}


def weather(rng: random.Random) -> Rates:
    "The rates of one day: some families rage, some are quiet, so that no fault hides another."
    rates: dict[str, float] = {}
    for names in FAMILIES.values():
        family = rng.choice((0.0, 0.5, 1.0, 1.0, 3.0))
        rates |= {name: getattr(ROUGH, name) * family * rng.choice((0.0, 1.0, 1.0, 2.0)) for name in names}
    if rng.random() < 0.15:
        rates["dropped_event"] = 1.0  # nobody hears anything: only the broker's history tells
    return Rates(**rates)


@dataclass
class Faults:
    "The dice, and the count of what they did."

    rng: random.Random
    rates: Rates = CALM
    injected: Counter[str] = field(default_factory=Counter)

    def strikes(self, name: str) -> bool:
        "Whether a fault happens now."
        rate: float = getattr(self.rates, name)
        if not rate or self.rng.random() >= rate:
            return False
        self.injected[name] += 1
        return True

    def one_of(self, *names: str) -> str | None:
        "The one fault of several that happens now, if any."
        return next((name for name in names if self.strikes(name)), None)
