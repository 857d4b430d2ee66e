"What the command prints and what the guide shows runs as it stands, against the command itself."

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import httpx
import pytest

from tradenb.cli.exchange import NAMES, beginning, keys_of, provide
from tradenb.core.errors import ConfigError
from tradenb.core.settings import load
from tradenb.core.web import serving
from tradenb.exchange.service import create_app

PROJECT = Path(__file__).resolve().parents[2]
PAGE = (PROJECT / "docs" / "guide" / "exchange.md").read_text(encoding="utf-8")
COMMAND = "import sys; from tradenb.cli.main import main; main(['exchange', *sys.argv[1:]])"


class Served:
    "`tradenb exchange` in a process of its own, and what it said."

    def __init__(self, *arguments: str):
        mine = {name: value for name, value in os.environ.items() if not name.startswith("TRADENB_")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", COMMAND, "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=mine,
            cwd=PROJECT,
        )
        self.said: list[str] = []
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.said.append(line.rstrip("\n"))
            if "client.get_account().equity" in line:
                break
        found = re.search(r"http://[\d.:]+", "\n".join(self.said))
        assert found, self.said
        self.url = found[0]

    def end(self) -> int:
        "Ask it to end; its exit code."
        self.process.terminate()
        self.process.communicate(timeout=60)
        return self.process.returncode


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Served, Path]]:
    root = tmp_path_factory.mktemp("exchange")
    few = ("--set", "demo.symbols=10", "--set", "demo.years=1", "--set", "demo.start=2023-01-03")
    running = Served("--root", str(root), *few)
    yield running, root
    running.end()


def test_the_ten_lines_that_are_printed_run(served: tuple[Served, Path], capsys: pytest.CaptureFixture) -> None:
    running, root = served
    lines = running.said[running.said.index("To try it:") + 1 :]
    assert len([line for line in lines if line]) == 10
    exec("\n".join(lines), {})
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("OrderStatus.FILLED")
    assert float(out[1].split()[0]) > 0
    secret = (root / "keys.env").read_text().split("=", 2)[2].strip()
    assert secret not in "\n".join(running.said)
    assert (root / "keys.env").stat().st_mode & 0o777 == 0o600


def test_the_guide_s_code_runs_from_top_to_bottom(served: tuple[Served, Path], capsys: pytest.CaptureFixture) -> None:
    running, root = served
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 6
    names: dict = {}
    for block in blocks:
        code = block.replace("http://127.0.0.1:8004", running.url).replace(
            "ws://127.0.0.1:8004", running.url.replace("http", "ws")
        )
        exec(code.replace("data/exchange/keys.env", str(root / "keys.env")), names)
    out = capsys.readouterr().out
    assert "OrderStatus.FILLED" in out
    assert "no answer:" in out
    assert "and yet:" in out
    assert "500000" in out
    for stream in (names["orders"], names["prints"]):
        stream.stop()


def test_the_guide_s_plan_is_one(tmp_path: Path) -> None:
    from tradenb.exchange.faults import FaultKind, read_plan

    (text,) = re.findall(r"^```json\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "plan.json").write_text(text)
    assert len(read_plan(tmp_path / "plan.json").rules) == 4
    table = PAGE[PAGE.index("| `kind` |") : PAGE.index("A rule's `on`")]
    assert {kind.value for kind in FaultKind} == set(re.findall(r"`([a-z_]+)`", table)) - {
        "kind",
        "seconds",
        "status",
        "share",
    }


def test_it_goes_on_where_it_stopped_with_a_plan_in_force(tmp_path: Path) -> None:
    few = {"demo.symbols": "10", "demo.years": "1", "demo.start": "2023-01-03"}
    settings = load(few, env={})
    key_id, secret, _ = keys_of(settings, tmp_path)
    provide(settings, tmp_path / "feed")
    start = beginning(tmp_path / "feed", date(2024, 1, 8))
    app = create_app(
        tmp_path / "feed", tmp_path / "state" / "exchange.db", key_id=key_id, secret_key=secret, start=start
    )
    headers = {"APCA-API-KEY-ID": key_id, "APCA-API-SECRET-KEY": secret}
    with serving(app) as url:
        httpx.post(f"{url}/admin/clock", json={"to": "2024-01-09T18:00:00Z"}, headers=headers).raise_for_status()
    (tmp_path / "plan.json").write_text('{"rules": [{"on": "GET /v2/account", "kind": "rate_limited"}]}')
    more = [part for name, value in few.items() for part in ("--set", f"{name}={value}")]
    words = ("--root", str(tmp_path), "--faults", str(tmp_path / "plan.json"), "--speed", "1", "--date", "2024-01-08")
    again = Served(*words, *more)
    said = "\n".join(again.said)
    assert "Tuesday 2024-01-09" in said and "--date 2024-01-08 is for a new exchange" in said
    assert httpx.get(f"{again.url}/v2/account", headers=headers).status_code == 429
    assert httpx.get(f"{again.url}/admin/clock", headers=headers).json()["speed"] == 1
    assert again.end() in (0, -signal.SIGTERM)


@pytest.mark.parametrize("name", NAMES)
def test_half_a_pair_of_keys_is_refused_without_showing_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="set both of") as caught:
        keys_of(load(env={name: "hush-hush"}), tmp_path)
    assert "hush" not in str(caught.value) and not (tmp_path / "keys.env").exists()
