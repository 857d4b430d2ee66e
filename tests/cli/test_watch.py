"`tradenb logs`, `trace` and `metrics` from the command line: for a person, for a program, and for one who goes on looking."

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tradenb.cli.main import run
from tradenb.core.clock import SystemClock, sleep
from tradenb.core.logs import SCHEMA


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRADENB_CORE__ROOT", str(tmp_path / "data"))
    (tmp_path / "data" / "logs").mkdir(parents=True)
    return tmp_path / "data"


def say(root: Path, event: str, level: str = "info", **context: Any) -> None:
    "A line as some process writes it."
    now = SystemClock().now()
    line = dict.fromkeys(SCHEMA) | {"timestamp": now.isoformat(timespec="microseconds"), "level": level}
    with (root / "logs" / f"execution-{now:%Y-%m-%d}.jsonl").open("a") as file:
        file.write(json.dumps(line | {"service": "execution", "event": event, "context": context}) + "\n")


def test_a_program_gets_the_lines_as_they_stand_in_the_files(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    say(root, "order_sent", symbol="AAPL", why="a [bracket] and an ümlaut")
    say(root, "order_denied", "warning", symbol="KO")
    assert run(["logs", "--since", "1h"]) == 0
    files = [file.read_text().splitlines() for file in (root / "logs").iterdir()]
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [json.loads(line) for lines in files for line in lines]  # fmt: skip
    assert run(["logs", "--level", "WARNING", "--symbol", "KO", "--limit", "1"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "order_denied"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("logs", "--level", "loud"), "choose debug"),
        (("logs", "--since", "yesterday"), "write 15m"),
        (("trace", "nobody-knows"), "nothing is known of nobody-knows"),
        (("trace", "x"), "at least four characters"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_one_line(
    root: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert run(list(words)) == 3
    err = capsys.readouterr().err.strip()
    assert says in err and len(err.splitlines()) == 1


def test_without_any_log_there_is_nothing_and_no_error(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["logs"]) == 0
    assert capsys.readouterr().out == ""


@pytest.fixture
def follow(root: Path) -> Callable[..., subprocess.Popen[str]]:
    def start() -> subprocess.Popen[str]:
        say(root, "before")
        command = [Path(sys.executable).with_name("tradenb"), "logs", "--follow", "--service", "execution"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
        assert json.loads(process.stdout.readline())["event"] == "before"
        return process

    return start


def test_following_shows_what_is_said_from_now_on_until_ctrl_c(root: Path, follow: Any) -> None:
    process = follow()
    for event in ("first", "second"):
        say(root, event)
        assert json.loads(process.stdout.readline())["event"] == event
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def test_following_ends_when_the_reader_has_gone(root: Path, follow: Any) -> None:
    process = follow()
    process.stdout.close()
    while process.poll() is None:
        say(root, "nobody hears this")
        sleep(0.2)
    assert (process.wait(), process.stderr.read()) == (0, "")
    process.stderr.close()


def test_a_textfile_is_replaced_as_a_whole(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "textfile" / "tradenb.prom"
    for _ in range(2):
        assert run(["metrics", "--output", str(file)]) == 0
        assert "tradenb_database_up 1.0" in file.read_text()
        assert [path.name for path in file.parent.iterdir()] == ["tradenb.prom"]
        assert file.stat().st_mode & 0o777 == 0o644
