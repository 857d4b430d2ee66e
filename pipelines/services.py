"""Everything long-running at once: `make up` and `make down`.

usage: python -m pipelines.services up | down
`up` starts the services, the scheduler with its deployments and a worker, MLflow's pages and the report browser in the background, waits until each
answers, and names their addresses; one that does not come up takes the others down with it. What was started is written down with its process id and
time of birth, so that `down` ends exactly that and never a stranger who got the same number later. Where `prefect.api_url` names a scheduler, that one
is used, and a worker of this machine works for it.
"""

import json
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import httpx
import psutil
from rich.console import Console

from tradenb.core.clock import Stopwatch, sleep
from tradenb.core.errors import ConfigError, PortTaken, ServiceUnavailable, TradenbError, one_line
from tradenb.core.settings import Settings, find_file, load, variable
from tradenb.core.storage import variables
from tradenb.core.web import listen

SCHEDULER_PORT, MLFLOW_PORT = 4200, 5050
BIN = Path(sys.executable).parent
PATIENCE_S, GRACE_S = 90, 10
QUIET = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
}


@dataclass(frozen=True)
class Program:
    "A process to keep running, and where it answers."

    name: str
    command: tuple[str, ...]
    pages: dict[str, str]  # what answers there: URL
    environment: dict[str, str] = field(default_factory=dict)  # What it is told besides ours
    prepare: Callable[[], object] | None = None  # Done before it starts, by this process
    ready: Callable[[], bool] = lambda: True  # Asked when all its pages answer


@dataclass(frozen=True)
class Started:
    "A process that `up` started."

    name: str
    pid: int
    born: float  # the system's creation time of the process: with the id it names one process for ever
    url: str = ""  # of its first page


def missing_keys(settings: Settings) -> list[str]:
    "Variables of the keys that processes must share and that nobody has set; a broker's own keys cannot be made up."
    wanted = {("services", "api_key"): settings.services.api_key}
    if settings.execution.broker == "exchange":
        wanted[("execution", "broker_key_id")] = settings.execution.broker_key_id
        wanted[("execution", "broker_secret")] = settings.execution.broker_secret
    return [variable(*name) for name, value in wanted.items() if value is None]


def provide_keys(names: list[str], file: Path) -> None:
    "Add random keys to the project's `.env`, for its owner's eyes alone."
    before = file.read_text() if file.exists() else ""
    added = "".join(f"{name}={secrets.token_urlsafe(24)}\n" for name in names)
    file.touch(mode=0o600)
    file.write_text(before + ("\n" if before and not before.endswith("\n") else "") + added)


def programs(settings: Settings) -> list[Program]:
    "What `up` starts, in the order of the screen."
    host, services = settings.services.host, settings.services
    ports = {
        "exchange": services.exchange_port,
        "signals": services.signals_port,
        "execution": services.execution_port,
        "orchestrator": services.orchestrator_port,
    }
    if settings.execution.broker != "exchange":
        del ports["exchange"]
    return [
        Program(
            "services",
            (str(BIN / "tradenb"), "serve", "all"),
            {name: f"http://{host}:{port}/" for name, port in ports.items()},
        ),
        *scheduling(settings),
        Program(
            "mlflow",
            (str(BIN / "mlflow"), "server", "--host", host, "--port", f"{MLFLOW_PORT}", "--workers", "1"),
            {"mlflow": f"http://{host}:{MLFLOW_PORT}/"},
            mlflow_environment(settings),
        ),
        Program("reports", (str(BIN / "tradenb"), "reports"), {"reports": reports_url(settings)}),
    ]


def scheduling(settings: Settings) -> list[Program]:
    "The scheduler, unless there is one elsewhere, and a worker for it; its deployments are registered before the worker starts."
    from pipelines.deploy import online, register, worker_command, worker_environment

    base = scheduler_url(settings)
    url = settings.prefect.api_url or f"{base}api"
    server = (str(BIN / "prefect"), "server", "start", "--host", settings.services.host, "--port", f"{SCHEDULER_PORT}")
    links = {} if settings.reports.link else {variable("reports", "link"): reports_url(settings).rstrip("/")}
    worker = Program(
        "worker",
        worker_command(settings),
        {},
        worker_environment(settings, url) | links,
        lambda: register(settings, url),
        lambda: online(settings, url),
    )
    return [worker] if settings.prefect.api_url else [Program("scheduler", server, {"scheduler": base}), worker]


def scheduler_url(settings: Settings) -> str:
    return f"http://{settings.services.host}:{SCHEDULER_PORT}/"


def reports_url(settings: Settings) -> str:
    return f"http://{settings.services.host}:{settings.reports.port}/"


def mlflow_environment(settings: Settings) -> dict[str, str]:
    "MLflow's pages over the registry's database and its files, wherever they are; addresses with passwords stand on no command line."
    store = settings.registry.uri or f"sqlite:///{settings.root / 'mlflow' / 'mlflow.db'}"
    return variables(settings.storage) | {"MLFLOW_BACKEND_STORE_URI": store}


def running_scheduler(root: Path) -> str | None:
    "The API of the scheduler that `up` started on this data root and that still runs."
    found = [process for process in started(root) if process.name == "scheduler" and process.url and alive(process)]
    return f"{found[0].url}api" if found else None


def note(root: Path) -> Path:
    return root / "state" / "up.json"


def started(root: Path) -> list[Started]:
    "What was started and not yet stopped."
    return [Started(**row) for row in json.loads(note(root).read_text())] if note(root).exists() else []


def remember(root: Path, running: Sequence[Started]) -> None:
    "Write down what was started, for whoever is to stop it."
    note(root).write_text(json.dumps([asdict(process) for process in running]))


def alive(process: Started) -> bool:
    "Does this very process still run?"
    try:
        found = psutil.Process(process.pid)
        return abs(found.create_time() - process.born) < 1 and found.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def log_of(root: Path, name: str) -> Path:
    return root / "logs" / f"up-{name}.txt"


def launch(program: Program, root: Path) -> Started:
    "Start it as the head of a process group of its own, its output in a file."
    environment = dict(os.environ) | QUIET | {"PREFECT_HOME": str(root / "prefect")} | program.environment
    with log_of(root, program.name).open("w") as log:
        child = subprocess.Popen(
            program.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
        )
    url = next(iter(program.pages.values()), "")
    return Started(program.name, child.pid, psutil.Process(child.pid).create_time(), url)


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, follow_redirects=True).status_code < 500
    except httpx.HTTPError:
        return False


def wait(program: Program, process: Started, root: Path) -> None:
    "Return when all its pages answer; `ServiceUnavailable` when it ends or stays silent."
    watch, log = Stopwatch(), log_of(root, program.name)
    while not (all(answers(url) for url in program.pages.values()) and program.ready()):
        if not alive(process):
            lines = log.read_text(errors="replace").strip().splitlines() or ["it said nothing"]
            raise ServiceUnavailable(f"{program.name} ended while starting: {lines[-1]} ({log} has the rest)")
        if watch.seconds > PATIENCE_S:
            raise ServiceUnavailable(f"{program.name} did not answer within {PATIENCE_S} s: {log} has the reason")
        sleep(0.2)


def refuse_taken_ports(planned: list[Program]) -> None:
    "`PortTaken` when somebody else already answers where we would."
    for program in planned:
        for name, url in program.pages.items():
            at = httpx.URL(url)
            try:
                listen(at.host, at.port or 80).close()
            except PortTaken as error:
                raise PortTaken(f"{name}: {one_line(error)}") from None


def up(settings: Settings, console: Console) -> None:
    "Start everything, wait for it, and say where it is."
    root, planned = settings.root, programs(settings)
    if any(alive(process) for process in started(root)):
        console.print("Already up (`make down` stops it):")
        return show(planned, console)
    refuse_taken_ports(planned)
    if names := missing_keys(settings):
        file = find_file().with_name(".env")
        provide_keys(names, file)
        console.print(f"Made keys for the services, in {file.name}: {', '.join(names)}")
    for folder in ("state", "logs", "prefect", "mlflow"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    running: list[Started] = []
    try:
        for program in planned:  # one after the other: they would migrate the same databases at once
            with console.status(f"Starting {', '.join(program.pages) or program.name}"):
                if program.prepare:
                    program.prepare()
                running.append(launch(program, root))
                remember(root, running)
                wait(program, running[-1], root)
    except BaseException:
        stop(root)
        raise
    show(planned, console)


def show(planned: list[Program], console: Console) -> None:
    for program in planned:
        for name, url in program.pages.items():
            console.print(f"  {name:<13} {url}", highlight=False)


def members(process: Started) -> Iterator[psutil.Process]:
    "The process and its descendants, while it is still the one that was started."
    if alive(process):
        head = psutil.Process(process.pid)
        yield from head.children(recursive=True)
        yield head


def stop(root: Path) -> list[str]:
    "Ask what was started to end, and end what does not; returns the names that were still alive."
    running = [process for process in started(root) if alive(process)]
    everyone = [member for process in running for member in members(process)]
    for process in running:
        os.killpg(process.pid, signal.SIGTERM)
    _, stubborn = psutil.wait_procs(everyone, timeout=GRACE_S)
    for member in stubborn:
        member.kill()
    psutil.wait_procs(stubborn, timeout=GRACE_S)
    note(root).unlink(missing_ok=True)
    return [process.name for process in running]


def down(settings: Settings, console: Console) -> None:
    stopped = stop(settings.root)
    console.print(f"Stopped: {', '.join(stopped)}" if stopped else "Nothing of ours was running")


def main(arguments: list[str]) -> int:
    action = {"up": up, "down": down}.get(" ".join(arguments))
    if action is None:
        print(__doc__, file=sys.stderr)
        return ConfigError.exit_code
    try:
        action(load(), Console())
    except TradenbError as error:
        print(one_line(error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted: what had started is stopped again", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
