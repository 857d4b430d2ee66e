"`tradenb model`: a model's life from the command line; a reason for everything, and one line for what cannot be."

import getpass
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tradenb.cli.main import run
from tradenb.core.settings import load
from tradenb.features.panel import random_panel
from tradenb.features.sets import feature_set
from tradenb.models.registry import Registry, open_registry
from tradenb.models.splits import WalkForward
from tradenb.models.tracking import ModelCard, log_training
from tradenb.models.training import TrainingConfig, TrainingResult, train

CARD = ModelCard(vintage={"bars": 4, "universe": 1}, settings_hash="0123456789abcdef")
CONFIG = TrainingConfig(
    WalkForward(train=100, valid=30, test=40, warmup=60), rounds=4, min_data_in_leaf=50, threads=1, top_n=3, bottom_n=3
)
Tell = Callable[..., tuple[int, str, list[str]]]


@pytest.fixture(scope="module")
def results() -> list[TrainingResult]:
    panel, fset = random_panel(12, 300, seed=5), feature_set("alpha158")
    return [train(panel, fset, config) for config in (CONFIG, replace(CONFIG, model="ridge"))]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory, results: list[TrainingResult]) -> Registry:
    "Two versions, neither of which trades."
    opened = open_registry(load({"core.root": str(tmp_path_factory.mktemp("models") / "data")}, env={}))
    for result in results:
        opened.log_and_register(result, CARD)
    return opened


@pytest.fixture
def tell(registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Tell:
    "Run a command: its exit code, what it answered, and the lines of its error stream."
    monkeypatch.setenv("TRADENB_CORE__ROOT", str(registry.root))

    def ask(*arguments: object) -> tuple[int, str, list[str]]:
        capsys.readouterr()
        code = run(["model", *map(str, arguments)])
        said = capsys.readouterr()
        return code, said.out, said.err.strip().splitlines()

    return ask


def states(tell: Tell) -> dict[int, str]:
    return {row["version"]: row["state"] for row in json.loads(tell("list", "--json")[1])}


def test_a_whole_life_from_the_command_line(tell: Tell, registry: Registry) -> None:
    assert states(tell) == {1: "registered", 2: "registered"}
    assert tell("activate", 1, "--why", "first", "--who", "ada")[:2] == (0, "version 1 is the champion\n")
    assert tell("challenge", 2, "--why", "a line, for once")[:2] == (0, "version 2 is the challenger\n")
    assert states(tell) == {1: "champion", 2: "challenger"}
    assert tell("activate", 2, "--why", "it won")[0] == 0
    assert tell("rollback", "--why", "turnover doubled")[:2] == (0, "version 1 is the champion again\n")
    assert tell("retire", 2, "--why", "leaky")[0] == 0
    assert states(tell) == {1: "champion", 2: "retired"}
    assert tell("deactivate", "--why", "holiday")[:2] == (0, "no version trades\n")
    story = registry.history().filter(action="rollback").row(0, named=True)
    assert (story["who"], story["why"]) == (getpass.getuser(), "turnover doubled")


def test_what_the_gate_refuses_ends_with_code_2_and_says_everything(tell: Tell, registry: Registry, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setenv("TRADENB_REGISTRY__MIN_TEST_SESSIONS", "5000")
    monkeypatch.setenv("TRADENB_REGISTRY__MIN_NAMES", "900")
    code, out, err = tell("activate", 1, "--why", "hope")
    assert (code, out, len(err)) == (2, "", 1)
    assert "sessions: found" in err[0] and "names: found 12, expected in the median session at least 900" in err[0]
    assert tell("list")[2] == ["no version trades"]


def test_slips_end_with_code_3(tell: Tell) -> None:
    for arguments in (
        ("activate", "1"),
        ("activate", "one", "--why", "x"),
        ("activate", "1", "--why", "  "),
        ("register", "--why", "x"),
        ("register", "--file", "absent.txt", "--why", "x"),
        ("challenge", "--why", "x"),
        ("challenge", "1", "--none", "--why", "x"),
    ):
        code, out, err = tell(*arguments)
        assert (code, out, len(err)) == (3, "", 1), arguments


def test_an_outage_ends_with_code_1(tell: Tell, registry: Registry) -> None:
    file = registry.root / "mlflow" / "mlflow.db"
    file.rename(file.with_suffix(".away"))
    try:
        for command in (("list",), ("show", 1), ("rollback", "--why", "x"), ("activate", 1, "--why", "x")):
            code, _, err = tell(*command)
            assert code == 1 and len(err) == 1 and "restore it" in err[0]
    finally:
        file.with_suffix(".away").replace(file)


def test_a_version_is_shown_with_its_papers_its_gate_and_its_luck(tell: Tell) -> None:
    code, out, _ = tell("show", 1)
    assert code == 0
    for said in ("version 1 of alpha158_ls", "alpha158", "rank_ic", "golden", "the gate: it may trade", "deflated Sharpe ratio", "2 trainings"):  # fmt: skip
        assert said in out
    value = json.loads(tell("show", 1, "--json")[1])
    assert {check["check"] for check in value["checks"]} >= {"digest", "golden", "signature", "feature hash", "sessions", "names", "retired"}  # fmt: skip
    assert value["trials"] == {"trainings": 2} and 0 <= value["deflated_sharpe"]["probability"] <= 1
    assert tell("show", 99)[0] == 2


def test_two_versions_are_compared(tell: Tell) -> None:
    value = json.loads(tell("compare", 1, 2, "--json")[1])
    assert value["params"] == [{"param": "model", "a": "lightgbm", "b": "ridge"}]
    span = value["rank_ic_difference"]
    assert span["low"] <= span["value"] <= span["high"] and -1 < value["correlation"] < 1
    out = tell("compare", 1, 2)[1]
    assert "A is version 1, B is version 2" in out and value["verdict"] in " ".join(out.split())


def test_a_notebook_s_training_and_a_bought_file_become_versions(tell: Tell, registry: Registry, results: list[TrainingResult], tmp_path: Path) -> None:  # fmt: skip
    run_id = log_training(registry.tracking, results[1], CARD, registry.clock.now())
    code, out, _ = tell("register", "--run", run_id, "--why", "from a notebook")
    assert (code, out.split(";")[0]) == (0, "registered as version 3")
    results[0].model.save(tmp_path)
    (tmp_path / "metrics.json").write_text('{"rank_ic": 0.02, "sessions": 300}')
    (tmp_path / "config.json").write_text('{"num_leaves": 31}')
    files = ("--file", tmp_path / "model.lgb", "--metrics", tmp_path / "metrics.json", "--config", tmp_path / "config.json")  # fmt: skip
    code, out, _ = tell("register", *files, "--trained-through", "2019-02-28", "--why", "bought")
    assert (code, out.split(";")[0]) == (0, "registered as version 4")
    code, _, err = tell("activate", 4, "--why", "trust me")
    assert code == 2 and "no metric 'names'" in err[0]
    (tmp_path / "metrics.json").write_text("[1, 2]")
    code, _, err = tell("register", *files, "--trained-through", "2019-02-28", "--why", "bought")
    assert code == 3 and "expected a JSON object" in err[0]
    assert tell("compare", 1, 4)[0] == 2
