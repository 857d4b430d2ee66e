"`tradenb kill` from the command line: what it needs, what it asks, what it says and ends with."

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import select

from tradenb.cli.main import run
from tradenb.core.db import connect, default_url, kill_switch, migrate

Tell = Callable[..., tuple[int, str, str]]


@pytest.fixture
def tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tell:
    "Run a command on a database without orders, and a broker that is not there."
    root = tmp_path / "data"
    migrate(connect(default_url(root))).dispose()
    settings = {"CORE__ROOT": root, "SERVICES__EXCHANGE_URL": "http://127.0.0.1:9", "EXECUTION__ATTEMPTS": 1}
    for name, value in (settings | {"EXECUTION__BROKER_KEY_ID": "K", "EXECUTION__BROKER_SECRET": "S"}).items():
        monkeypatch.setenv(f"TRADENB_{name}", str(value))

    def ask(*words: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run(["kill", *words])
        said = capsys.readouterr()
        return code, said.out, said.err

    return ask


def test_a_block_is_set_seen_and_released_without_gateway_and_broker(tell: Tell) -> None:
    assert tell("block", "--why", "drill", "--who", "ann")[:2] == (0, "*: block in force\n")
    assert tell("block", "--scope", "symbol:AAPL")[0] == 0
    code, out, err = tell("status")
    assert code == 1 and "ann" in out and "drill" in out and "the broker does not answer" in err
    code, out, _ = tell("release", "--why", "over", "--who", "bob")
    assert code == 0 and "release of * by bob" in out and "still in force: block of symbol:AAPL" in out


def test_what_is_in_force_is_told_without_the_broker_s_keys(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    tell("block", "--why", "drill", "--who", "ann")
    monkeypatch.delenv("TRADENB_EXECUTION__BROKER_SECRET")
    code, out, err = tell("status")
    assert code == 3 and "drill" in out and "TRADENB_EXECUTION__BROKER_SECRET" in err


def test_engaging_never_weakens_and_release_goes_down_by_name(tell: Tell) -> None:
    tell("block")
    assert tell("reduce")[1] == "*: block in force\n"
    assert "reduce of *" in tell("release", "--to", "reduce")[1]


def test_a_broker_that_is_down_leaves_the_switch_thrown_and_says_so(tell: Tell) -> None:
    code, out, err = tell("flatten", "--yes", "--why", "fire")
    assert code == 1 and "*: flatten in force" in out and "not done: the broker's part" in out and "repeat" in err


@pytest.mark.parametrize("command", ["cancel", "flatten"])
def test_what_sells_or_cancels_is_not_done_without_a_yes(tell: Tell, command: str) -> None:
    code, out, err = tell(command)
    assert (code, out) == (3, "") and "--yes" in err
    assert "release" in tell("release")[1] or "never engaged" in tell("release")[1]


def test_a_no_at_the_terminal_does_nothing_and_says_so(tell: Tell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    code, out, err = tell("flatten")
    assert (code, out.strip()) == (3, "") and "nothing was done" in err and "never engaged" in tell("release")[1]


@pytest.mark.parametrize("scope", ["all", "symbol:", "symbol:aapl", "account:1"])
def test_a_scope_that_matches_nothing_is_refused(tell: Tell, scope: str) -> None:
    for words in (("block",), ("cancel", "--yes"), ("release",)):
        code, _, err = tell(*words, "--scope", scope)
        assert code == 3 and "no scope of the kill switch" in err


def test_each_turn_of_the_switch_is_a_trace_of_its_own_that_can_be_shown(
    tell: Tell, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tell("block", "--scope", "symbol:AAPL", "--why", "a rumour", "--who", "ann")
    tell("release", "--scope", "symbol:AAPL", "--why", "it was none", "--who", "bob")
    engine = connect(default_url(tmp_path / "data"))
    with engine.connect() as connection:
        first, second = connection.execute(select(kill_switch.c.trace_id).order_by(kill_switch.c.id)).scalars()
    engine.dispose()
    assert first and second and first != second
    for trace, told in ((first, "by ann: a rumour"), (second, "by bob: it was none")):
        capsys.readouterr()
        assert run(["trace", trace[:12]]) == 0
        shown = capsys.readouterr().out
        assert f"trace {trace}" in shown and told in shown and "kill_switch" in shown


@pytest.mark.parametrize("level", ["cancel", "flatten"])
def test_without_the_broker_s_keys_the_switch_is_thrown_all_the_same(
    tell: Tell, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    monkeypatch.delenv("TRADENB_EXECUTION__BROKER_SECRET")
    code, out, err = tell(level, "--yes", "--why", "fire")
    assert code == 1 and f"*: {level} in force" in out and "TRADENB_EXECUTION__BROKER_SECRET" in out and "repeat" in err
    assert "fire" in tell("status")[1]


def test_what_the_broker_has_not_said_is_not_called_nothing(tell: Tell) -> None:
    _, out, _ = tell("flatten", "--yes")
    assert "what is still open is not known" in out and "held: not known" in out and "nothing" not in out
