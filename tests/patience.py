"How long a test waits for what must happen: a busy machine takes its time, and what never happens fails in the end."

from collections.abc import Callable

from httpx._config import DEFAULT_TIMEOUT_CONFIG

from tradenb.core.clock import Stopwatch, sleep

PATIENCE_S = 120.0

# A question that names no limit of its own has this one, and not httpx's five seconds.
for part in ("connect", "read", "write", "pool"):
    setattr(DEFAULT_TIMEOUT_CONFIG, part, PATIENCE_S)


def wait_until(true: Callable[[], object]) -> None:
    "Return as soon as it is true."
    watch = Stopwatch()
    while not true():
        assert watch.seconds < PATIENCE_S, "it did not happen"
        sleep(0.01)
