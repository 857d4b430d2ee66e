"""Finished pages in a bucket, where `reports.publish` names one: for those who cannot reach this machine, and for another one that goes on with a run.

The pages below the data root stay what is written first and read by the next stage; a bucket that does not answer never fails a run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tradenb.core.errors import ServiceUnavailable, one_line
from tradenb.core.logs import get_logger
from tradenb.core.progress import say
from tradenb.core.settings import Settings
from tradenb.core.storage import fetch, publish, reach


@contextmanager
def at_best(what: str) -> Iterator[None]:
    "Within the block, storage that does not do as asked is said and logged, and no more."
    try:
        yield
    except ServiceUnavailable as error:
        say(f"{what}: {one_line(error)}")
        get_logger().error("not_published", what=what, error=one_line(error))


def address_of(settings: Settings, folder: Path) -> str:
    "Where a folder below `<root>/runs` is published."
    below = folder.relative_to(settings.root / "runs").as_posix()
    return f"{settings.reports.publish.rstrip('/')}/{below}".removesuffix("/.")


def publish_run(settings: Settings, folder: Path) -> None:
    "Copy what a run has left."
    if settings.reports.publish:
        reach(settings)
        with at_best("the run's pages are not published"):
            publish(folder, address_of(settings, folder))


def publish_index(settings: Settings) -> None:
    "Copy the index over all runs."
    if settings.reports.publish:
        reach(settings)
        with at_best("the index is not published"):
            publish(settings.root / "runs", address_of(settings, settings.root / "runs"), deep=False)


def fetch_run(settings: Settings, folder: Path) -> None:
    "Bring what another machine has left of a run that goes on here."
    if settings.reports.publish and not folder.exists():
        reach(settings)
        with at_best("what another machine left of the run cannot be had"):
            fetch(address_of(settings, folder), folder)
