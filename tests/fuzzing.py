"How a service is asked whatever its own description allows, and what it forbids. A test says which service, and what it leaves out and why."

from collections.abc import Callable

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode, checks
from schemathesis.core.transport import Response
from schemathesis.schemas import BaseSchema


def addresses(described: BaseSchema) -> list[tuple[str, str]]:
    "Method and path of everything that the service says it answers, sorted."
    return sorted((op.ok().method.upper(), op.ok().path) for op in described.get_all_operations())  # type: ignore[union-attr]


def same_every_time(examples: int) -> settings:
    "As many examples, the same in each run, however long one takes."
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), database=None)  # fmt: skip


def fuzz(
    described: BaseSchema,
    method: str,
    path: str,
    mode: GenerationMode,  # questions as described, or with something wrong in each
    *,
    examples: int,
    left_out: set[str],  # names of the checks that a right answer may fail
    headers: dict[str, str],
    then: Callable[[schemathesis.Case, Response], None] = lambda case, answer: None,  # what else must hold
) -> None:
    "Ask one address; every answer passes all checks of schemathesis but those left out, and then one's own."
    without = [check for check in checks.CHECKS.get_all() if check.__name__ in left_out]
    assert len(without) == len(left_out)

    @same_every_time(examples)
    @given(case=described[path][method].as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        then(case, case.call_and_validate(excluded_checks=without, headers=headers, timeout=60))  # type: ignore[arg-type]

    ask()
