"What a person waits for before anything happens: the command line's help, and importing the package."

import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import median

from . import Result
from ._measure import seconds

ROUNDS = 7
PROGRAM = Path(sys.executable).with_name("tradenb")


def fresh(*command: str | Path) -> float:
    "Median wall time of a fresh process, the first left out: it warms the disk cache."
    run = partial(subprocess.run, command, check=True, capture_output=True)
    return median([seconds(run) for _ in range(ROUNDS + 1)][1:])


def main() -> list[Result]:
    "Each in processes of its own; Python's bare start beside them, to tell what is ours."
    return [
        ("startup.python", fresh(sys.executable, "-c", "pass"), "s"),
        ("startup.import", fresh(sys.executable, "-c", "import tradenb"), "s"),
        ("startup.import_settings", fresh(sys.executable, "-c", "import tradenb.core.settings"), "s"),
        ("startup.help", fresh(PROGRAM, "--help"), "s"),
    ]
