"Keys stay where they belong, and nobody beyond this machine gets in without one."

import base64
import json
import socket
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tradenb.core import web
from tradenb.core.clock import SystemClock
from tradenb.core.errors import DependencyError
from tradenb.core.logs import configure
from tradenb.core.settings import load
from tradenb.execution.service import create_app

SECOND = date(2020, 1, 6)
PROJECT = Path(__file__).resolve().parents[2]
KNOWN = {
    "TRADENB_EXECUTION__BROKER_KEY_ID": "PKKNOWN7Q2XJ5ZT4VW8R",
    "TRADENB_EXECUTION__BROKER_SECRET": "brk+7fQ/9wLxT2vR8mZcN4sYbH1kDpE6uJ3a",
    "TRADENB_SERVICES__API_KEY": "api-M3nT8xQw5zRk1VbY7cLd2HfJ9sGp4EaU",
    "TRADENB_EXECUTION__WEBHOOK_SECRET": "whk&Zx4Kp9Lm2Qr7Tv3Wy8Bn5Cd6Fg1Hj0Sa",
}
SERVICES = ("signals", "execution", "orchestrator", "exchange", "all")


def spellings(secret: str) -> set[bytes]:
    "The ways in which a secret could stand in a file."
    plain = secret.encode()
    return {plain, quote(secret).encode(), json.dumps(secret)[1:-1].encode(), base64.b64encode(plain).rstrip(b"=")}


def leaks(folder: Path, secrets: dict[str, str]) -> list[str]:
    "Files below a folder in which a secret stands."
    found = []
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        content = path.read_bytes()
        found += [f"{path.name}: {n}" for n, word in secrets.items() if any(s in content for s in spellings(word))]
    return found


def test_the_search_itself_finds_what_is_there(tmp_path: Path) -> None:
    for number, spelling in enumerate(spellings(KNOWN["TRADENB_EXECUTION__WEBHOOK_SECRET"])):
        (tmp_path / f"{number}.bin").write_bytes(b"\0log " + spelling + b"\n")
    assert len(leaks(tmp_path, KNOWN)) == len(list(tmp_path.iterdir()))


def test_a_day_leaves_no_key_in_logs_databases_notebooks_pages_or_output(desk: Any, tmp_path: Path) -> None:
    desk.env |= KNOWN
    answer = desk.tradenb(
        "paper-run", "--verbose", "--output", str(tmp_path / "out.json"), **{"core.log_level": "DEBUG"}
    )
    assert answer.code == 0, answer.err
    assert desk.status(SECOND) == "completed"
    listed = desk.tradenb("runs", **{"core.log_level": "DEBUG"})
    said = (answer.out + answer.err + listed.out + listed.err).encode() + (tmp_path / "out.json").read_bytes()
    assert not [name for name, word in KNOWN.items() if any(s in said for s in spellings(word))]
    searched = {p.suffix for p in desk.root.rglob("*") if p.is_file()}
    assert searched >= {".jsonl", ".db", ".html", ".ipynb"}
    found = leaks(desk.root, KNOWN)  # the exchange knows its own accounts by the key's id, which is no secret
    assert [f for f in found if f.removesuffix("-wal") != "exchange.db: TRADENB_EXECUTION__BROKER_KEY_ID"] == []


def test_errors_do_not_tell_keys(tmp_path: Path) -> None:
    configure("security", tmp_path / "logs", "DEBUG")
    password = "pw-Tq8Zr3Xv6Lm1Kd9W"
    env = KNOWN | {"TRADENB_EXECUTION__BACKOFF_S": "0.01", "TRADENB_EXECUTION__TIMEOUT_S": "0.2"}
    settings = load({"core.root": str(tmp_path / "data")}, env=env, file=PROJECT / "settings.ini")
    said = [repr(settings), str(settings.model_dump()), settings.model_dump_json()]
    with web.serving(create_app(settings, SystemClock(), "http://127.0.0.1:9")) as url:
        body = {"strategy": "s", "symbol": "AAPL", "side": "buy", "time_in_force": "cls", "trade_date": "2017-06-01"}
        for headers in ({}, {"X-API-Key": "wrong"}, {"X-API-Key": KNOWN["TRADENB_SERVICES__API_KEY"]}):
            answers = [
                httpx.post(f"{url}/api/v1/orders", json=body | {"qty": "1"}, headers=headers, timeout=60),
                httpx.post(f"{url}/api/v1/reconciliation", json={}, headers=headers, timeout=60),
                httpx.post(f"{url}/api/v1/webhooks/orders", content=b"{}", headers=headers | {"X-Webhook-Timestamp": "1", "X-Webhook-Signature": f"sha256={'0' * 64}"}, timeout=60),
            ]  # fmt: skip
            assert {answer.status_code // 100 for answer in answers} <= {4, 5}
            said += [answer.text + str(answer.headers) for answer in answers]
        said += [httpx.get(f"{url}/{path}", timeout=60).text for path in ("health", "metrics", "openapi.json")]
    configure("tests", tmp_path / "other")
    env |= {"TRADENB_CORE__DATABASE_URL": f"postgresql://nobody:{password}@127.0.0.1:9/nothing"}
    away = load({"core.root": str(tmp_path / "away")}, env=env, file=PROJECT / "settings.ini")
    with pytest.raises(DependencyError, match="does not answer") as error:
        create_app(away, SystemClock(), "http://127.0.0.1:9")
    said.append(str(error.value))
    (tmp_path / "said").mkdir()
    (tmp_path / "said" / "all.txt").write_text("\n".join(said))
    assert leaks(tmp_path, KNOWN | {"password": password}) == []


@pytest.mark.parametrize("service", SERVICES)
def test_no_service_listens_beyond_this_machine_without_a_key(fresh: Any, service: str) -> None:
    for host in ("0.0.0.0", "::", "192.168.1.7"):
        refused = fresh.tradenb("serve", service, **{"services.host": host})
        assert (refused.code, len(refused.lines)) == (3, 1), refused.err
        assert "TRADENB_SERVICES__API_KEY" in refused.err
    assert not fresh.root.exists() or not any(fresh.root.rglob("*.db"))  # it did not get that far


@pytest.mark.parametrize("service", ["execution", "exchange", "all"])
def test_no_service_listens_without_the_brokers_keys(fresh: Any, service: str) -> None:
    fresh.env["TRADENB_SERVICES__API_KEY"] = "k"
    refused = fresh.tradenb("serve", service, **{"services.host": "0.0.0.0"})
    assert (refused.code, len(refused.lines)) == (3, 1), refused.err
    assert "TRADENB_EXECUTION__BROKER_KEY_ID" in refused.err


def test_services_listen_on_this_machine_alone_by_default(tmp_path: Path) -> None:
    settings = load({"core.root": str(tmp_path)}, env={}, file=PROJECT / "settings.ini")
    assert settings.services.host == "127.0.0.1"
    env = KNOWN | {"TRADENB_EXECUTION__TIMEOUT_S": "0.2", "TRADENB_EXECUTION__ATTEMPTS": "1"}
    settings = load({"core.root": str(tmp_path)}, env=env, file=PROJECT / "settings.ini")
    server = web.Server(create_app(settings, SystemClock(), "http://127.0.0.1:9")).start()
    port = server.socket.getsockname()[1]
    outside = [str(a[4][0]) for a in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)]
    try:
        for address in {a for a in outside if not a.startswith("127.")}:
            with pytest.raises(OSError), socket.create_connection((address, port), timeout=1):  # noqa: PT011
                pass
    finally:
        server.stop()
