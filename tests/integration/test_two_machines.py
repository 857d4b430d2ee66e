"A second machine goes on where the first stopped: state in PostgreSQL, lake, models and pages in a bucket, by settings alone."

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import create_engine, make_url, text

from pipelines.parts import signals_now, take_in, train_now
from tests.environment import put_back
from tradenb.core import db
from tradenb.core.calendar import previous_session
from tradenb.core.clock import Stopwatch, sleep
from tradenb.core.errors import LakeError, ServiceUnavailable
from tradenb.core.settings import Settings, load
from tradenb.core.storage import bucket_of, client, listed, reach
from tradenb.core.web import serving
from tradenb.market.lake import open_lake
from tradenb.trading.services import APPS, clock_for, provide_feed

DAY = date(2019, 1, 3)
WHOLE_DAY = bool(os.environ.get("TWO_MACHINES_WHOLE_DAY"))  # by default the second machine only makes the signals
SMALL: dict[str, object] = {
    "demo.symbols": 25,
    "demo.years": 1,
    "demo.bad_rows": 0,
    "training.train_sessions": 80,
    "training.valid_sessions": 20,
    "training.test_sessions": 40,
    "training.embargo_sessions": 1,
    "training.rounds": 20,
    "training.threads": 1,
    "registry.min_names": 5,
    "registry.min_test_sessions": 30,
    "portfolio.top_n": 3,
    "portfolio.bottom_n": 3,
    "execution.backoff_s": 0.01,
}


@pytest.fixture(scope="module")
def bucket_server() -> Iterator[str]:
    "An S3-compatible server in a process of its own: Delta's calls would not let a thread of this one answer."
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server, watch = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL), Stopwatch()
    try:
        while not answers(url := f"http://127.0.0.1:{port}"):
            assert server.poll() is None and watch.seconds < 60, "the server did not come up"
            sleep(0.1)
        yield url
    finally:
        server.terminate()
        server.wait()


def answers(url: str) -> bool:
    try:
        return httpx.get(url).status_code < 500
    except httpx.HTTPError:
        return False


@pytest.fixture
def bucket(bucket_server: str, request: pytest.FixtureRequest) -> Iterator[str]:
    "A bucket of its own and an environment that reaches it; afterwards the environment is what it was."
    told = {"ENDPOINT_URL": bucket_server, "ALLOW_HTTP": "true"}
    told |= dict.fromkeys(("ACCESS_KEY_ID", "SECRET_ACCESS_KEY"), "desk")
    with put_back():
        os.environ.update({f"TRADENB_STORAGE__{name}": value for name, value in told.items()})
        reach(load())
        name = f"desk{abs(hash(request.node.nodeid)):x}"
        client().create_bucket(Bucket=name)
        yield f"s3://{name}"


@pytest.fixture
def shared(bucket: str, postgres_url: str) -> Iterator[dict[str, object]]:
    "The settings of both machines: state in one database, MLflow's records in another one of the same server."
    os.environ["TRADENB_CORE__DATABASE_URL"] = postgres_url
    state = make_url(postgres_url).set(drivername="postgresql+psycopg")
    models = state.set(database=f"{state.database}_models")
    admin = create_engine(state, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {models.database}"))
    yield SMALL | {
        "lake.url": f"{bucket}/lake",
        "registry.uri": models.render_as_string(hide_password=False),
        "registry.artifacts": f"{bucket}/models",
        "reports.publish": f"{bucket}/reports",
    }
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {models.database} WITH (FORCE)"))
    admin.dispose()


def test_one_machine_trains_and_another_one_trades(shared, tmp_path: Path, make_desk):
    for key in ("SERVICES__API_KEY", "EXECUTION__BROKER_KEY_ID", "EXECUTION__BROKER_SECRET"):
        os.environ[f"TRADENB_{key}"] = "key-of-the-desk"
    first, second = (load(shared | {"core.root": tmp_path / name}) for name in ("first", "second"))
    take_in(first, previous_session(DAY))
    champion, _ = train_now(first, None, "on the machine with many cores")
    signals, told = signals_now(second, None)
    assert (champion.version, told["model_version"], told["as_of_date"]) == (1, 1, str(previous_session(DAY)))
    assert signals.filter(signals["target_weight"] != 0).height == 6
    assert not (second.root / "lake").exists() and not (second.root / "mlflow" / "artifacts").exists()
    if WHOLE_DAY:
        trade_there(shared, tmp_path, make_desk)


def trade_there(shared: dict[str, object], folder: Path, make_desk: Any) -> None:
    "A whole day on the second machine, against an exchange on a third; afterwards the first one knows of it."
    market = load(SMALL | {"core.root": folder / "market"})
    provide_feed(market, DAY)
    with serving(APPS["exchange"](market, clock_for(market, DAY))) as url:
        second = make_desk(folder / "second", dict(shared))
        answer = second.day(DAY, **{"services.exchange_url": url})
    assert "model 1 kept" in answer.out
    assert not (second.root / "state" / "tradenb.db").exists()
    (row,) = rows(db.runs)
    assert (row["status"], row["trade_date"], row["model_version"]) == ("completed", DAY, "1")
    lake = open_lake(load(shared | {"core.root": folder / "first"})).at(row["vintage"])
    assert lake.sql("select max(date) as day from bars")["day"].item() == previous_session(DAY)
    names = ("1_etl.html", "6_report.html", "6_report.ipynb", "settings.json")
    published = listed(str(shared["reports.publish"]))
    assert {"index.html", *(f"{DAY}/{row['run_id']}/{name}" for name in names)} <= set(published)
    again = make_desk(folder / "first", dict(shared)).tradenb("paper-run", "--date", str(DAY))
    assert again.code == 0 and "nothing was changed" in again.out


def rows(table: Any) -> list[dict[str, Any]]:
    "The rows of a table of the shared database."
    engine = db.connect(os.environ["TRADENB_CORE__DATABASE_URL"])
    with engine.connect() as connection:
        found = [dict(row._mapping) for row in connection.execute(table.select())]
    engine.dispose()
    return found


def small(bucket: str, root: Path) -> Settings:
    "A lake in the bucket, and little to put into it."
    return load(
        {"core.root": root, "demo.symbols": 10, "demo.years": 1, "demo.bad_rows": 0, "lake.url": f"{bucket}/lake"}
    )


def test_two_machines_never_write_the_lake_at_once(bucket, tmp_path: Path):
    lake, other = (open_lake(small(bucket, tmp_path / name)) for name in ("one", "two"))
    said = f"is being written by {socket.gethostname()} process {os.getpid()}"
    with lake.writing(), pytest.raises(LakeError, match=said), other.writing(timeout_s=0):
        pass
    with other.writing(timeout_s=0):
        pass


def test_who_slept_through_the_lease_may_not_record_what_was_written(bucket, tmp_path: Path):
    settings = small(bucket, tmp_path)
    take_in(settings, date(2019, 1, 2))
    lake, at = open_lake(settings), clock_for(settings, date(2019, 1, 4)).now()
    before = lake.vintage()
    with lake.writing() as draft:
        draft.merge("bars", draft.read("bars", columns=spec("bars")).tail(1).with_columns(close=1.0))
        take_over(f"{bucket}/lake")
        with pytest.raises(LakeError, match="lost its turn"):
            draft.record(date(2019, 1, 3), "late", at)
    assert lake.vintage() == before
    assert lake.read("bars")["close"].min() > 1


def take_over(address: str) -> None:
    "What another machine does when a holder has been silent for its lease."
    newest = max(name for name in listed(address) if name.startswith(".lock/"))
    later = f".lock/{int(newest.rpartition('/')[2]) + 1:012}"
    client().put_object(Bucket=bucket_of(address).name, Key=bucket_of(address).key(later), Body=b"another machine")


def spec(table: str) -> list[str]:
    from tradenb.market.tables import spec_of

    return list(spec_of(table).schema)


def test_a_bucket_that_does_not_answer_is_an_outage_and_no_empty_lake(bucket, tmp_path: Path):
    settings = small(bucket, tmp_path)
    gone = settings.model_copy(
        update={"storage": settings.storage.model_copy(update={"endpoint_url": "http://127.0.0.1:9"})}
    )
    with pytest.raises(ServiceUnavailable, match="does not answer"):
        open_lake(gone).vintage()
