"""Which training defaults: a walk-forward search on real prices of 1998 to 2014 in which every trial is kept and counted.

Criterion, fixed before the first result: the mean daily rank IC out of sample; among the recipes within one standard error of the best
(Newey and West, of the paired daily differences), the one that costs least to train. Chosen on sessions up to the end of 2009; those from
2010 on are for the `statement`. What became of the plan on the way, and why the default is not what the criterion alone chooses, is told in
docs/decisions/0013-training-defaults.md. Stages:

1. `baselines`: ridge, LightGBM with Qlib's published parameters for Alpha158, and settings.ini as it was.
2. `random`: recipes drawn from a grid, each read off at several numbers of trees. Every second symbol is learnt from, all are judged.
3. `shape`: the choice so far, and settings.ini as it was, with more trees and other training lengths.
4. `finalists`: the choice, the best, the best shallow trees and the baselines, learning from all symbols.
5. `statement`: the finalists on the sessions from 2010 on.

usage: python -m pipelines.studies.defaults [--quick] [--folder FOLDER] [--stages NAME ...]
Trials that are done are read from FOLDER/trials.jsonl, so a study goes on where it stood. --quick: few symbols, recipes and trees.
"""

import argparse
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as View

from tradenb.core.settings import load
from tradenb.models.inference import Trials, deflated_sharpe, newey_west, overfitting_probability

from ._table import Table, stored
from ._trial import HALO, SEED, Recipe, Trial, tried

LAST_CHOICE = date(2009, 12, 31)  # sessions after this day are for the statement
LONGEST = 1008  # sessions of the longest training window: all trials are judged from the same session on
DRAWS = 20
GRID: dict[str, Sequence[Any]] = {
    "learning_rate": (0.02, 0.05, 0.1, 0.2),
    "num_leaves": (8, 16, 31, 64, 210),
    "min_data_in_leaf": (200, 500, 2000, 5000),
    "feature_fraction": (0.2, 0.5, 0.9),
    "lambda_l1": (0.0, 10.0, 205.0),
    "lambda_l2": (0.0, 10.0, 580.0),
}
OLD = Recipe()
PUBLISHED = Recipe(
    target="zscore", learning_rate=0.2, num_leaves=210, max_depth=8, min_data_in_leaf=20, feature_fraction=0.8879, bagging_fraction=1.0,
    lambda_l1=205.6999, lambda_l2=580.9768, rounds=300, patience=50,
)  # fmt: skip

Known = Sequence[Trial]


def drawn(count: int = DRAWS, seed: int = SEED) -> list[Recipe]:
    "Different recipes from the grid."
    rng, found = random.Random(seed), dict[Recipe, None]()
    while len(found) < count:
        found[replace(OLD, **{name: rng.choice(values) for name, values in GRID.items()})] = None
    return list(found)


def behind(trial: Trial, best: Trial) -> float:
    "By how many standard errors a trial is behind another on the same sessions."
    gap = newey_west(np.subtract(best.daily["rank_ic"], trial.daily["rank_ic"]))
    return gap.t if gap.error > 0 else 0.0


def choice(trials: Known) -> Trial:
    "The cheapest within one standard error of the best."
    best = max(trials, key=lambda t: t.rank_ic)
    return min((t for t in trials if behind(t, best) <= 1), key=lambda t: t.cost)


def screened(trials: Known) -> list[Trial]:
    return [t for t in trials if t.stage in ("baselines", "random", "shape")]


def baselines(trials: Known) -> list[Recipe]:
    lines = [Recipe("ridge", ridge_alpha=alpha) for alpha in (0.001, 0.01, 0.1, 1.0)]
    return [OLD, *lines, PUBLISHED, replace(PUBLISHED, target="rank")]


def shape(trials: Known) -> list[Recipe]:
    one = choice([t for t in trials if t.stage in ("baselines", "random")]).recipe
    longer = replace(one, rounds=round(20 / one.learning_rate))
    lengths = [replace(longer, train=sessions) for sessions in (252, 1008)]
    more = round(10 / OLD.learning_rate)
    return [longer, *lengths, replace(OLD, train=1008, rounds=2 * more), replace(OLD, train=0, rounds=more)]


def finalists(trials: Known) -> list[Recipe]:
    known = screened(trials)
    trees = [t for t in known if t.recipe.model == "lightgbm"]
    shallow = [t for t in trees if t.recipe.num_leaves == OLD.num_leaves and t.recipe.lambda_l1 == 0]
    lines = [t for t in known if t.recipe.model == "ridge"]
    best = [max(some, key=lambda t: t.rank_ic) for some in (shallow, trees, lines)]
    recipes = [replace(t.recipe, rounds=round(t.trees)) for t in (best[0], choice(trees), *best[1:])]
    return [replace(recipe, every=1) for recipe in dict.fromkeys([*recipes, OLD, replace(PUBLISHED, rounds=100)])]


def statement(trials: Known) -> list[Recipe]:
    return list(dict.fromkeys(t.recipe for t in trials if t.stage == "finalists"))


STAGES: dict[str, Callable[[Known], list[Recipe]]] = {
    "baselines": baselines, "random": lambda trials: drawn(), "shape": shape, "finalists": finalists, "statement": statement,
}  # fmt: skip


@dataclass(frozen=True)
class Spans:
    "Positions of the sessions that recipes are chosen on, and of those for the statement."

    first: int
    split: int
    last: int

    @classmethod
    def of(cls, table: Table) -> "Spans":
        split = int(np.searchsorted(table.dates, np.datetime64(LAST_CHOICE) + 1))
        return cls(HALO + LONGEST + 63 + 2 * 7, min(split, len(table.dates)), len(table.dates))

    def stage(self, name: str) -> tuple[int, int]:
        return (self.split, self.last) if name == "statement" else (self.first, self.split)


def study(folder: Path, stages: Sequence[str], console: Console) -> list[Trial]:
    "All trials of the stages; each is written down as soon as it is done."
    table, log = stored(folder, quick=False), folder / "trials.jsonl"
    trials = [Trial.of(line) for line in log.read_text().splitlines()] if log.exists() else []
    spans = Spans.of(table)
    for stage in stages:
        done = {t.recipe for t in trials if t.stage == stage}
        for recipe in [r for r in STAGES[stage](trials) if r not in done]:
            found = tried(table, recipe, stage, *spans.stage(stage))
            with log.open("a") as out:
                out.writelines(t.line() for t in found)
            trials += found
            console.print(*map(str, found), sep="\n", soft_wrap=True)
    return trials


def quick_study(folder: Path, console: Console) -> list[Trial]:
    "The same path in half a minute: a few recipes of few trees on few symbols."
    table = stored(folder, quick=True)
    recipes = [Recipe("ridge"), replace(OLD, rounds=60), replace(PUBLISHED, rounds=20)]
    first = len(table.dates) - 63
    return [
        t for recipe in recipes for t in tried(table, replace(recipe, every=1), "baselines", first, len(table.dates))
    ]


def view(trials: Known) -> View:
    "Best first, with what each is behind the best in standard errors."
    table = View("stage", "rank IC", "±", "ICIR", "behind", "Sharpe", "after costs", "turnover", "trees", "s", "recipe", title=f"{len(trials)} trials")  # fmt: skip
    best = max(trials, key=lambda t: t.rank_ic)
    for t in sorted(trials, key=lambda t: -t.rank_ic):
        error = newey_west(np.array(t.daily["rank_ic"])).error
        numbers = f"{t.rank_ic:.4f} {error:.4f} {t.rank_icir:.3f} {behind(t, best):.1f} {t.gross:.2f} {t.net:.2f} {t.turnover:.2f} {t.trees:.0f} {t.cost:.0f}"
        table.add_row(t.stage, *numbers.split(), f"{t.stop}; {t.recipe}" if t.stop else str(t.recipe))
    return table


def luck(trials: Known, chosen: Trial) -> list[str]:
    "What remains of the choice when the search is counted."
    sentences = []
    for kind in ("gross", "net"):
        returns = np.array([t.daily[kind] for t in trials]).T
        deflated = deflated_sharpe(np.array(chosen.daily[kind]), Trials.of_returns(returns))
        sentences += [f"{kind}: {deflated}", f"{kind}: {overfitting_probability(returns, 10)}"]
    return sentences


def told(trials: Known, console: Console) -> None:
    "The tables, the choice, and how much of it may be luck."
    for stages in (("baselines", "random", "shape"), ("finalists",), ("statement",)):
        if some := [t for t in trials if t.stage in stages]:
            console.print(view(some))
    judged = [t for t in trials if t.stage != "statement"]
    final = [t for t in trials if t.stage == "finalists"] or judged
    chosen = choice([t for t in final if t.recipe.model == "lightgbm"])
    console.print(
        f"the choice: {chosen}",
        *luck([t for t in judged if t.sessions == chosen.sessions], chosen),
        sep="\n",
        soft_wrap=True,
    )


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m pipelines.studies.defaults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="few symbols, recipes and trees")
    parser.add_argument(
        "--folder", type=Path, help="where samples and trials are kept (default: studies/defaults below the data root)"
    )
    parser.add_argument(
        "--stages", nargs="*", choices=list(STAGES), default=list(STAGES), metavar="NAME", help=", ".join(STAGES)
    )
    given, console = parser.parse_args(arguments), Console(width=220)
    folder = (given.folder or load().root / "studies" / "defaults") / ("quick" if given.quick else "")
    folder.mkdir(parents=True, exist_ok=True)
    told(quick_study(folder, console) if given.quick else study(folder, given.stages, console), console)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
