"Progress is heard by whoever asked for it, and by nobody else."

import threading

import pytest

from tradenb.core.progress import heard_by, say


def test_what_is_said_reaches_the_innermost_listener_alone() -> None:
    outer: list[str] = []
    inner: list[str] = []
    with heard_by(outer.append):
        with heard_by(inner.append):
            say("fold 1 of 6")
        say("done")
    say("nobody hears this")
    assert (outer, inner) == (["done"], ["fold 1 of 6"])


def test_a_listener_does_not_hear_another_thread() -> None:
    heard: list[str] = []
    with heard_by(heard.append):
        other = threading.Thread(target=say, args=("from elsewhere",))
        other.start()
        other.join()
    assert heard == []


def test_a_listener_is_gone_even_when_the_work_failed() -> None:
    heard: list[str] = []
    with pytest.raises(ValueError, match="broken"), heard_by(heard.append):
        raise ValueError("broken")
    say("afterwards")
    assert heard == []
