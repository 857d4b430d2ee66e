"What the benchmarks share: a stopwatch around a call, processes of their own that are timed in turns, and peak memory."

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryFile
from typing import Any

from tradenb.core.clock import Stopwatch

PROJECT = Path(__file__).parents[2]


def seconds(work: Callable[[], object]) -> float:
    "Wall-clock time of one call; what it returned is let go afterwards."
    watch = Stopwatch()
    answer = work()
    took = watch.seconds
    del answer
    return took


def timed(work: Callable[[], object]) -> tuple[float, float]:
    "Seconds of one call by the wall's clock, and of all cores together: on a busy machine the first grows, the second hardly."
    begun = cores()
    wall = seconds(work)
    return wall, cores() - begun


def cores() -> float:
    "Seconds that all cores have worked for this process and for the finished ones that it started."
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def peak_gib() -> float:
    "The most memory this process has held, without what its parent held before it (which `getrusage` may count)."
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30


def command(benchmark: str, arguments: Sequence[object]) -> list[str]:
    "Runs the module of a benchmark as a program."
    return [sys.executable, "-m", f"pipelines.benchmarks.{benchmark}", *map(str, arguments)]


def in_a_process(benchmark: str, *arguments: object) -> dict[str, Any]:
    "The last line that a process of its own prints, JSON."
    answer = subprocess.run(command(benchmark, arguments), check=True, capture_output=True, text=True, cwd=PROJECT)
    return json.loads(answer.stdout.splitlines()[-1])


def serve(work: Callable[[], object], short: float = 10.0) -> None:
    """The side of the process that is timed: a call to warm up, a timed one per line on stdin, then its peak memory.

    Since others ran meanwhile, a call of less than `short` seconds is made once more before it is timed: caches are cold, and a virtual
    machine may have given the pages that were let go back to its host.
    """
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # Whatever a library prints is no answer
    first = seconds(work)
    print(first, file=answers)
    for _ in sys.stdin:
        if first < short:
            work()
        print(*timed(work), file=answers)
    print(peak_gib(), file=answers)


class Contender:
    "A process that has prepared itself, warmed up and waits to be timed; raises `ChildProcessError` with its last words."

    def __init__(self, benchmark: str, arguments: Sequence[object], threads: int) -> None:
        self.errors = TemporaryFile("w+")  # noqa: SIM115 (closed with the process)
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.errors}
        environment = os.environ | {"POLARS_MAX_THREADS": str(threads)}
        self.process = subprocess.Popen(command(benchmark, arguments), text=True, cwd=PROJECT, env=environment, **pipes)
        self.answer()

    def answer(self) -> list[float]:
        assert self.process.stdout
        if line := self.process.stdout.readline():
            return [float(number) for number in line.split()]
        self.errors.seek(0)
        raise ChildProcessError("".join(self.errors.readlines()[-20:]))

    def turn(self) -> list[float]:
        "Seconds of one call, by the wall's clock and of all cores."
        assert self.process.stdin
        print(file=self.process.stdin, flush=True)
        return self.answer()

    def finish(self) -> float:
        "Its peak memory, GiB."
        assert self.process.stdin
        self.process.stdin.close()
        return self.answer()[0]

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            assert pipe
            pipe.close()


@dataclass(frozen=True)
class Measured:
    "One contender's turns."

    turns: list[list[float]]  # seconds by the wall's clock, of all cores
    peak_gib: float

    @property
    def s(self) -> float:
        return median(wall for wall, _ in self.turns)

    def __str__(self) -> str:
        least, worked = min(wall for wall, _ in self.turns), median(worked for _, worked in self.turns)
        return f"{self.s:9.4f} s, least {least:9.4f} s, cores {worked:8.3f} s, {self.peak_gib:5.2f} GiB"


def in_turns(
    benchmark: str,
    contenders: Mapping[str, Sequence[object]],  # name → arguments of the benchmark's program
    rounds: int,
    threads: int = 2,
) -> dict[str, Measured]:
    "All contenders alive and warm at once, one call each, round after round."
    with ExitStack() as stack:
        ready = {name: stack.enter_context(Contender(benchmark, with_, threads)) for name, with_ in contenders.items()}
        turns = [{name: contender.turn() for name, contender in ready.items()} for _ in range(rounds)]
        return {name: Measured([turn[name] for turn in turns], one.finish()) for name, one in ready.items()}


def explain(measured: Mapping[str, Measured], meaning: Mapping[str, str]) -> None:
    "A line per contender: what it took, and what that includes."
    for name, one in measured.items():
        print(f"  {name:10} {one}: {meaning[name]}")
