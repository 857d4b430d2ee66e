"The lot around the house: what `make` offers, the README, the benchmarks, the installation."

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dotenv import dotenv_values

from pipelines import services
from pipelines.benchmarks.__main__ import available, main
from tradenb.core.errors import ServiceUnavailable
from tradenb.core.settings import load

PROJECT = Path(__file__).resolve().parents[1]
MAKEFILE = (PROJECT / "Makefile").read_text()


def run(*command: str | Path, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, **options)


def tracked() -> list[Path]:
    "Text files that git holds or would hold; empty outside a checkout."
    names = run("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard").stdout.split("\0")
    return [PROJECT / name for name in names if name and (PROJECT / name).is_file()]


def test_the_readme_is_what_its_notebook_makes() -> None:
    check = run(sys.executable, PROJECT / ".ci" / "readme.py", "--check")
    assert (check.returncode, check.stderr) == (0, "")


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"(?:\]\(|src=\")([^)\"#]+)", (PROJECT / "README.md").read_text())
    assert links
    assert [link for link in links if "://" not in link and not (PROJECT / link).exists()] == []


def test_the_picture_of_the_flow_stands_alone_and_knows_dark_from_light() -> None:
    picture = (PROJECT / "docs" / "flow.svg").read_text()
    assert "prefers-color-scheme: dark" in picture
    assert set(re.findall(r"https?://[^\"' ]+", picture)) == {"http://www.w3.org/2000/svg"}


def test_make_without_a_target_lists_every_target() -> None:
    targets = re.search(r"^\.PHONY: (.*)$", MAKEFILE, re.MULTILINE)[1].split()
    shown = run("make", "--no-print-directory").stdout
    assert {"install", "run", "test", "test-cov", "lint", "fmt", "bench", "up", "down", "clean"} <= set(targets)
    assert [name for name in targets if not re.search(rf"^  make {name} +\S", shown, re.MULTILINE)] == []


def test_continuous_integration_runs_make_test() -> None:
    script = PROJECT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert script.read_text().rstrip().endswith("exec make test")


@pytest.mark.parametrize("target", ["install", "run", "test", "test-cov", "bench", "up", "export", "fmt", "clean"])
def test_what_computes_waits_for_changed_kernels_and_nothing_else_does(target: str) -> None:
    would = run("make", "-n", "-W", "tradenb/features/kernels.py", target).stdout
    waits = target not in ("export", "fmt", "clean")
    assert ("tradenb.features.compiled" in would) == waits
    assert "share/tradenb" not in would


@pytest.fixture
def lot(tmp_path: Path) -> Path:
    "A project folder with a space in its path, a lock of nothing, and the installer."
    folder = tmp_path / "my project"
    (folder / ".ci").mkdir(parents=True)
    (folder / ".ci" / "install.py").write_text((PROJECT / ".ci" / "install.py").read_text())
    (folder / "requirements.lock").write_text("")
    return folder


def install(folder: Path, stamp: str = ".venv/.stamp-1") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, ".ci/install.py", stamp], cwd=folder, capture_output=True, text=True)


def test_an_environment_is_stamped_when_complete_and_left_alone_then(lot: Path) -> None:
    assert "Creating .venv" in install(lot).stdout
    assert (lot / ".venv" / ".stamp-1").read_text().strip() == str(lot)
    assert install(lot).stdout == ""
    assert "Creating" not in (changed := install(lot, ".venv/.stamp-2").stdout)
    assert "Installing" in changed
    assert [path.name for path in (lot / ".venv").glob(".stamp-*")] == [".stamp-2"]


@pytest.mark.long
def test_an_installation_that_fails_leaves_no_stamp_and_begins_anew(lot: Path) -> None:
    (lot / "requirements.lock").write_text("nothing-of-this-name==1.0 --hash=sha256:" + "0" * 64 + "\n")
    (lot / "pip.conf").write_text("[global]\nno-index = true\n")
    isolated = {"PIP_CONFIG_FILE": str(lot / "pip.conf"), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(lot)}
    failed = subprocess.run(
        [sys.executable, ".ci/install.py", ".venv/.stamp-1"],
        cwd=lot,
        capture_output=True,
        text=True,
        env=os.environ | isolated,
    )
    assert failed.returncode == 1
    assert "Traceback" not in failed.stderr
    assert list((lot / ".venv").glob(".stamp-*")) == []
    (lot / "requirements.lock").write_text("")
    assert "Creating .venv" in install(lot).stdout


@pytest.mark.long
def test_an_environment_that_was_moved_is_built_anew(lot: Path) -> None:
    install(lot)
    moved = lot.rename(lot.with_name("elsewhere"))
    assert "Creating .venv" in install(moved, ".venv/.stamp-2").stdout


def test_bench_prints_each_result_for_a_reader_and_for_a_script(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "toss.py").write_text('"A coin."\ndef main():\n    return [("toss.heads", 0.5, "share")]\n')
    monkeypatch.setattr("pipelines.benchmarks.__path__", [str(tmp_path)])
    monkeypatch.setattr("pipelines.benchmarks.__main__.__path__", [str(tmp_path)])
    assert main(["toss"]) == 0
    out = capfd.readouterr().out
    assert "RESULT toss.heads 0.5 share" in out.splitlines()
    assert "toss: A coin." in out


def test_bench_names_the_benchmarks_when_one_is_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"startup", "features"} <= set(available())
    assert main(["startap"]) == 3
    assert "did you mean 'startup'?" in capsys.readouterr().err


@pytest.mark.skipif(not (PROJECT / "tradenb" / "cli" / "main.py").exists(), reason="the command line is not there")
def test_the_startup_benchmark_measures_the_command_line() -> None:
    shown = run(sys.executable, "-m", "pipelines.benchmarks", "startup", check=True).stdout
    results = dict(line.split()[1:3] for line in shown.splitlines() if line.startswith("RESULT "))
    assert {"startup.python", "startup.help"} <= set(results)
    assert all(float(value) > 0 for value in results.values())


@pytest.fixture
def sleepers(tmp_path: Path) -> Iterator[tuple[services.Started, subprocess.Popen[bytes]]]:
    "A process that `up` would have started, and a stranger that does the same."
    (tmp_path / "logs").mkdir()
    (tmp_path / "state").mkdir()
    ours = services.launch(services.Program("sleeper", ("sleep", "60"), {}), tmp_path)
    stranger = subprocess.Popen(["sleep", "60"])
    yield ours, stranger
    stranger.kill()
    stranger.wait()


def write_note(root: Path, *rows: services.Started) -> None:
    services.note(root).write_text(services.json.dumps([services.asdict(row) for row in rows]))


def test_down_ends_what_up_started_and_nothing_else(tmp_path: Path, sleepers: tuple) -> None:
    ours, stranger = sleepers
    born_before = services.Started("reused id", stranger.pid, ours.born - 3600)
    write_note(tmp_path, ours, born_before)
    assert services.stop(tmp_path) == ["sleeper"]
    assert not services.alive(ours)
    assert stranger.poll() is None
    assert services.stop(tmp_path) == []


def test_keys_are_added_to_what_the_owner_has_and_read_by_the_settings(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text("TRADENB_EXECUTION__BROKER_KEY_ID=mine")
    (tmp_path / "settings.ini").write_text((PROJECT / "settings.ini").read_text())
    settings = load(env=dotenv_values(file), file=tmp_path / "settings.ini")
    missing = services.missing_keys(settings)
    assert missing == ["TRADENB_SERVICES__API_KEY", "TRADENB_EXECUTION__BROKER_SECRET"]
    services.provide_keys(missing, file)
    complete = load(env=dotenv_values(file), file=tmp_path / "settings.ini")
    assert services.missing_keys(complete) == []
    assert complete.execution.broker_key_id.get_secret_value() == "mine"


def test_a_program_that_ends_while_starting_is_reported_with_its_last_line(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    broken = services.Program("broken", ("sh", "-c", "echo the disk is full"), {"broken": "http://127.0.0.1:9/"})
    with pytest.raises(ServiceUnavailable, match="broken ended while starting: the disk is full"):
        services.wait(broken, services.launch(broken, tmp_path), tmp_path)


def test_tracked_files_name_no_place_on_a_machine() -> None:
    here = re.escape(str(PROJECT))
    home = re.compile(r"(?<![\w.])/(?:home|Users|root)/\w|(?<![\w./])/tmp/\w|" + here)
    texts = [path for path in tracked() if path.suffix not in (".lock", ".png") and path != Path(__file__)]
    found = {
        str(path.relative_to(PROJECT)): hit[0]
        for path in texts
        if (hit := home.search(path.read_text(errors="ignore")))
    }
    assert found == {}
