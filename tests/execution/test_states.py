"An order's states: every event in every state, and what holds however a day goes."

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tradenb.execution.states import (
    AT_BROKER_ONLY,
    BROKER_WORDS,
    CONCLUSIONS,
    EVENTS,
    FINAL,
    FUTURE,
    START,
    STATES,
    UNRESOLVED,
    WORKING,
    Event,
    Kind,
    Move,
    OrderStatus,
    Standing,
    State,
    event_of,
    folded,
    from_broker,
    judge,
    step,
)

S = OrderStatus
PAIRS = list(itertools.product(STATES, EVENTS))
GIVEN_UP = {Kind.REFUSED: S.REJECTED, Kind.LAPSED: S.EXPIRED, Kind.WITHDRAWN: S.CANCELED}


def expected(state: State, event: Event) -> tuple[Move, State]:
    "The machine told once more, as a person would: by cases instead of by a table."
    here, word = state.standing, event.status
    if event.at_broker and word is not None:
        if here is Standing.REHEARSED:
            return Move.ILLEGAL, state
        if here is Standing.CONCLUDED and word is not state.status:
            return Move.REVIVE, State(word, True)
        if here is not Standing.AT_BROKER:
            return Move.ADVANCE, State(word, True)
        if word is state.status:
            return Move.SAME, state
        if word in FUTURE[state.status]:
            return Move.ADVANCE, State(word, True)
        return (Move.LATE if state.status in FUTURE[word] else Move.ILLEGAL), state
    if here is Standing.AT_BROKER:
        return (Move.ILLEGAL if event.kind is Kind.DRY_RUN else Move.LATE), state
    if event.kind is Kind.INTENT:
        return (Move.SAME if state == START else Move.LATE), state
    if event.kind is Kind.DRY_RUN:
        if here is Standing.INTENDED:
            return Move.ADVANCE, State(S.DRY_RUN)
        return (Move.SAME if here is Standing.REHEARSED else Move.ILLEGAL), state
    if event.kind is Kind.ABSENT:
        return (Move.ADVANCE, START) if here is Standing.UNKNOWN else (Move.SAME, state)
    if here is Standing.REHEARSED:
        return Move.ILLEGAL, state
    if event.kind is Kind.UNRESOLVED:
        if here is Standing.INTENDED:
            return Move.ADVANCE, State(S.UNKNOWN)
        return (Move.SAME if here is Standing.UNKNOWN else Move.LATE), state
    if here is Standing.CONCLUDED:
        return (Move.SAME if GIVEN_UP[event.kind] is state.status else Move.LATE), state
    if here is Standing.UNKNOWN and event.kind is Kind.WITHDRAWN:
        return Move.ILLEGAL, state
    return Move.ADVANCE, State(GIVEN_UP[event.kind])


@pytest.mark.parametrize("state", STATES, ids=lambda s: f"{s.status}{' at the broker' if s.at_broker else ''}")
def test_every_event_in_every_state_does_what_it_should(state: State) -> None:
    for event in EVENTS:
        found = step(state, event)
        assert (found.move, found.state) == expected(state, event), (state, event)


def test_there_are_all_states_and_all_events() -> None:
    assert {s.status for s in STATES} == set(S)
    assert {s.status for s in STATES if s.at_broker} == BROKER_WORDS
    assert {s.status for s in STATES if not s.at_broker} == set(S) - AT_BROKER_ONLY
    assert {e.kind for e in EVENTS} == set(Kind)
    assert len(PAIRS) == 390


def test_every_move_leads_to_a_state_that_there_is() -> None:
    for state, event in PAIRS:
        found = step(state, event)
        assert found.state in STATES
        assert found.moved == (found.state != state)


def test_every_state_can_be_reached() -> None:
    seen, new = {START}, {START}
    while new:
        new = {step(state, event).state for state in new for event in EVENTS} - seen
        seen |= new
    assert seen == set(STATES)


def test_what_the_broker_proved_to_be_final_stays() -> None:
    proven = [s for s in STATES if s.is_proven]
    assert {s.status for s in proven} == FINAL - {S.DRY_RUN}
    assert all(step(s, e).state == s for s in proven for e in EVENTS)


def test_nothing_that_the_broker_has_may_be_sent_again() -> None:
    for state, event in PAIRS:
        after = step(state, event).state
        if state.at_broker or event.at_broker:
            assert after.at_broker or after.status is S.DRY_RUN
            assert after.status not in UNRESOLVED


def test_only_absence_brings_an_order_back_to_where_it_may_be_sent() -> None:
    back = {(s.status, e.kind) for s, e in PAIRS if step(s, e).moved and step(s, e).state == START}
    assert back == {(S.UNKNOWN, Kind.ABSENT)}


def test_only_our_own_conclusions_are_revived() -> None:
    for state, event in PAIRS:
        revived = step(state, event).move is Move.REVIVE
        assert revived == (state.standing is Standing.CONCLUDED and event.at_broker and event.status != state.status)
        if revived:
            assert step(state, event).state == State(event.status or S.SUBMITTED, True)


def test_an_order_that_may_be_at_the_broker_cannot_be_withdrawn() -> None:
    assert step(State(S.UNKNOWN), Event(Kind.WITHDRAWN)).move is Move.ILLEGAL
    assert step(START, Event(Kind.WITHDRAWN)).state == State(S.CANCELED)


def test_a_lapse_does_not_end_what_the_broker_works() -> None:
    for status in WORKING:
        assert step(State(status, True), Event(Kind.LAPSED)).move is Move.LATE


def test_hearing_it_twice_changes_nothing() -> None:
    for state, event in PAIRS:
        once = step(state, event)
        again = step(once.state, event)
        assert again.state == once.state
        assert not again.moved
        if once.moved and event.at_broker:
            assert again.move is Move.SAME


def test_the_brokers_words_are_ordered() -> None:
    "Transitive and without a circle: that is why the order in which words are heard does not matter."
    for a, after in FUTURE.items():
        assert a not in after
        for b in after - {S.REJECTED}:
            assert FUTURE[b] <= after


words = st.sampled_from([S.SUBMITTED, S.ACCEPTED, S.NEW, S.PARTIALLY_FILLED])
ends = st.sampled_from([S.FILLED, S.CANCELED, S.EXPIRED, S.REPLACED])
OWN = (Kind.INTENT, Kind.UNRESOLVED, Kind.ABSENT, Kind.REFUSED, Kind.LAPSED, Kind.WITHDRAWN)
own = st.sampled_from([Event(kind) for kind in OWN])
told = st.builds(Event, st.sampled_from([Kind.REPORT, Kind.FILL]), words)
any_event = st.sampled_from(EVENTS)


@st.composite
def days(draw: st.DrawFn) -> tuple[list[Event], S]:
    "What is heard on a legal day, shuffled, with repeats; and the broker's last word."
    end = draw(ends)
    told_so_far = draw(st.lists(told, max_size=6))
    heard = [*told_so_far, Event(Kind.REPORT, end), *draw(st.lists(own, max_size=6))]
    repeats = draw(st.lists(st.sampled_from(heard), max_size=6))
    return draw(st.permutations([*heard, *repeats])), end


@given(days())
@settings(max_examples=400)
def test_a_day_ends_where_the_brokers_last_word_is_however_it_was_heard(day: tuple[list[Event], S]) -> None:
    heard, end = day
    steps = folded(heard)
    assert steps[-1].state == State(end, True)
    after = [s for s, e in zip(steps, heard, strict=True) if s.state.at_broker and e.at_broker]
    assert all(s.move is not Move.ILLEGAL for s in after)


def test_every_shuffle_of_a_whole_day_ends_alike() -> None:
    day = [
        Event(Kind.UNRESOLVED),
        Event(Kind.LAPSED),
        Event(Kind.CONFIRMED),
        Event(Kind.REPORT, S.ACCEPTED),
        Event(Kind.FILL, S.PARTIALLY_FILLED),
        Event(Kind.FILL, S.FILLED),
    ]
    assert {folded(list(shuffle))[-1].state for shuffle in itertools.permutations(day)} == {State(S.FILLED, True)}


@given(st.lists(any_event, max_size=25))
@settings(max_examples=400)
def test_in_any_nonsense_proof_and_presence_are_kept(heard: list[Event]) -> None:
    state = START
    for event in heard:
        after = step(state, event).state
        assert not (state.is_proven and after != state)
        assert not (state.at_broker and not after.at_broker)
        assert not (state.status is S.DRY_RUN and after != state)
        state = after


@given(st.lists(any_event, max_size=25))
def test_without_the_brokers_word_no_order_is_at_the_broker(heard: list[Event]) -> None:
    silent = [e for e in heard if not e.at_broker]
    assert all(not s.state.at_broker for s in folded(silent))


@pytest.mark.parametrize("kind", list(Kind))
def test_an_event_carries_a_status_where_it_is_the_brokers_word(kind: Kind) -> None:
    broker = kind in (Kind.CONFIRMED, Kind.REPORT, Kind.FILL)
    with pytest.raises(ValueError, match="the broker's word"):
        Event(kind, S.UNKNOWN if broker else S.NEW)


def test_a_stored_order_has_a_state() -> None:
    for status in S:
        for broker_order_id in (None, "b-1"):
            assert State.of(status, broker_order_id) in STATES
    assert {s for s in S if State.of(s, None) != State.of(s, "b-1")} == CONCLUSIONS


def test_judging_words_is_a_step_of_the_machine() -> None:
    for current, seen in itertools.product(S, S):
        assert judge(current, seen) is step(State.of(current, "b"), event_of(seen)).move
    assert judge(S.CANCELED, S.NEW) is Move.LATE
    assert judge(S.CANCELED, S.NEW, None) is Move.REVIVE


@pytest.mark.parametrize("word", ["unknown", "dry_run", "pending_cancel", "quantum_pending", ""])
def test_a_word_that_says_nothing_moves_nothing(word: str) -> None:
    assert from_broker(word) is None


def test_every_word_of_ours_that_the_broker_may_say_is_itself() -> None:
    assert {word: from_broker(word) for word in BROKER_WORDS} == {word: word for word in BROKER_WORDS}
