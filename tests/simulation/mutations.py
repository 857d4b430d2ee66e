"Deliberate mistakes in the real code, applied in the simulation alone: each must be caught, or the simulation is blind."

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

from tradenb.execution import broker, gateway, intents, kill, ledger, reconcile, updates
from tradenb.execution.broker import BrokerOrder, Outcome, Rejected, Unresolved
from tradenb.execution.entries import Fill
from tradenb.execution.gateway import Gateway
from tradenb.execution.intents import StoredOrder
from tradenb.execution.ledger import Ledger
from tradenb.execution.states import Event, Kind, OrderStatus


@dataclass(frozen=True)
class Mutation:
    "A mistake: what it is, and how it is made."

    says: str
    patches: Callable[[], list[Any]]
    seed: int = 1000  # of the first world that is tried
    drill: bool = False  # in worlds in which the kill switch is used every day
    days: int = 60  # of simulation, within which it has to be caught


def on(owner: Any, name: str, make: Callable[[Any], Any]) -> Any:
    "Replace a function by one that is made from it."
    return patch.object(owner, name, make(getattr(owner, name)))


def _forgotten_intent(real: Any) -> Any:
    "The row is written when the answer is there."

    def submit(self: Gateway, intent: Any, client_order_id: Any = None, run_id: Any = None, parent: Any = None) -> Any:
        name, now = client_order_id or intent.client_order_id, self.ledger.clock.now()
        if self.ledger.order(name):
            return real(self, intent, client_order_id, run_id, parent)
        order = intents.new_order(intent, intents.Admission(name), None, now)
        outcome = self.broker.submit(order)
        stored, _ = self.ledger.admit(intent, name, run_id, owner=self.owner, until=self.until())
        return gateway.settle(self.ledger, stored, outcome), True

    return submit


def _blind(real: Any) -> Any:
    "Every attempt posts; nobody asks what came of the one before."

    def submit(self: Any, order: StoredOrder, ask_first: bool = False, look: Any = None) -> Outcome:
        try:
            return broker.Confirmed(self.retried(lambda: self.placed(order, look)))
        except broker.Withheld as kept:
            return broker.Denied(kept.denial)
        except broker.Refused as error:
            return Rejected(error.status, error.code, error.message)
        except broker.Unclear as error:
            return Unresolved(str(error))

    return submit


def _renamed(real: Any) -> Any:
    "A repeat goes out under a name of its own."

    def repeat(self: Gateway, order: StoredOrder) -> StoredOrder:
        again = replace(order, client_order_id=order.client_order_id[:-1] + "x")
        self.broker.submit(again)
        return order

    return repeat


def _held_by_us(real: Any) -> Any:
    "The last look does not ask whose lease it is."
    return lambda self: (self.desk.owner, real(self)[1])


def _always_mine(real: Any) -> Any:
    "Whoever wants to send, sends."
    return lambda self, order: True


def _booked_twice(real: Any) -> Any:
    "An event that comes again is a new execution."
    seen: dict[str, int] = {}

    def book(self: Ledger, entries: Any, statuses: Any = None, voids: Any = ()) -> Any:
        found = list(entries)
        for at, entry in enumerate(found):
            if isinstance(entry, Fill) and entry.origin == "stream":
                seen[entry.id] = seen.get(entry.id, 0) + 1
                if seen[entry.id] > 1:
                    found[at] = replace(entry, execution_id=f"{entry.id[:50]}-{seen[entry.id]}")
        return real(self, found, statuses or {}, voids)

    return book


def _no_late_fills(real: Any) -> Any:
    "What an order that is over still brings is dropped."

    def book(self: Ledger, entries: Any, statuses: Any = None, voids: Any = ()) -> Any:
        def late(entry: Any) -> bool:
            order = self.order(entry.client_order_id) if isinstance(entry, Fill) and entry.client_order_id else None
            return order is not None and order.is_final

        return real(self, [entry for entry in entries if not late(entry)], statuses or {}, voids)

    return book


def _absent_is_over(real: Any) -> Any:
    "Not at the broker yet means never, and nobody looks again."

    def ask(self: Gateway, order: StoredOrder) -> StoredOrder:
        if found := self.broker.find(order.client_order_id):
            return gateway.adopt(self.ledger, order.client_order_id, found)
        return self.ledger.record(order.client_order_id, "absent", Event(Kind.LAPSED), reason="absent")

    return ask


def _lapsed_unasked(real: Any) -> Any:
    "What is unresolved after the close is declared dead without a question."

    def resolve(self: Gateway, client_order_id: str) -> StoredOrder:
        order = self.stored(client_order_id)
        if order.is_unresolved:
            return self.ledger.record(client_order_id, "lapsed", Event(Kind.LAPSED), reason="unasked")
        return real(self, client_order_id)

    return resolve


def _canceled_here(real: Any) -> Any:
    "A cancellation of an order that works is written down, and nobody tells the broker."

    def withdraw(self: Gateway, order: StoredOrder) -> StoredOrder:
        return self.ledger.record(order.client_order_id, "canceled", OrderStatus.CANCELED)

    return withdraw


def _never_caught_up(real: Any) -> Any:
    "After a gap in the stream nobody asks what was missed."
    return lambda *args, **named: updates.CaughtUp(0, 0, 0, 0)


def _not_replaced(real: Any) -> Any:
    "An inferred execution stays when the real one comes."

    def replaced(*args: Any, **named: Any) -> Any:
        return replace(real(*args, **named), voids=())

    return replaced


def _judged_as_rejection(real: Any) -> Any:
    "A 504 is taken for the broker's no."

    def judgement(status: int, body: str, *rest: Any) -> Any:
        return broker.Refused(422, 1, "gateway time-out") if status == 504 else real(status, body, *rest)

    return judgement


def _timeout_is_rejection(real: Any) -> Any:
    "No answer is taken for a no."

    def submit(self: Any, order: StoredOrder, ask_first: bool = False, look: Any = None) -> Outcome:
        outcome: Outcome = real(self, order, ask_first, look)
        return Rejected(408, None, outcome.reason) if isinstance(outcome, Unresolved) else outcome

    return submit


def _open_switch(real: Any) -> Any:
    "The admission does not look at the kill switch, and neither does the last look."
    return lambda self, order, connection=None, rows=None: None


def _sized_by_the_book(real: Any) -> Any:
    "Flatten starts a new closing order without looking whether one works."

    def attempt(self: Any, day: Any, symbol: str, closing: Any) -> Any:
        found = real(self, day, symbol, closing)
        return replace(found, working=None, number=found.number + (found.working is not None))

    return attempt


def _too_much(real: Any) -> Any:
    "Flatten sells a share more than is held."

    def close(self: Any, done: Any, day: Any, symbol: str, qty: Any, number: int) -> None:
        real(self, done, day, symbol, qty * 2, number)

    return close


def _half_canceled(real: Any) -> Any:
    "The sweep believes that one round is enough and asks nobody."

    def sweep(self: Any, done: Any, spare: bool = False) -> list[BrokerOrder]:
        for order in self.open_orders(done)[:1]:
            self._cancel(done, order)
        self.open_orders = lambda done: []
        return []

    return sweep


def _stale_cache(real: Any) -> Any:
    "Positions are not refreshed by what is booked."
    return lambda *args, **named: None


def _twofold(real: Any) -> Any:
    "What leaves is not what was intended."

    def wire(order: StoredOrder) -> dict[str, str]:
        body: dict[str, str] = real(order)
        return body | ({"qty": str(int(body["qty"]) + 1)} if body.get("qty", ".").isdigit() else {})

    return wire


def _cash_forgotten(real: Any) -> Any:
    "Activities that are not fills are skipped."

    def known(self: Ledger, ids: Any) -> set[str]:
        found = list(ids)
        return {name for name in found if "::" in name} | real(self, found)

    return known


# fmt: off
MUTATIONS: dict[str, Mutation] = {
    "intent_after_send": Mutation("the intent is stored when the answer is there", lambda: [on(Gateway, "submit", _forgotten_intent)]),
    "blind_resend": Mutation("a failed attempt is repeated without asking", lambda: [on(broker.Submitting, "submit", _blind)]),
    "resend_renamed": Mutation("a repeat is sent under another name", lambda: [on(Gateway, "_repeat", _renamed)]),
    "lease_ignored": Mutation("every gateway takes itself for the sender", lambda: [on(Gateway, "claimed", _always_mine), on(Ledger, "renew", lambda real: lambda self, *a: True), on(gateway.LastLook, "_now", _held_by_us)]),
    "event_booked_twice": Mutation("a repeated event is booked again", lambda: [on(Ledger, "book", _booked_twice)]),
    "late_fills_dropped": Mutation("fills of orders that are over are dropped", lambda: [on(Ledger, "book", _no_late_fills)]),
    "absence_trusted": Mutation("an order that is not at the broker yet is given up at once", lambda: [on(Gateway, "_ask", _absent_is_over)]),
    "lapsed_unasked": Mutation("what may be in flight is given up without asking", lambda: [on(Gateway, "resolve", _lapsed_unasked)]),
    "canceled_here_only": Mutation("a cancellation is written and not sent", lambda: [on(Gateway, "_withdraw", _canceled_here)]),
    "gap_forgotten": Mutation("nothing is asked for after a gap", lambda: [on(updates, "catch_up", _never_caught_up), on(reconcile, "catch_up", _never_caught_up)]),
    "inferred_doubled": Mutation("an inferred fill stays beside the real one", lambda: [on(ledger, "replaced", _not_replaced)], seed=1030, days=400),  # in one world of thirty an inference comes first and the real one after it
    "timeout_is_rejection": Mutation("no answer counts as a rejection", lambda: [on(broker.Submitting, "submit", _timeout_is_rejection)]),
    "504_is_rejection": Mutation("a 504 counts as a rejection", lambda: [on(broker, "judgement", _judged_as_rejection)]),
    "switch_unread": Mutation("neither admission nor last look reads the switch", lambda: [on(gateway.Switch, "forbids", _open_switch), on(gateway.Switch, "standing", lambda real: lambda self, *a, **n: None)], drill=True),
    "flatten_unlooking": Mutation("flatten does not look at its own working orders", lambda: [on(kill.Closing, "attempt", _sized_by_the_book)], drill=True),
    "flatten_too_much": Mutation("flatten trades twice what is held", lambda: [on(kill.Closing, "_close", _too_much)], drill=True),
    "sweep_once": Mutation("cancel believes after one order that all are gone", lambda: [on(kill.Canceling, "sweep", _half_canceled)], drill=True),
    "wire_differs": Mutation("one share more leaves than was intended", lambda: [on(broker, "wire", _twofold), on(broker, "same", lambda real: lambda found, name, order=None: found), on(gateway, "differs", lambda real: lambda order, body: None)]),
    "cash_forgotten": Mutation("dividends, fees and splits are not booked", lambda: [on(Ledger, "known", _cash_forgotten)]),
    "cache_stale": Mutation("cached positions are not refreshed", lambda: [on(ledger, "refresh", _stale_cache)]),
}
# fmt: on


@contextmanager
def applied(name: str | None) -> Iterator[None]:
    "The real code with one mistake in it, or with none."
    with ExitStack() as stack:
        for change in MUTATIONS[name].patches() if name else []:
            stack.enter_context(change)
        yield
