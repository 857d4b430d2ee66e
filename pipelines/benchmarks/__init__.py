"Benchmarks: one module per room, each with `main() -> [(name, value, unit)]`; `make bench` runs them."

import os
from pathlib import Path

Result = tuple[str, float, str]  # dotted name, value, unit


def real_data() -> Path:
    "The folder of real market data, which is no part of the project."
    return Path(os.environ.get("TRADENB_REAL_DATA", Path(__file__).parents[3] / "shared" / "data"))


def missing(name: str) -> bool:
    "Is the file not there? Says so, since the benchmark is then left out."
    path = real_data() / name
    if not path.exists():
        print(f"left out: there is no {name} in {path.parent} (TRADENB_REAL_DATA names another folder)")
    return not path.exists()
