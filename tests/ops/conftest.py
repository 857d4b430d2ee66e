"What the tests of ops/ share: its files, read, and the tools that check them."

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
OPS = PROJECT / "ops"
RULES = OPS / "prometheus" / "rules" / "tradenb.yml"
DASHBOARDS = sorted((OPS / "grafana" / "dashboards").glob("*.json"))
OURS = re.compile(r"\b(tradenb_[a-z0-9_]+|process_[a-z_]+)\b")


@cache
def read(path: Path) -> Any:
    "A YAML or JSON file."
    return json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())


def rules() -> list[dict[str, Any]]:
    "All rules, alerts and recordings."
    return [rule for group in read(RULES)["groups"] for rule in group["rules"]]


def alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules() if "alert" in rule}


def queries(dashboard: dict[str, Any]) -> Iterator[tuple[str, str]]:  # panel's title, expression
    "What a dashboard asks Prometheus."
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            if target["datasource"]["uid"] == "prometheus":
                yield panel["title"], target["expr"]


def expressions() -> dict[str, str]:
    "Every PromQL expression of ops/, by where it stands."
    found = {rule.get("alert") or rule["record"]: rule["expr"] for rule in rules()}
    for file in DASHBOARDS:
        found |= {f"{file.stem}: {title} ({n})": expr for n, (title, expr) in enumerate(queries(read(file)))}
    return found


def names(expression: str) -> set[str]:
    "The metrics of ours that an expression asks for; a histogram's series under the histogram's name."
    return {re.sub(r"(_seconds)_(bucket|count|sum)$", r"\1", name) for name in OURS.findall(expression)}


@pytest.fixture
def tool() -> Callable[..., str]:
    "Run a tool that Debian's prometheus packages bring: its output, or a skipped test where it is not on PATH."

    def run(*command: str | Path, text: str | None = None) -> str:
        if shutil.which(str(command[0])) is None:
            pytest.skip(f"no {command[0]} on PATH: apt-get install prometheus prometheus-alertmanager")
        done = subprocess.run(command, capture_output=True, text=True, input=text, timeout=120)
        assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    return run
