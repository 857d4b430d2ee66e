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
    Found(
        1035,
        5,
        "A split on the day after an order had ended was counted as one that restated it: another order under its name, and a halt.",
    ),
    Found(
        2033,
        5,
        "The sum of executions before and after a split was compared with the broker's, in other shares: executions seemed to be missing.",
    ),
    Found(
        2063,
        5,
        "Flattening one strategy closed what another strategy's working order was closing already: the account's position flipped.",
    ),
    Found(
        198,
        5,
        "The exchange answered an average as a division left it, and one such number made every list of orders unreadable: nobody could reconcile.",
    ),
    Found(
        191,
        2,
        "A gateway whose clock was behind trusted its lease by that clock, and sent for the first time what another one had taken over and sent.",
    ),
    Found(
        323,
        5,
        "An order of the kill switch that the broker did not take yet, in the evening, counted as a difference between the books.",
    ),
    Found(
        535,
        4,
        "One strategy was flattened while another one's order, let in a moment before, closed the same shares: the closing order went on working, and flipped the position.",
    ),
    Found(
        1038,
        2,
        "A part of an order was executed before a reverse split, the rest after it: in old and new shares together it was more than the broker's order had, and trading was halted until the history came.",
    ),
    Found(
        1249,
        4,
        "An order restated by a split had filled, its event was dropped and its history came late: nothing could prove the shares, and trading was halted.",
    ),
    Found(
        1908,
        3,
        "A closing order of the kill switch that left just after the close kept its old session's name: the next command did not know it, and closed once more.",
    ),
    Found(
        3988,
        3,
        "An execution of before a split, found late in the history, made the sum reach the quantity of before: the order counted as filled while the broker's went on.",
    ),
    Found(
        6633,
        2,
        "The monitor took it for a blind repeat when a gateway sent that had asked: another one, which stood still at the wire, had sent in between.",
    ),
    Found(
        9143,
        5,
        "The broker's market data did not answer: an order restated by a split counted as another one under its name, and halted trading, where nothing could be compared.",
    ),
)
