"Worlds that once broke a promise. Each is replayed by the tests; the sentence says what was wrong."

from dataclasses import dataclass


@dataclass(frozen=True)
class Found:
    "A seed, how many days it takes, and the bug."

    seed: int
    days: int
    bug: str


SEEDS = (
    Found(
        10,
        2,
        "An open order restated by a split or a stock dividend counted as another order under its name, and halted trading.",
    ),
    Found(
        14,
        3,
        "Fills of a split order were compared in old shares with new ones: a difference that nobody could explain.",
    ),
    Found(
        18,
        1,
        "A COMMIT that failed left the writer's connection inside its transaction, and every other process waited for ever.",
    ),
)
