"The session under `alpaca-py`: real sockets, and servers that answer byte by byte what they are told."

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import pytest
import requests

from tradenb.execution.broker import Session

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\n\r\n" + b'{"n": "10"}'
PLENTY_S = 10.0  # longer than any machine is busy


@dataclass
class Script:
    "What a server says to the first connection, the second, …: answers in order, then it hangs up; what it was asked."

    answers: list[list[bytes]]
    asked: list[bytes] = field(default_factory=list)
    connections: int = 0
    url: str = ""


def request_of(connection: socket.socket) -> bytes:
    "A whole request; nothing when the other side has hung up."
    got = b""
    while b"\r\n\r\n" not in got:
        if not (more := connection.recv(65536)):
            return b""
        got += more
    head, _, body = got.partition(b"\r\n\r\n")
    lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < sum(lengths):
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


@contextmanager
def serving(*answers: list[bytes]) -> Iterator[Script]:
    script, listener = Script(list(answers)), socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        for spoken in script.answers:
            with suppress(OSError):
                connection, _ = listener.accept()
                script.connections += 1
                with connection:
                    for answer in spoken:
                        script.asked.append(request_of(connection))
                        connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    script.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield script
    finally:
        listener.close()
        thread.join(PLENTY_S)


@pytest.fixture
def session() -> Iterator[Session]:
    one = Session(PLENTY_S)
    yield one
    one.close()


def test_requests_go_over_one_connection_as_long_as_it_is_kept(session: Session) -> None:
    with serving([OK, OK, OK]) as script:
        for _ in range(3):
            answer = session.request("POST", f"{script.url}/v2/orders", json={"qty": "1"}, headers={"A": "b"})
            assert (answer.status_code, answer.json(), answer.text) == (200, {"n": "10"}, '{"n": "10"}')
        assert script.connections == 1
    head, _, body = script.asked[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v2/orders HTTP/1.1\r\nHost: 127.0.0.1:")
    assert b"\r\nA: b" in head and b"\r\nContent-Type: application/json" in head and body == b'{"qty": "1"}'


def wait_for_the_end(session: Session) -> None:
    "Until the server's hanging up has come in on every connection that is kept."
    for free in session._lines._free.values():
        assert all(line._poll.poll(PLENTY_S * 1000) for line in free)


def test_a_connection_that_was_closed_meanwhile_is_not_used_again(session: Session) -> None:
    with serving([OK], [OK]) as script:
        assert session.request("GET", script.url).ok
        wait_for_the_end(session)
        assert session.request("GET", script.url).ok
        assert script.connections == 2


def test_an_answer_with_another_one_behind_it_is_the_last_of_its_connection(session: Session) -> None:
    more = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
    with serving([OK + more], [OK]) as script:
        assert [session.request("GET", script.url).json() for _ in range(2)] == [{"n": "10"}] * 2
        assert script.connections == 2


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{"
    + b'"n":'
    + b"\r\n5\r\n"
    + b'"10"}'
    + b"\r\n0\r\n\r\n"
)
GOOD = {
    "length": OK,
    "chunks": CHUNKED,
    "until the end": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + b'{"n": "10"}',
    "old": b"HTTP/1.0 200 OK\r\n\r\n" + b'{"n": "10"}',
    "after a hint": b"HTTP/1.1 100 Continue\r\n\r\n" + OK,
}


@pytest.mark.parametrize("answer", GOOD.values(), ids=GOOD)
def test_an_answer_ends_in_any_of_its_ways(session: Session, answer: bytes) -> None:
    with serving([answer], [OK]) as script:
        assert session.request("GET", script.url).json() == {"n": "10"}
        wait_for_the_end(session)
        assert session.request("GET", script.url).json() == {"n": "10"}


def test_no_content_is_an_answer_without_a_body(session: Session) -> None:
    with serving([b"HTTP/1.1 204 No Content\r\n\r\n", OK]) as script:
        gone = session.request("DELETE", script.url)
        assert (gone.status_code, gone.text, session.request("GET", script.url).ok) == (204, "", True)
        assert script.connections == 1


BAD = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a body": OK[:-3],
    "half the chunks": CHUNKED[:-9],
    "no HTTP": b"SSH-2.0-OpenSSH_9.2\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 11\r\n\r\n{}",
    "a hint only": b"HTTP/1.1 100 Continue\r\n\r\n",
}


@pytest.mark.parametrize("answer", BAD.values(), ids=BAD)
def test_what_is_no_whole_answer_is_a_broken_connection(session: Session, answer: bytes) -> None:
    with serving([answer], [OK]) as script:
        with pytest.raises(requests.ConnectionError):
            session.request("GET", script.url)
        assert session.request("GET", script.url).ok


def test_a_refusal_is_an_answer_with_its_headers(session: Session) -> None:
    said = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 3\r\nContent-Length: 2\r\n\r\n{}"
    with serving([said]) as script:
        answer = session.request("GET", script.url)
    assert (answer.status_code, answer.reason, answer.headers["retry-after"]) == (429, "Too Many Requests", "3")
    with pytest.raises(requests.HTTPError, match="429 Client Error"):
        answer.raise_for_status()


def test_what_is_no_json_is_said_to_be_none(session: Session) -> None:
    with (
        serving([b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>"]) as script,
        pytest.raises(requests.JSONDecodeError),
    ):
        session.request("GET", script.url).json()


def test_nobody_there_and_nobody_answering_are_different_errors() -> None:
    free = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{free.getsockname()[1]}"
    with Session(0.2) as patient, pytest.raises(requests.Timeout):
        patient.request("GET", url)  # accepted by the kernel, answered by nobody
    free.close()
    with Session(0.2) as patient, pytest.raises(requests.ConnectionError):
        patient.request("GET", url)


@pytest.mark.parametrize("headers", [{"A": "b\r\nX-Evil: 1"}, {"A\nB": "c"}])
def test_a_header_cannot_bring_another_one_along(session: Session, headers: dict[str, str]) -> None:
    with serving([OK]) as script, pytest.raises(requests.exceptions.InvalidHeader):
        session.request("GET", script.url, headers=headers)
    assert script.asked in ([], [b""])


def test_an_address_is_escaped_where_it_has_to_be(session: Session) -> None:
    with serving([OK, OK]) as script:
        session.request(
            "GET", f"{script.url}/v2/a b\u00fc", params={"q": "x y", "l": ["1", "2"], "none": None, "b": True}
        )
        session.request("GET", script.url)
    assert script.asked[0].startswith(b"GET /v2/a%20b%C3%BC?q=x+y&l=1&l=2&b=true HTTP/1.1\r\n")
    assert script.asked[1].startswith(b"GET / HTTP/1.1\r\n")
