"The report browser over real HTTP: it shows reports, and nothing else that lies on the disk."

import os
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.browser import TYPES, create_app, report_file
from tradenb.core.settings import Settings, load
from tradenb.core.web import serving

PROJECT = Path(__file__).resolve().parents[2]
SECRET = "what nobody may read"
WEB = httpx.Client(timeout=60)  # a busy machine takes its time


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "A data root with one run, and secrets around its reports."
    root = tmp_path_factory.mktemp("data")
    folder = root / "runs" / "2024-01-03" / "2024-01-03-s"
    folder.mkdir(parents=True)
    (folder / "6_report.html").write_text("<h1>The day</h1>")
    (folder / "signals.parquet").write_bytes(b"PAR1")
    (folder / "settings.json").write_text("{}")
    for name in (".env", "notes.txt", "key.pem", "settings.tmp", ".6_report.html.17"):
        (folder / name).write_text(SECRET)
    (root / "state").mkdir()
    (root / "state" / "secret.json").write_text(SECRET)
    (root / "secret.html").write_text(SECRET)
    (folder / "out.html").symlink_to(root / "secret.html")
    (folder / "up").symlink_to(root)
    return root


@pytest.fixture(scope="module")
def chosen(root: Path) -> Settings:
    return load({"core.root": str(root)}, env={}, file=PROJECT / "settings.ini")


@pytest.fixture(scope="module")
def url(chosen: Settings) -> Iterator[str]:
    with serving(create_app(chosen)) as url:
        yield url


PAGE = "2024-01-03/2024-01-03-s/6_report.html"


def test_a_page_is_shown_and_may_load_nothing(url: str) -> None:
    answer = WEB.get(f"{url}/{PAGE}")
    assert (answer.status_code, answer.text) == (200, "<h1>The day</h1>")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert WEB.head(f"{url}/{PAGE}").headers["content-length"] == str(len(answer.content))


def test_what_is_no_page_is_saved_rather_than_shown(url: str) -> None:
    answer = WEB.get(f"{url}/2024-01-03/2024-01-03-s/signals.parquet")
    assert answer.headers["content-disposition"] == 'attachment; filename="signals.parquet"'


def test_the_index_is_as_new_as_the_question(url: str, root: Path) -> None:
    assert "no run yet" in WEB.get(url).text
    assert not (root / "runs" / "index.html").exists()  # it reads, and never writes
    assert WEB.get(f"{url}/index.html").text == WEB.get(url).text


def test_it_is_alive_and_says_so(url: str) -> None:
    assert WEB.get(f"{url}/health").json() == {"service": "reports", "status": "ok", "runs": 0}
    assert WEB.get(f"{url}/metrics").status_code == 200
    assert WEB.get(f"{url}/latest").status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE"])
def test_nothing_can_be_changed_through_it(url: str, method: str) -> None:
    assert WEB.request(method, f"{url}/{PAGE}").status_code == 405


WAYS_OUT = [
    "/../state/secret.json",
    "/../secret.html",
    "/2024-01-03/../../secret.html",
    "/%2e%2e/secret.html",
    "/..%2fsecret.html",
    "/%2e%2e%2fstate%2fsecret.json",
    "/2024-01-03/2024-01-03-s/..%5c..%5c..%5csecret.html",
    "/2024-01-03/2024-01-03-s/out.html",
    "/2024-01-03/2024-01-03-s/up/secret.html",
    "/2024-01-03/2024-01-03-s/.env",
    "/2024-01-03/2024-01-03-s/.6_report.html.17",
    "/2024-01-03/2024-01-03-s/notes.txt",
    "/2024-01-03/2024-01-03-s/key.pem",
    "/2024-01-03/2024-01-03-s/settings.tmp",
    "/2024-01-03/2024-01-03-s/",
    "/2024-01-03/2024-01-03-s",
    "//etc/passwd",
    "/etc/passwd",
    "/%00",
    "/2024-01-03/2024-01-03-s/6_report.html%00.html",
    "/" + "a" * 5000 + ".html",
    "/%c3%bc/%7f.html",
]


@pytest.mark.parametrize("path", WAYS_OUT, ids=lambda path: path[:40])
def test_no_path_leads_out_of_the_reports(url: str, path: str) -> None:
    at = urlsplit(url)
    connection = HTTPConnection(at.hostname or "", at.port)  # a client that sends the path as it is
    connection.putrequest("GET", path, skip_accept_encoding=True)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read().decode()
    assert answer.status == 404
    assert SECRET not in body
    assert answer.headers["content-type"] == "application/problem+json"
    connection.close()


@settings(max_examples=300)
@given(st.text(st.sampled_from("./\\%~ab-\0" + "é2"), max_size=40) | st.text(max_size=40))
def test_whatever_is_asked_for_only_reports_are_found(chosen: Settings, path: str) -> None:
    folder = chosen.root / "runs"
    found = report_file(folder, path)
    assert found is None or (found.is_relative_to(folder.resolve()) and found.suffix in TYPES)


def test_a_folder_reached_by_a_link_is_a_data_root_like_any_other(root: Path, tmp_path: Path) -> None:
    os.symlink(root / "runs", tmp_path / "runs")
    assert report_file(tmp_path / "runs", PAGE) is not None
    assert report_file(tmp_path / "runs", "2024-01-03/2024-01-03-s/out.html") is None
