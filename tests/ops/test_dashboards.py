"Dashboards: written by ops/dashboards.py, with fields that Grafana knows, over data sources that are provisioned."

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from tests.ops.conftest import DASHBOARDS, OPS, queries, read


def generator() -> Any:
    spec = importlib.util.spec_from_file_location("ops_dashboards", OPS / "dashboards.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_the_files_are_what_the_code_writes() -> None:
    assert {path: path.read_text() for path in DASHBOARDS} == generator().written()


def missing(ours: Any, theirs: Any, at: str = "") -> list[str]:
    "What is in ours and not in theirs."
    if isinstance(ours, dict):
        return [
            line
            for key, value in ours.items()
            for line in ([f"{at}.{key}"] if key not in theirs else missing(value, theirs[key], f"{at}.{key}"))
        ]
    if isinstance(ours, list):
        pairs = zip(ours, theirs, strict=True)
        return [line for n, (a, b) in enumerate(pairs) for line in missing(a, b, f"{at}[{n}]")]
    return [] if ours == theirs else [f"{at}: {ours!r} became {theirs!r}"]


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_comes_back_unchanged_from_grafanas_own_types(file: Path) -> None:
    "The types drop what they do not know, a misspelt option for one."
    pytest.importorskip("grafana_foundation_sdk", reason="grafana-foundation-sdk is not installed")
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    back = json.loads(json.dumps(Dashboard.from_json(read(file)), cls=JSONEncoder))
    assert missing(read(file), back) == []


@pytest.mark.parametrize("file", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_have_places_of_their_own_and_known_sources(file: Path) -> None:
    sources = {s["uid"] for s in read(OPS / "grafana/provisioning/datasources/datasources.yml")["datasources"]}
    taken: set[tuple[int, int]] = set()
    for panel in read(file)["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells
        if panel["type"] not in ("row", "alertlist"):
            assert panel["targets"], panel["title"]
            assert {target["datasource"]["uid"] for target in panel["targets"]} <= sources
    assert len({panel["id"] for panel in read(file)["panels"]}) == len(read(file)["panels"])


def test_dashboards_have_identifiers_and_lead_to_each_other() -> None:
    found = {read(file)["uid"]: read(file) for file in DASHBOARDS}
    assert len(found) == len(DASHBOARDS)
    for uid, page in found.items():
        assert {link["url"] for link in page["links"]} == {f"/d/{other}" for other in found if other != uid}
        assert list(queries(page))
