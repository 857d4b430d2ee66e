"""The environment of this process, changed name by name.

C's `setenv` moves the array that a thread of polars, a server or a resolver may be reading with `getenv`: a process that clears its whole environment and fills it again, while such threads are alive, dies now and then of a segmentation fault.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def become(wanted: Mapping[str, str]) -> None:
    "Let the environment be `wanted`; what is so already is not touched."
    for name in os.environ.keys() - wanted.keys():
        del os.environ[name]
    for name, value in wanted.items():
        if os.environ.get(name) != value:
            os.environ[name] = value


@contextmanager
def put_back() -> Iterator[dict[str, str]]:
    "After the block the environment is what it was; yields that."
    before = dict(os.environ)
    try:
        yield before
    finally:
        become(before)
