"What a test says goes to a folder of its own, and is read back from there."

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import structlog

from tradenb.core import logs


@contextmanager
def logging_to(folder: Path) -> Iterator[Path]:
    "Within the block this process logs to `folder`, at level DEBUG; nowhere afterwards, as before."
    before = structlog.get_config()
    logs.configure("tests", folder, "DEBUG")
    try:
        yield folder
    finally:
        logs._log.file.close()
        logs._log = None
        root = logging.getLogger()
        for handler in [h for h in root.handlers if h.get_name() == "tradenb"]:
            root.removeHandler(handler)
        structlog.configure(**before)


def lines(folder: Path) -> list[dict[str, Any]]:
    "All lines of a folder, file by file."
    return [json.loads(line) for file in sorted(folder.glob("*.jsonl")) for line in file.read_bytes().splitlines()]
