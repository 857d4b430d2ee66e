"""The report browser: the pages of all runs over HTTP, for whoever sits at another machine or wants a link to send.

The pages are plain files and need no server; this one adds an index that is new each time it is asked for, so that a run under way is on it. It
reads and never writes: no request can change anything, and none gets a file that is not a report, wherever a path or a link may point.
"""

from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

from fastapi import FastAPI, Request
from sqlalchemy import Engine
from starlette.exceptions import HTTPException
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from pipelines.index import INDEX, SEARCH, index_page, runs_of
from tradenb.core.db import connect, database_url, migrate
from tradenb.core.report import policy
from tradenb.core.settings import Settings
from tradenb.core.web import create_app as web_app
from tradenb.core.web import listen, uvicorn_server
from tradenb.trading import records

# What a run's folder may show, and as what.
TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
    ".ipynb": "application/x-ipynb+json",
    ".parquet": "application/vnd.apache.parquet",
    ".svg": "image/svg+xml",
    ".png": "image/png",
}
SHOWN = {".html", ".json", ".png"}  # the others are saved
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": policy(SEARCH)
    + ";frame-ancestors 'none'",  # what the pages say of themselves, once more
    "Cache-Control": "no-cache",  # a page may be there anew after a run was resumed
}


def report_file(
    folder: Path,  # The runs' folder
    path: str,  # As asked for, decoded
) -> Path | None:  # A file below the folder that may be shown; None: there is none
    "The file that a path names. Dots, links that lead out and whatever is no report are as if they were not there."
    parts = path.split("/")
    if any(part.startswith(".") or "\\" in part or "\0" in part for part in parts) or not all(parts):
        return None
    root = folder.resolve()
    try:
        found = root.joinpath(*parts).resolve()
        inside = found.is_relative_to(root) and found.suffix in TYPES
        return found if inside and found.is_file() else None
    except OSError:  # a name that is too long for this file system
        return None


def create_app(settings: Settings) -> FastAPI:
    "The browser over the runs of a data root."
    folder, engine = settings.root / "runs", migrate(connect(database_url(settings)))
    app = web_app("reports", "The pages of all runs, read-only.")
    app.router.routes = [
        route for route in app.router.routes if getattr(route, "path", "") != "/"
    ]  # the index is there

    @app.api_route("/", methods=["GET", "HEAD"], response_class=HTMLResponse, tags=["reports"])
    def index() -> Response:
        "All runs, as they are now."
        return HTMLResponse(index_page(runs_of(settings, engine), folder / INDEX), headers=HEADERS)

    @app.api_route("/health", methods=["GET", "HEAD"], tags=["life"])
    def health() -> dict[str, object]:
        "Alive, and how many runs there are."
        return {"service": "reports", "status": "ok", "runs": records.count(engine)}

    @app.api_route("/latest", methods=["GET", "HEAD"], tags=["reports"])
    def latest() -> Response:
        "To the newest run's page."
        return _to_newest(settings, engine)

    @app.api_route(f"/{INDEX}", methods=["GET", "HEAD"], include_in_schema=False)
    def same_index() -> Response:
        return index()

    @app.api_route("/{path:path}", methods=["GET", "HEAD"], tags=["reports"])
    def file(path: str, request: Request) -> Response:
        "A file of a run's folder."
        found = report_file(folder, path)
        if found is None:
            raise HTTPException(404, f"there is no report {path[:200]}: / lists the runs")
        as_download = {} if found.suffix in SHOWN else {"filename": found.name}
        return FileResponse(found, media_type=TYPES[found.suffix], headers=HEADERS, **as_download)  # type: ignore[arg-type]

    return app


def _to_newest(settings: Settings, engine: Engine) -> Response:
    rows = runs_of(settings, engine, limit=1)
    if not rows:
        raise HTTPException(404, "no run yet: `tradenb paper-run` makes one")
    return RedirectResponse("/" + quote(rows[0].address), status_code=307, headers=HEADERS)


def serve(settings: Settings, port: int, say: Callable[[str], None]) -> None:
    "Serve the browser in the foreground until interrupted."
    host = settings.services.host
    with listen(host, port) as socket:
        say(f"reports on http://{host}:{socket.getsockname()[1]}/")
        uvicorn_server(create_app(settings)).run(sockets=[socket])
