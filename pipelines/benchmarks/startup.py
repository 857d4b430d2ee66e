"What a person waits for before anything happens: the command line's help, and importing the package."

import subprocess
import sys
from pathlib import Path
from statistics import median

from tradenb.core.clock import Stopwatch

from . import Result

ROUNDS = 7
PROGRAM = Path(sys.executable).with_name("tradenb")


def seconds(*command: str | Path) -> float:
    "Median wall time of a fresh process, the first left out: it warms the disk cache."
    times = []
    for _ in range(ROUNDS + 1):
        watch = Stopwatch()
        subprocess.run(command, check=True, capture_output=True)
        times.append(watch.seconds)
    return median(times[1:])


def main() -> list[Result]:
    "Each in processes of its own; Python's bare start beside them, to tell what is ours."
    return [
        ("startup.python", seconds(sys.executable, "-c", "pass"), "s"),
        ("startup.import", seconds(sys.executable, "-c", "import tradenb"), "s"),
        ("startup.import_settings", seconds(sys.executable, "-c", "import tradenb.core.settings"), "s"),
        ("startup.help", seconds(PROGRAM, "--help"), "s"),
    ]
