"Alerts: their syntax, their unit tests, their runbooks, and the metrics that they wait for."

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.ops.conftest import OPS, PROJECT, RULES, alerts, expressions, names, read, rules
from tradenb.core.metrics import CATALOGUE

TESTS = OPS / "prometheus" / "tests" / "tradenb.yml"
RUNBOOKS = PROJECT / "docs" / "runbooks"


def test_promtool_has_nothing_to_say_of_the_rules(tool: Callable[..., str]) -> None:
    assert f"{len(rules())} rules found" in tool("promtool", "check", "rules", RULES)


def test_promtool_has_nothing_to_say_of_the_configuration(tool: Callable[..., str]) -> None:
    assert "valid prometheus config" in tool("promtool", "check", "config", OPS / "prometheus" / "prometheus.yml")


def test_amtool_has_nothing_to_say_of_the_routes(tool: Callable[..., str]) -> None:
    assert "SUCCESS" in tool("amtool", "check-config", OPS / "alertmanager" / "alertmanager.yml")


def test_every_alert_fires_and_is_quiet_when_it_should(tool: Callable[..., str]) -> None:
    assert "SUCCESS" in tool("promtool", "test", "rules", TESTS)


def test_every_alert_has_a_unit_test() -> None:
    tested = [case["name"] for case in read(TESTS)["tests"]]
    assert sorted(tested) == sorted(alerts())
    for case in read(TESTS)["tests"]:
        looks = case["alert_rule_test"]
        assert {look["alertname"] for look in looks} == {case["name"]}
        assert any(look["exp_alerts"] for look in looks)
        assert case["name"] == "Watchdog" or any(not look["exp_alerts"] for look in looks)


@pytest.mark.parametrize("name", alerts())
def test_an_alert_says_what_is_wrong_how_bad_and_where_help_is(name: str) -> None:
    alert = alerts()[name]
    assert alert["labels"]["severity"] in ("critical", "warning", "none")
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}
    snake = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
    assert alert["annotations"]["runbook"] == f"docs/runbooks/{snake}.md"


@pytest.mark.parametrize("name", alerts())
def test_a_runbook_says_what_it_means_what_to_do_and_what_not_to_do(name: str) -> None:
    page = (PROJECT / alerts()[name]["annotations"]["runbook"]).read_text()
    assert page.startswith(f"# {name}\n")
    heads = re.findall(r"^## (.+)$", page, re.MULTILINE)
    assert heads == ["What it means", "What to do", "What not to do"]


def test_there_is_no_runbook_without_an_alert_and_the_index_lists_all() -> None:
    wanted = {alert["annotations"]["runbook"].rpartition("/")[2] for alert in alerts().values()}
    assert {page.name for page in RUNBOOKS.glob("*.md")} == wanted | {"README.md"}
    assert set(re.findall(r"\]\(([a-z_]+\.md)\)", (RUNBOOKS / "README.md").read_text())) == wanted


def test_rules_and_dashboards_ask_for_metrics_that_are_in_the_catalogue() -> None:
    known = {metric.name for metric in CATALOGUE.values()}
    asked = {name for expression in expressions().values() for name in names(expression)}
    assert {name for name in asked if name.startswith("tradenb_")} - known == set()


def test_rules_and_dashboards_ask_for_labels_that_their_metrics_have() -> None:
    labels = {metric.name: {*metric.labels, "service", "instance", "job", "le"} for metric in CATALOGUE.values()}
    wrong = []
    for where, expression in expressions().items():
        for name, body in re.findall(r"\b(tradenb_[a-z0-9_]+)\{([^}]*)\}", expression):
            asked = set(re.findall(r"(\w+)\s*[=!]~?", body))
            bare = re.sub(r"(_seconds)_(bucket|count|sum)$", r"\1", name)
            wrong += [f"{where}: {name} has no label {label}" for label in asked - labels[bare]]
        kept = {label for part in re.findall(r"\bby \(([^)]*)\)", expression) for label in part.split(", ")}
        there = set.union(set(), *(labels[name] for name in names(expression) if name in labels))
        wrong += [f"{where}: no metric in it has the label {label}" for label in kept - there if there]
    assert wrong == []


def test_every_expression_is_promql() -> None:
    promql = pytest.importorskip(
        "promql_parser", reason="promql-parser is not installed: promtool checks the rules alone"
    )
    for where, expression in expressions().items():
        try:
            promql.parse(expression.replace("$__rate_interval", "5m"))
        except ValueError as error:
            pytest.fail(f"{where}: {error}")


def test_inhibitions_name_alerts_that_exist() -> None:
    for rule in read(OPS / "alertmanager" / "alertmanager.yml")["inhibit_rules"]:
        for matcher in (*rule["source_matchers"], *rule["target_matchers"]):
            named = re.fullmatch(r'alertname =~? "([\w|]+)"', matcher)
            assert named
            assert set(named[1].split("|")) <= set(alerts())


def commands_of(page: str) -> set[str]:
    "The `tradenb …` command lines of a page."
    return set(re.findall(r"`(tradenb [^`]+)`", page))


@pytest.mark.parametrize(
    "page", sorted([*RUNBOOKS.glob("*.md"), RULES, PROJECT / "docs/guide/operations.md"]), ids=lambda p: p.stem
)
def test_commands_that_a_page_names_exist_with_their_options(page: Path) -> None:
    import typer

    from tradenb.cli.main import app

    for line in commands_of(page.read_text()):
        words = line.split()[1:]
        command = typer.main.get_command(app)
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]  # type: ignore[attr-defined]
        assert command.name != "tradenb" or line.startswith("tradenb --"), line
        assert not getattr(command, "commands", None) or not words, line
        known = {option for parameter in command.params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= known, line
