"""A load generator in a process of its own: some connections that ask the same question over and over.

usage: python -m pipelines.benchmarks._load     the job is a line on stdin, JSON: url, body, seconds, connections, and for a proof
the file of the expected answers, version → signals. It prints a line when it begins, and a line of what came of it.
"""

import http.client
import json
import os
import socket
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from tradenb.core.clock import Stopwatch

PROJECT = Path(__file__).parents[2]
HEADERS = {"Content-Type": "application/json"}


@dataclass(frozen=True)
class Job:
    "What to ask, and for how long."

    url: str
    body: str
    seconds: float
    connections: int
    expected: str = ""  # file, JSON: version → signals; empty: answers are not looked at


@dataclass
class Outcome:
    "What came of it."

    seconds: float = 0.0
    ms: list[float] = field(default_factory=list)  # of every answer, ascending
    failed: list[str] = field(default_factory=list)  # what was wrong with answers
    versions: dict[str, int] = field(default_factory=dict)  # answers by the version that they name

    @property
    def per_second(self) -> float:
        return len(self.ms) / self.seconds

    def quantile(self, share: float) -> float:  # ms
        return self.ms[min(len(self.ms) - 1, int(share * len(self.ms)))]


def connect(url: str) -> tuple[http.client.HTTPConnection, str]:
    "An open connection, and the path to ask."
    at = urlsplit(url)
    connection = http.client.HTTPConnection(at.hostname or "", at.port, timeout=60)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection, at.path


def verdict(status: int, body: bytes, expected: dict[str, Any] | None, told: dict[str, int]) -> str | None:
    "What is wrong with an answer, None when nothing is."
    if status != 200:
        return f"{status}: {body[:200].decode(errors='replace')}"
    if expected is None:
        return None
    answer = json.loads(body)
    version = str(answer["metadata"]["model_version"])
    told[version] = told.get(version, 0) + 1
    return None if answer["signals"] == expected[version] else f"signals of version {version} are not its own"


def ask(job: Job, watch: Stopwatch, outcome: Outcome, expected: dict[str, Any] | None) -> None:
    "One connection's questions until the time is up."
    connection, path = connect(job.url)
    told: dict[str, int] = {}
    while watch.seconds < job.seconds:
        single = Stopwatch()
        try:
            connection.request("POST", path, job.body, HEADERS)
            answer = connection.getresponse()
            status, body = answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            outcome.failed.append(f"{type(error).__name__}: {error}")
            connection, path = connect(job.url)
            continue
        outcome.ms.append(single.seconds * 1e3)
        if wrong := verdict(status, body, expected, told):
            outcome.failed.append(wrong)
    for version, count in told.items():
        outcome.versions[version] = outcome.versions.get(version, 0) + count


def run(job: Job) -> Outcome:
    "All connections at once."
    expected = json.loads(Path(job.expected).read_text()) if job.expected else None
    outcome, watch = Outcome(), Stopwatch()
    threads = [threading.Thread(target=ask, args=(job, watch, outcome, expected)) for _ in range(job.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    outcome.seconds = watch.seconds
    outcome.ms.sort()
    return outcome


class Load:
    "The generator's process, from the side of who starts it: begun at once, its outcome waited for."

    def __init__(self, job: Job) -> None:
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        command = [sys.executable, "-m", "pipelines.benchmarks._load"]
        self.process = subprocess.Popen(
            command, text=True, cwd=PROJECT, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes
        )
        assert self.process.stdin
        print(json.dumps(asdict(job)), file=self.process.stdin, flush=True)
        self._line()

    def _line(self) -> str:
        assert self.process.stdout
        if line := self.process.stdout.readline():
            return line
        raise ChildProcessError("the load generator died; its last words are above")

    def outcome(self) -> Outcome:
        "What came of it; waits for the end."
        return Outcome(**json.loads(self._line()))

    def __enter__(self) -> "Load":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe
            pipe.close()


if __name__ == "__main__":
    job = Job(**json.loads(sys.stdin.readline()))
    print("begun", flush=True)
    print(json.dumps(asdict(run(job))))
