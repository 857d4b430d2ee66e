"`python -m tests.simulation --seed S --days D [--runs N] [--jobs J] [--mutation NAME] [--calm] [--verbose]`."

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from itertools import chain

from tradenb.core.clock import Stopwatch

from .mutations import MUTATIONS
from .runner import Summary, side_by_side, simulate
from .world import Result


def up_to(most: int) -> Callable[[str], int]:
    "A whole number from 1 on, as an argument."

    def number(text: str) -> int:
        if not text.isdecimal() or not 1 <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"expected a whole number from 1 to {most:,}, found {text}")
        return int(text)

    return number


def arguments(words: Sequence[str] | None = None) -> argparse.Namespace:
    "What was asked for."
    parser = argparse.ArgumentParser(
        "python -m tests.simulation", description="Trading days with faults, on simulated time."
    )
    parser.add_argument("--seed", type=int, default=1, help="of the first world")
    parser.add_argument("--days", type=up_to(30), default=5, help="sessions that a world lives (at most 30)")
    parser.add_argument("--runs", type=up_to(1_000_000), default=1, help="worlds, on one seed after the other")
    parser.add_argument(
        "--jobs", type=up_to(1_000), default=1, help="processes; a single world, or a story that is told, is one's"
    )
    parser.add_argument("--mutation", choices=sorted(MUTATIONS), help="a deliberate mistake, to see it caught")
    parser.add_argument("--calm", action="store_true", help="without faults")
    parser.add_argument("--verbose", action="store_true", help="tell the story")
    asked = parser.parse_args(words)
    if asked.runs == 1 or asked.verbose:
        asked.jobs = 1
    return asked


def told(result: Result, asked: argparse.Namespace) -> None:
    "A violation, with what came before it."
    for violation in result.violations:
        print(f"VIOLATION {violation}")
    print("\n".join(f"    {line}" for line in result.tail))
    kind = (f" --mutation {asked.mutation}" if asked.mutation else "") + (" --calm" if asked.calm else "")
    # The days that were asked for: with another number of them a seed tells another story.
    print(f"    again: python -m tests.simulation --seed {result.seed} --days {asked.days}{kind} --verbose", flush=True)


def main(words: Sequence[str] | None = None) -> int:
    "Run, show progress, sum up; 1 when a promise was broken."
    asked, watch, summary = arguments(words), Stopwatch(), Summary()
    seeds = range(asked.seed, asked.seed + asked.runs)
    if asked.jobs > 1:
        results = side_by_side(seeds, asked.days, asked.jobs, asked.mutation, asked.calm)
    else:
        results = simulate(seeds, asked.days, asked.mutation, asked.verbose, asked.calm)
    if asked.runs == 1:  # once more, silently: the same story
        results = chain(results, simulate(seeds, asked.days, asked.mutation, False, asked.calm))
    for number, result in enumerate(results):
        if asked.runs == 1:
            print(f"seed {result.seed}: {result.days} days, story {result.hash}, {result.switches:,} switches")
            if number:
                break
        summary.add(result)
        if result.violations:
            told(result, asked)
        elif summary.worlds % 25 == 0:
            share = f"{summary.worlds}/{asked.runs} worlds, {summary.days:,} days, {watch.seconds:,.0f} s, {len(summary.failed)} with violations"
            print(share, flush=True)
    print(f"\n{summary}\nwall clock: {watch.seconds:,.0f} s with {asked.jobs} process(es)")
    return 1 if summary.failed else 0


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":  # the order of sets is a part of the story
        os.execve(
            sys.executable,
            [sys.executable, "-m", "tests.simulation", *sys.argv[1:]],
            os.environ | {"PYTHONHASHSEED": "0"},
        )
    sys.exit(main())
