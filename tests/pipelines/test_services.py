"What `make up` starts and `make down` ends, with programs of the tests' own in place of the platform's."

import socket
import sys
from pathlib import Path

import psutil
import pytest

from pipelines.scheduler import server_of
from pipelines.services import (
    Program,
    Started,
    alive,
    launch,
    note,
    provide_keys,
    refuse_taken_ports,
    remember,
    started,
    stop,
    wait,
)
from tradenb.cli.doctor import with_scheduler
from tradenb.core.errors import PortTaken, ServiceUnavailable
from tradenb.core.settings import load

CHILD = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for folder in ("state", "logs"):
        (tmp_path / folder).mkdir()
    return tmp_path


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def python(*arguments: str, **pages: str) -> Program:
    return Program("program", (sys.executable, *arguments), pages)


def test_a_program_is_waited_for_until_it_answers_and_ends_with_all_that_it_began(root: Path) -> None:
    port = str(free_port())
    web = python("-m", "http.server", port, "--bind", "127.0.0.1", web=f"http://127.0.0.1:{port}/")
    parent = launch(python("-c", CHILD), root)
    remember(root, [server := launch(web, root), parent])
    wait(web, server, root)
    head = psutil.Process(parent.pid)
    while not (children := head.children()):
        assert head.is_running()
    child = Started("child", children[0].pid, children[0].create_time())
    assert stop(root) == ["program", "program"]
    assert not any(alive(one) for one in (server, parent, child))
    assert started(root) == [] and stop(root) == []


def test_a_program_that_ends_while_it_starts_is_told_with_its_last_words(root: Path) -> None:
    broken = python(
        "-c", "print('first', flush=True); raise SystemExit('no licence')", web=f"http://127.0.0.1:{free_port()}/"
    )
    with pytest.raises(ServiceUnavailable, match=r"program ended while starting: no licence \(.*up-program.txt"):
        wait(broken, launch(broken, root), root)


def test_a_stranger_who_got_the_number_of_one_of_ours_is_left_alone(root: Path) -> None:
    ours = launch(python("-c", CHILD), root)
    stranger = Started(ours.name, ours.pid, ours.born - 3600)
    remember(root, [stranger])
    assert not alive(stranger) and stop(root) == [] and alive(ours)
    remember(root, [ours])
    assert stop(root) == ["program"]


def test_a_port_that_somebody_has_is_named_with_who_wants_it() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/"
        with pytest.raises(PortTaken, match="mlflow: "):
            refuse_taken_ports([python("-c", "", mlflow=url)])


def test_keys_are_added_to_what_is_there_for_their_owner_alone(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    provide_keys(["FIRST"], file)
    assert file.stat().st_mode & 0o077 == 0
    before = file.read_text().rstrip("\n")
    file.write_text(before)
    provide_keys(["SECOND"], file)
    first, second = file.read_text().splitlines()
    assert first == before and second.startswith("SECOND=") and len(second) > 30


def test_the_scheduler_that_runs_is_known_to_flows_and_to_the_doctor(root: Path, monkeypatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    settings = load({"core.root": root}, env={})
    program = Program("scheduler", (sys.executable, "-c", CHILD), {"scheduler": "http://127.0.0.1:4200/"})
    assert server_of(settings) is None and with_scheduler(settings).prefect.api_url == ""
    remember(root, [launch(program, root)])
    assert server_of(settings) == with_scheduler(settings).prefect.api_url == "http://127.0.0.1:4200/api"
    stop(root)
    assert server_of(settings) is None and not note(root).exists()
