"The command line: quick to say what it can do, and every refusal is one line with an exit code."

import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from tradenb.cli.day import write_json
from tradenb.cli.main import Ending, app, run
from tradenb.cli.options import date_of, settings_from
from tradenb.cli.screen import describe
from tradenb.core.errors import ConfigError, InputError

PROJECT = Path(__file__).resolve().parents[1]


def words_of(command: Any, said: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    "Every command below this one, in the words that one types."
    below = getattr(command, "commands", {})
    return [words for name, one in below.items() for words in words_of(one, (*said, name))] if below else [said]


EVERY = words_of(typer.main.get_command(app))
COMMANDS = sorted({words[0] for words in EVERY})
HEAVY = ("mlflow", "prefect", "great_expectations", "lightgbm", "polars", "duckdb", "deltalake", "alpaca", "matplotlib", "sklearn",
         "fastapi")  # fmt: skip


def test_saying_what_it_can_do_loads_nothing_heavy():
    asked = [
        ["--help"],
        ["--version"],
        ["paper-run", "--frobnicate"],
        ["lake"],
        *([*words, "--help"] for words in EVERY),
    ]
    code = f"""
import sys
from tradenb.cli.main import run
for arguments in {asked!r}:
    run(arguments)
print("LOADED", sorted(set({HEAVY!r}) & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert done.stdout.strip().splitlines()[-1] == "LOADED []"


def test_the_installed_command_lists_every_command_and_exits_with_0():
    command = Path(sys.executable).with_name("tradenb")
    done = subprocess.run([command, "--help"], cwd=PROJECT, capture_output=True, text=True, check=True)
    assert [name for name in COMMANDS if not re.search(rf"\b{name}\b", done.stdout)] == []
    assert done.stderr == ""


@pytest.mark.parametrize("words", EVERY, ids=" ".join)
def test_every_command_explains_itself_and_each_of_its_options(words, capsys):
    assert run([*words, "--help"]) == 0
    said = capsys.readouterr().out
    assert f"Usage: tradenb {' '.join(words)}" in said
    options = re.findall(r"^[│ ]+(--[a-z-]+)", said, re.M)
    assert "--set" in options
    bare = [line for line in said.splitlines() if re.match(r"^[│ ]+--[a-z-]+\s*[A-Z]*\s*│?$", line)]
    assert bare == []


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["paper-run", "--frobnicate"], ["backfill"], ["backfill", "--from", "2020-01-06"], ["serve"],
     ["serve", "signals", "--port", "70000"], ["runs", "--limit", "0"], ["paper-run", "--date"]],
)  # fmt: skip
def test_slips_of_the_command_line_end_with_code_3_and_one_line(arguments, capsys):
    assert run(arguments) == 3
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith("error: ")


def test_overrides_reach_the_settings_and_their_values_may_hold_equals_signs():
    settings = settings_from(["portfolio.top_n = 3", "files.columns=symbol=ticker, date=day"], market__symbols="A,B")
    assert settings.portfolio.top_n == 3
    assert settings.files.columns == {"symbol": "ticker", "date": "day"}
    assert settings.market.symbols == ("A", "B")


@pytest.mark.parametrize("option", ["portfolio", "portfolio.top_n", "=3", ".=3", "portfolio.=3", "nothing.here=1"])
def test_an_override_that_is_none_is_refused(option):
    with pytest.raises(ConfigError):
        settings_from([option])


@pytest.mark.parametrize("text", ["", "2020", "2020-02-30", "06.01.2020", "today"])
def test_only_iso_dates_are_dates(text):
    with pytest.raises(InputError, match="no date"):
        date_of(text)


@pytest.mark.parametrize("stage", ["etl", "train", "signals", "trade", "reconcile", "report"])
def test_a_stage_that_has_nothing_to_tell_yet_is_described_by_nothing(stage):
    assert describe(stage, {}) == ""


def test_a_result_that_cannot_be_written_is_said_in_words(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"day\.json cannot be written: (Not a directory|File exists)"):
        write_json(tmp_path / "file" / "day.json", {})
    write_json(tmp_path / "new" / "day.json", {"day": 1})
    assert (tmp_path / "new" / "day.json").read_text() == '{\n "day": 1\n}\n'


def test_a_process_ends_with_its_code_after_everything_that_was_to_be_done_at_its_end():
    code = """
import atexit, threading, time
from tradenb.cli import main as line

def command(arguments):
    threading.Thread(target=lambda: (time.sleep(0.2), print("a thread"))).start()
    atexit.register(print, "a message")
    print("the last word", end=" ")
    return 2

line.run = command
line.main([])
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "the last word a thread\na message\n", "")


def test_a_process_whose_reader_has_left_ends_in_python_s_own_way(monkeypatch):
    left: list[int] = []
    monkeypatch.setattr("os._exit", left.append)
    gone = io.TextIOWrapper(io.BytesIO())
    gone.close()
    monkeypatch.setattr("sys.stdout", gone)
    Ending(0)()
    assert left == []


def test_a_process_without_a_code_ends_in_python_s_own_way(monkeypatch):
    left: list[int] = []
    monkeypatch.setattr("os._exit", left.append)
    Ending()()
    assert left == []
    Ending(3)()
    assert left == [3]
