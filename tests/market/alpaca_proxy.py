"A proxy of the tests that stands between stock alpaca-py and an exchange, and breaks what it is told to break."

import json
import socket
import struct
import threading
from collections import deque
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import httpx

Answer = tuple[int, dict[str, str], bytes]


class Proxy:
    "Real HTTP on both sides. `break_next('/bars', '503', 'reset')` breaks the next requests whose path ends so; `repeat` says the page before again."

    def __init__(self, target: str, clock: Callable[[], float] = lambda: 0.0):
        self.target, self.clock = target, clock
        self.seen: list[tuple[float, str, dict[str, str]]] = []  # when by `clock`, path, query
        self.faults: dict[str, deque[str]] = {}
        self.last: dict[str, Answer] = {}
        self.released = threading.Event()
        self.upstream = httpx.Client(base_url=target)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def break_next(self, path: str, *faults: str) -> None:
        self.faults.setdefault(path, deque()).extend(faults)

    def requests(self, path: str) -> list[dict[str, str]]:
        "The queries that reached a path."
        return [query for _, at, query in self.seen if at.endswith(path)]

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self.upstream.close()

    def fault(self, path: str) -> str | None:
        queue = next((queue for end, queue in self.faults.items() if path.endswith(end) and queue), None)
        return queue.popleft() if queue else None

    def fetch(self, path: str, raw: str, headers: dict[str, str]) -> Answer:
        got = self.upstream.get(path, params=raw, headers=headers)
        return got.status_code, {"Content-Type": "application/json"}, got.content

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                at = urlsplit(self.path)
                query = {k: v[0] for k, v in parse_qs(at.query).items()}
                proxy.seen.append((proxy.clock(), at.path, query))
                listing = str((at.path, sorted(query.items() - {("page_token", query.get("page_token", ""))})))
                keys = {k: v for k, v in self.headers.items() if k.lower().startswith("apca")}
                answer = proxy.last.get(listing) if (fault := proxy.fault(at.path)) == "repeat" else None
                answer = answer or proxy.fetch(at.path, at.query, keys)
                proxy.last[listing] = answer
                self.broken(fault, answer)

            def broken(self, fault: str | None, answer: Answer) -> None:
                match (fault or "").split(":"):
                    case ["reset"]:
                        linger = struct.pack("ii", 1, 0)
                        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                        self.connection.close()
                        self.close_connection = True
                    case ["hang"]:
                        proxy.released.wait(3)
                        self.close_connection = True
                    case ["cut"]:
                        self.say(200, {"Content-Length": str(len(answer[2]))}, answer[2][: len(answer[2]) // 2])
                        self.close_connection = True
                    case ["garbled"]:
                        self.say(200, {}, answer[2][: len(answer[2]) // 2])
                    case ["html"]:
                        self.say(200, {}, b"<html>maintenance</html>")
                    case ["list"]:
                        self.say(200, {}, b"[]")
                    case ["empty"]:
                        self.say(200, {}, b"")
                    case ["null", name]:
                        self.say(200, {}, json.dumps({name: None, "next_page_token": None}).encode())
                    case ["answer", *rest]:
                        self.say(200, {}, ":".join(rest).encode())
                    case ["429", seconds]:
                        self.say(429, {"Retry-After": seconds}, b'{"code":42910000,"message":"too many requests."}')
                    case [status, *words] if status.isdigit():
                        self.say(int(status), {}, json.dumps({"message": ":".join(words) or "no"}).encode())
                    case _:
                        self.say(*answer)

            def say(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(body))} | headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler
