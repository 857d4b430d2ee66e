"What must be true every evening, judged by the exchange's own books."

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tradenb.core.calendar import session
from tradenb.execution.broker import entry_of
from tradenb.execution.entries import Entry, Fill, fold_positions
from tradenb.execution.ledger import Ledger, StoredOrder
from tradenb.execution.orders import canonical
from tradenb.execution.states import UNRESOLVED, from_broker
from tradenb.execution.switch import Level, covers

from .schedule import Process, ProcessClock

if TYPE_CHECKING:
    from .world import World


@dataclass(frozen=True)
class Violation:
    "A promise that was broken."

    seed: int
    day: date
    invariant: str
    detail: str

    def __str__(self) -> str:
        return f"seed {self.seed}, {self.day}: {self.invariant}: {self.detail}"


@dataclass(frozen=True)
class Truth:
    "The exchange's books."

    orders: dict[str, Any]
    entries: list[Entry]
    fills: dict[str, Fill]
    fees: Counter[str]
    cash: Decimal
    positions: dict[str, Decimal]


def truth_of(world: "World") -> Truth:
    "Asked without a network."
    exchange = world.exchange
    exchange.advance(world.now)
    lines = exchange.activities()
    entries = [entry_of(line) for line in lines]
    fills = {entry.id: entry for entry in entries if isinstance(entry, Fill)}
    others = Counter(entry.id for entry in entries if not isinstance(entry, Fill))
    return Truth(exchange.orders(), entries, fills, others, exchange.cash(), exchange.positions())


def auditor(world: "World") -> Ledger:
    "The ledger, without points and faults."
    return Ledger(world.database.engine("auditor"), ProcessClock(world.schedule, Process("auditor")))


def audit(world: "World") -> list[Violation]:
    "Every invariant; the violations, each with its name."
    truth = truth_of(world)
    ledger = auditor(world)
    if world.tampered:
        return [Violation(world.seed, world.day, "NOT_HALTED", line) for line in unnoticed(world)]
    ours = {order.client_order_id: order for order in ledger.orders()}
    found: list[tuple[str, str]] = []
    found += [("NOBODY_WANTED_IT", line) for line in nobody_wanted(world, truth, ours)]
    found += [("NOT_AS_INTENDED", line) for line in not_as_intended(truth, ours)]
    found += [("INTENT_LOST", line) for line in lost(world, ours)]
    found += [("DISHONEST_STATE", line) for line in dishonest(world, truth, ours)]
    found += [("TOLD_WRONG", line) for line in told_wrong(world, truth)]
    found += [("GIVEN_UP_EARLY", line) for line in given_up_early(world)]
    found += [("FILLS", line) for line in fills_differ(world, ledger, truth, ours)]
    found += [("POSITIONS", line) for line in positions_differ(ledger, truth)]
    if abs(ledger.account().cash - truth.cash) > Decimal("0.005"):
        found.append(("CASH", f"ours {ledger.account().cash}, the exchange's {truth.cash}"))
    found += [("CACHE", line) for line in ledger.check()]
    found += [("CRASHED_TASK", line) for line in world.schedule.stray]
    found += [("FLIPPED", line) for line in flipped(world, truth)]
    found += [("NOT_CANCELED", line) for line in not_canceled(world, truth, ours)]
    found += [("FALSE_HALT", line) for line in halts(world)]
    found += [("DENIAL_NOT_STORED", line) for line in denials(world, ledger)]
    world.operator.check()
    found += world.monitors.broken + world.operator.broken
    found += [("RECONCILIATION", line) for line in unsettled(world)]
    world.result.orders, world.result.fills = len(truth.orders), len(truth.fills)
    return [Violation(world.seed, world.day, name, detail) for name, detail in found]


def nobody_wanted(world: "World", truth: Truth, ours: dict[str, StoredOrder]) -> Iterable[str]:
    "Whatever is at the broker was asked for, and stands in the ledger."
    for name, order in truth.orders.items():
        if name in world.by_hand or world.operator.is_own(name):
            continue  # the kill switch sends even where it cannot write
        if name not in ours:
            yield f"{name} {order['side']} {order['qty']} {order['symbol']} is at the broker and not in the ledger"
        if name not in world.wanted:
            yield f"{name} {order['side']} {order['qty']} {order['symbol']} is at the broker and nobody asked for it"


def not_as_intended(truth: Truth, ours: dict[str, StoredOrder]) -> Iterable[str]:
    "What was traded is what was intended: words, prices, sizes (restated by splits)."
    for name, order in ((n, o) for n, o in truth.orders.items() if n in ours):
        mine = ours[name]
        words = {"symbol": mine.symbol, "side": mine.side, "type": mine.type, "time_in_force": mine.time_in_force}
        if "0.01" in (order["limit_price"], order["stop_price"]) and not Decimal(order["filled_qty"]):
            continue  # the kill switch made sure that this name can never fill
        if wrong := {k: order[k] for k, v in words.items() if order[k] != v}:
            yield f"{name}: {wrong} at the broker, intended {words}"


def lost(world: "World", ours: dict[str, StoredOrder]) -> Iterable[str]:
    "What a client was told is stored, under that name and with that payload."
    for wanted in world.wanted.values():
        if wanted.told and wanted.name not in ours:
            yield f"{wanted.name}: told {wanted.told[-1].status}, and the ledger does not have it"
        if wanted.name in ours and ours[wanted.name].intent != wanted.intent:
            yield f"{wanted.name}: stored {ours[wanted.name].intent}, wanted {wanted.intent}"


def dishonest(world: "World", truth: Truth, ours: dict[str, StoredOrder]) -> Iterable[str]:
    "Our state is the broker's; what the broker never had ended with a reason of its own."
    for name, order in ours.items():
        theirs = truth.orders.get(name)
        told = f"{name} {order.side} {canonical(order.qty)} {order.symbol}: ours {order.status}"
        if theirs is None:
            if order.status in UNRESOLVED and session(order.trade_date).close <= world.now:
                yield f"{told} after the close, and the broker never had it"
            elif order.status not in ("expired", "canceled", "rejected", "pending_new", "dry_run"):
                yield f"{told}, and the broker never had it"
            elif order.filled_qty:
                yield f"{told} with {order.filled_qty} filled, and the broker never had it"
        elif from_broker(theirs["status"]) is not order.status:
            yield f"{told}, the broker's {theirs['status']}"


def told_wrong(world: "World", truth: Truth) -> Iterable[str]:
    "Nobody was told of a rejection that the broker never spoke."
    for wanted in world.wanted.values():
        sent = world.monitors.orders.get(wanted.name)
        rejected = any(order.status == "rejected" for order in wanted.told)
        if rejected and wanted.name in truth.orders and not (sent and sent.refused):
            yield f"{wanted.name}: told rejected, the broker had it ({truth.orders[wanted.name]['status']})"


def given_up_early(world: "World") -> Iterable[str]:
    "No order is given up as long as it could still be sent, or arrive, in its session."
    ends = str(session(world.day).close - timedelta(minutes=3))  # clocks jump by less
    query = """select client_order_id, e.at from order_events e join orders o using (client_order_id)
        where e.kind in ('lapsed', 'absent') and e.status_to = 'expired' and o.trade_date = ? and e.at < ?"""
    for name, at in world.database.look(query, world.day.isoformat(), ends):
        yield f"{name} was given up at {at} UTC, its session ends at {ends}"


def elsewhere(world: "World", fill: Fill) -> bool:
    "Whether an execution belongs to an order that need not be in the ledger."
    return fill.broker_order_id in world.by_hand.values() or world.operator.is_own(fill.client_order_id or "")


def fills_differ(world: "World", ledger: Ledger, truth: Truth, ours: dict[str, StoredOrder]) -> Iterable[str]:
    "Every execution once, as it was, under its order."
    booked = {entry.id: entry for entry in ledger.entries() if isinstance(entry, Fill)}
    for name in sorted(booked.keys() | truth.fills.keys()):
        mine, theirs = booked.get(name), truth.fills.get(name)
        if mine is None or theirs is None:
            yield f"{name} {mine or theirs} is {'not booked' if mine is None else 'invented'}"
            continue
        if (mine.symbol, mine.side, mine.qty, mine.price) != (theirs.symbol, theirs.side, theirs.qty, theirs.price):
            yield f"{name}: booked {mine}, was {theirs}"
        elif mine.client_order_id not in ours and not elsewhere(world, mine):
            yield f"{name}: booked under no order of ours ({mine.client_order_id})"


def positions_differ(ledger: Ledger, truth: Truth) -> Iterable[str]:
    "Fold, cache and broker agree."
    folded = {s: p.qty for s, p in fold_positions(ledger.entries()).items() if p.qty}
    cached = {s: p.qty for s, p in ledger.positions().items() if p.qty}
    for symbol in sorted(folded.keys() | cached.keys() | truth.positions.keys()):
        three = [book.get(symbol, Decimal(0)) for book in (folded, cached, truth.positions)]
        if len(set(three)) > 1:
            yield f"{symbol}: folded {three[0]}, cached {three[1]}, the exchange's {three[2]}"


def unsettled(world: "World") -> Iterable[str]:
    "The evening's reconciliation works, and finds nothing where there is nothing."
    if world.settled is None:
        yield "the evening's reconciliation failed although nothing was wrong any more"
    else:
        for d in world.settled.differences:
            yield f"{d.kind} {d.key}: ours {d.ours}, broker {d.broker} ({d.cause})"


def flipped(world: "World", truth: Truth) -> Iterable[str]:
    "What the kill switch sends only ever reduces."
    own = {order["id"] for name, order in truth.orders.items() if world.operator.is_own(name)}
    held: dict[str, Decimal] = {}
    for entry in truth.entries:
        before = held.get(entry.symbol or "", Decimal(0))
        change = (entry.side.sign * entry.qty if isinstance(entry, Fill) else entry.qty) or Decimal(0)
        held[entry.symbol or ""] = after = before + change
        if (
            isinstance(entry, Fill)
            and entry.broker_order_id in own
            and (after * before < 0 or abs(after) > abs(before))
        ):
            yield f"{entry.symbol}: {before} became {after} by a closing order of the kill switch"


def not_canceled(world: "World", truth: Truth, ours: dict[str, StoredOrder]) -> Iterable[str]:
    "Where the kill switch said that it canceled, nothing works any more."
    for engaged in world.operator.engaged.values():
        for name, order in truth.orders.items():
            strategy = ours[name].strategy if name in ours else ""
            if (
                engaged.swept and engaged.level is not Level.BLOCK and covers(engaged.scope, strategy, order["symbol"])
                and order["status"] in ("accepted", "new", "partially_filled") and not world.operator.is_own(name)
            ):  # fmt: skip
                yield f"{name} {order['side']} {order['symbol']} works although {engaged.level} of {engaged.scope} said that none does"


def halts(world: "World") -> Iterable[str]:
    "Nobody but the kill switch's people and the controls stopped trading: nothing here is inexplicable."
    for number, who, why in world.database.look("select id, who, why from kill_switch where level != 'release'"):
        if number > world.last_halt:
            world.last_halt = number
            if who == "reconciliation":
                world.result.seen["halt"] += 1
                yield why
            elif who != "operator":
                world.result.seen[f"halt by {who}"] += 1


def unnoticed(world: "World") -> Iterable[str]:
    "What nobody can explain stops trading, and the switch says why."
    stopped = world.operator.kill("*").books.switch.standing("any", "ANY")
    if (
        world.settled is None
        or not world.settled.halted
        or stopped is None
        or stopped.level.strength < Level.BLOCK.strength
    ):
        yield f"1000 dollars that the broker never saw, and reconciliation said {world.settled and world.settled.differences}"


def denials(world: "World", ledger: Ledger) -> Iterable[str]:
    "Whoever was denied an order finds the denial stored."
    stored = {denial.client_order_id for denial in ledger.denials(limit=10_000)}
    for wanted in world.wanted.values():
        if any(text.startswith("OrderDenied") for text in wanted.refused) and wanted.name not in stored:
            yield f"{wanted.name}: {wanted.refused[-1]}"
    world.result.seen["denials"] = len(stored)
