"""When what runs: the schedules of the flows, and how a Prefect server learns of them.

usage: python -m pipelines.deploy [work]
Without an argument it registers work pool, concurrency limit and deployments with the server of `prefect.api_url` (`make up` does it by itself); with
`work` it also works for that server until interrupted, on this machine and with its settings.

The daily run is due on every session of the NYSE: a weekly rule without the exchange's holidays, as far as its calendar reaches. Early closes change
nothing in the morning. Calendars are corrected now and then, so the flow looks again by itself, and ends as `Skipped` on a day without a session.
"""

import os
import socket
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import date, time, timedelta
from pathlib import Path
from typing import Any

from tradenb.core.calendar import is_session
from tradenb.core.clock import NEW_YORK, SystemClock
from tradenb.core.errors import ConfigError, ServiceUnavailable, TradenbError, one_line
from tradenb.core.settings import Schedule, Settings, load
from tradenb.trading import records

YEARS_AHEAD = 2  # Holidays that a schedule knows; the weekly maintenance renews them
WEEK = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")


@dataclass(frozen=True)
class Deployment:
    "A flow and when it is due."

    flow: str  # Its name in `pipelines.flows`
    about: str
    rrule: str | None = None  # iCalendar's recurrence rule, New York time
    cron: str | None = None


# ---- when


def clock_time(text: str) -> time:
    "As in `09:00`."
    return time.fromisoformat(text)


def weekly(text: str) -> str:  # A cron line
    "As in `sat 06:00`."
    day, at = text.split()
    due = clock_time(at)
    return f"{due.minute} {due.hour} * * {day[:3].upper()}"


def holidays(start: date, end: date) -> list[date]:
    "Weekdays without a session."
    days = (start + timedelta(days=n) for n in range((end - start).days + 1))
    return [day for day in days if day.weekday() < 5 and not is_session(day)]


def every_session(at: time, today: date) -> str:
    "The recurrence rule of all NYSE sessions at that time of New York's day, from today on."
    rule = f"FREQ=WEEKLY;BYDAY=MO,TU,WE,TH,FR;BYHOUR={at.hour};BYMINUTE={at.minute};BYSECOND=0"
    begin = f"DTSTART:{today:%Y%m%d}T{at:%H%M%S}"
    closed = ",".join(f"{day:%Y%m%d}T{at:%H%M%S}" for day in holidays(today, last_known(today)))
    return "\n".join([begin, f"RRULE:{rule}", *([f"EXDATE:{closed}"] if closed else [])])


def last_known(today: date) -> date:
    return date(today.year + YEARS_AHEAD, 12, 31)


def deployments(schedule: Schedule, today: date) -> list[Deployment]:
    "What is deployed, and when it is due; whoever wants a pause makes one in the scheduler's pages."
    every = schedule.reconcile_minutes
    return [
        Deployment("daily", "A trading day, on every NYSE session", every_session(clock_time(schedule.daily), today)),
        Deployment("train", "A new model when age, drift or other features ask for it", cron=weekly(schedule.train)),
        Deployment("reconcile", "The books against the broker's while its market is open", cron=working_hours(every)),
        Deployment("maintenance", "Tidy the lake, copy databases, renew schedules", cron=weekly(schedule.maintenance)),
        Deployment("backfill", "Many sessions, one after the other: by hand"),
    ]


def working_hours(minutes: int) -> str | None:
    "Every so many minutes of the day from nine to half past five, as a cron line; the flow knows the market's own hours. None for 0: never."
    if not minutes:
        return None
    return f"*/{minutes} 9-17 * * MON-FRI" if minutes < 60 else f"30 9-17/{minutes // 60} * * MON-FRI"


# ---- telling the server


def register(settings: Settings, url: str) -> list[str]:  # The names, as in daily/desk
    "Work pool, concurrency limit and deployments on the Prefect server at `url`; those that are there are brought up to date. `ServiceUnavailable` when it does not answer."
    import httpx

    from pipelines.scheduler import pointed_at, prepare

    prepare(settings.root)
    wanted = deployments(settings.schedule, SystemClock().now().astimezone(NEW_YORK).date())
    try:
        with pointed_at(url):
            provide_pool(settings)
            return [apply(settings, deployment) for deployment in wanted]
    except (httpx.HTTPError, OSError) as error:
        raise ServiceUnavailable(f"the scheduler at {url} does not answer: {one_line(error)}") from error


def provide_pool(settings: Settings) -> None:
    "The work pool of processes, and the limit of one at the broker at a time."
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import GlobalConcurrencyLimitCreate, WorkPoolCreate
    from prefect.exceptions import ObjectAlreadyExists, ObjectNotFound
    from prefect.workers.process import ProcessWorker

    from pipelines.flows import BROKER

    template = ProcessWorker.get_default_base_job_template()
    about = "Processes on the machines of this desk"
    pool = WorkPoolCreate(
        name=settings.prefect.work_pool, type="process", description=about, base_job_template=template
    )
    with get_client(sync_client=True) as client:
        with suppress(ObjectAlreadyExists):
            client.create_work_pool(pool)
        try:
            client.read_global_concurrency_limit_by_name(BROKER)
        except ObjectNotFound:
            client.create_global_concurrency_limit(GlobalConcurrencyLimitCreate(name=BROKER, limit=1, active=True))


def apply(settings: Settings, deployment: Deployment) -> str:  # Its name
    "Create or update one deployment; one run of it at a time, others wait. A schedule that somebody paused stays so."
    from prefect.client.schemas.objects import ConcurrencyLimitConfig, ConcurrencyLimitStrategy
    from prefect.flows import EntrypointType

    from pipelines import flows

    name = f"{deployment.flow}/{settings.run.strategy}"
    one = ConcurrencyLimitConfig(limit=1, collision_strategy=ConcurrencyLimitStrategy.ENQUEUE)
    made = getattr(flows, deployment.flow).to_deployment(
        settings.run.strategy,
        schedules=schedules_of(deployment, forget_others(name, deployment)),
        concurrency_limit=one,
        description=deployment.about,
        tags=["tradenb"],
        version=records.code_version(),
        work_pool_name=settings.prefect.work_pool,
        entrypoint_type=EntrypointType.MODULE_PATH,
    )
    made.apply()
    return name


SESSIONS, CLOCK = "every NYSE session", "by the clock"  # How the scheduler's pages call our schedules


def schedules_of(deployment: Deployment, paused: set[str]) -> list[Any]:
    "As Prefect has them, in New York's time."
    from prefect.schedules import Cron, RRule

    zone, found = str(NEW_YORK), []
    if deployment.rrule:
        found.append(RRule(deployment.rrule, timezone=zone, slug=SESSIONS, active=SESSIONS not in paused))
    if deployment.cron:
        found.append(Cron(deployment.cron, timezone=zone, slug=CLOCK, active=CLOCK not in paused))
    return found


def forget_others(name: str, deployment: Deployment) -> set[str]:  # Those that somebody paused
    "Remove schedules of ours that the settings have no more."
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    wanted = {SESSIONS: deployment.rrule, CLOCK: deployment.cron}
    with get_client(sync_client=True) as client, suppress(ObjectNotFound):
        there = client.read_deployment_by_name(name)
        for schedule in there.schedules:
            if schedule.slug in wanted and not wanted[schedule.slug]:
                client.delete_deployment_schedule(there.id, schedule.id)
        return {str(schedule.slug) for schedule in there.schedules if not schedule.active}
    return set()


# ---- working for it


def online(settings: Settings, url: str) -> bool:
    "Does the server hear of this machine's worker?"
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    from pipelines.scheduler import pointed_at

    with pointed_at(url), get_client(sync_client=True) as client, suppress(ObjectNotFound):
        workers = client.read_workers_for_work_pool(settings.prefect.work_pool)
        return any(worker.name == worker_name(settings) and worker.status == "ONLINE" for worker in workers)
    return False


def worker_name(settings: Settings) -> str:
    return f"{settings.run.strategy}@{socket.gethostname()}"


def worker_command(settings: Settings) -> tuple[str, ...]:
    "The program that takes flow runs from the pool and runs each in a process of its own."
    program = str(Path(sys.executable).parent / "prefect")
    pool = ("--pool", settings.prefect.work_pool, "--type", "process", "--name", worker_name(settings))
    return (program, "worker", "start", *pool, "--install-policy", "never")


def worker_environment(settings: Settings, url: str) -> dict[str, str]:
    "What a worker and the flows that it runs are told besides this machine's settings."
    known = {"PREFECT_API_URL": url, "PREFECT_HOME": str(settings.root / "prefect"), "PREFECT_LOGGING_LEVEL": "INFO"}
    return {"DO_NOT_TRACK": "1", "PREFECT_SERVER_ANALYTICS_ENABLED": "false"} | known


def main(arguments: list[str]) -> int:
    from pipelines.scheduler import prepare, server_of

    if arguments not in ([], ["work"]):
        print(__doc__, file=sys.stderr)
        return ConfigError.exit_code
    try:
        settings = load()
        prepare(settings.root)
        url = server_of(settings)
        if url is None:
            raise ConfigError("no scheduler runs: start one by `make up`, or name one in prefect.api_url")
        for name in register(settings, url):
            print(name, flush=True)
        if arguments:
            command = worker_command(settings)
            os.execve(command[0], command, os.environ | worker_environment(settings, url))  # noqa: S606 a fixed program
    except TradenbError as error:
        print(one_line(error), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
