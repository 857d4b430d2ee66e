"What must be true of every single request at the moment it leaves, judged from outside."

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from tradenb.core.calendar import session
from tradenb.execution.switch import covers

from .network import Answer, Packet
from .schedule import Process

if TYPE_CHECKING:
    from .world import World

BRIEFLY = timedelta(seconds=2)  # a look and the request that follows it
RECENT = timedelta(seconds=200)  # longer than the longest hang


@dataclass
class Sent:
    "What is known, from outside, of the requests for one order."

    doubt: bool = False  # a POST left, and nobody was told what became of it
    at: datetime | None = None
    by: Process | None = None
    stood_still: timedelta = timedelta(0)  # of the last POST, between its sender's look and the wire
    asked: datetime | None = None  # when whoever was last told where it stands had asked
    refused: bool = False  # the broker said no, at least once
    open: dict[int, Process] = field(
        default_factory=dict
    )  # POSTs that wait for an answer, by number; the dead wait for ever

    def waits(self, sender: Process) -> Process | None:
        "Another living process that waits for its answer."
        return next((process for process in self.open.values() if process.alive and process is not sender), None)


class Monitors:
    "Watches the wire; each broken rule is a line for the evening's audit."

    def __init__(self, world: "World"):
        self.world, self.orders = world, dict[str, Sent]()
        self.broken: list[tuple[str, str]] = []
        self.hung: dict[str, datetime] = {}
        self.look_ups: dict[int, tuple[str, datetime]] = {}

    def tell(self, rule: str, line: str) -> None:
        "A rule was broken."
        self.broken.append((rule, line))
        self.world.story.tell(self.world.now, "monitor", rule, line=line)

    def steady(self, process: Process) -> bool:
        "Whether a process has neither hung nor a wrong clock, so that nothing excuses it."
        hung = self.hung.get(process.name)
        return not process.skewed and (hung is None or self.world.now - hung > RECENT)

    def overtaken(self, packet: Packet, sent: Sent) -> bool:
        "Whether one of two senders stood still between its last look and the wire while the other one sent, or asked in order to send: nothing on their machines can tell them."
        if sent.by is packet.sender or sent.at is None:
            return False
        asked_meanwhile = sent.asked is not None and sent.asked > sent.at - sent.stood_still
        return packet.stood_still > BRIEFLY or (sent.stood_still > BRIEFLY and asked_meanwhile)

    def on_send(self, packet: Packet) -> None:
        "A request leaves."
        task = self.world.schedule.task
        if task is not None and task.writes:
            self.tell("CALL_INSIDE_TRANSACTION", packet.label)
        if name := packet.asks_for:
            self.look_ups[packet.number] = name, self.world.now
        if order := packet.order:
            self._on_order(packet, order)

    def _on_order(self, packet: Packet, order: dict[str, Any]) -> None:
        world, name = self.world, str(order.get("client_order_id"))
        sent = self.orders.setdefault(name, Sent())
        stored = world.database.look("select symbol, strategy from orders where client_order_id = ?", name)
        if packet.sender is world.operator.process:
            self._closing(name, order)
            return
        if not stored:
            self.tell("EFFECT_BEFORE_INTENT", f"{name} leaves and is not in the database")
        if name in world.wanted:
            self._as_wanted(name, order)
        if sent.by is not None:
            other = sent.waits(packet.sender)
            if other and self.steady(other) and self.steady(packet.sender):
                self.tell(
                    "TWO_SENDERS", f"{name} is sent by {packet.sender.name} while {other.name} waits for an answer"
                )
            elif sent.doubt and not other and not self.overtaken(packet, sent):
                self.tell("BLIND_RESEND", f"{name} is sent again and nobody asked what became of the first time")
        if stored:
            self._switch(packet, name, *stored[0])
        sent.doubt, sent.at, sent.by, sent.stood_still = True, world.now, packet.sender, packet.stood_still
        sent.open[packet.number] = packet.sender

    def _as_wanted(self, name: str, order: dict[str, Any]) -> None:
        intent = self.world.wanted[name].intent
        for field_name in ("symbol", "side", "type", "time_in_force"):
            if order.get(field_name) != getattr(intent, field_name):
                self.tell("WIRE_DIFFERS", f"{name} leaves with {field_name}={order.get(field_name)}")
        for field_name in ("qty", "notional", "limit_price", "stop_price"):
            value = order.get(field_name)
            if (None if value is None else Decimal(value)) != getattr(intent, field_name):
                self.tell(
                    "WIRE_DIFFERS", f"{name} leaves with {field_name}={value}, wanted {getattr(intent, field_name)}"
                )

    def _closing(self, name: str, order: dict[str, Any]) -> None:
        "What the kill switch sends to close is not more than there is; trades of a moment ago excuse it."
        world, today = self.world, session(self.world.day)
        quiet = all(abs(world.now - at) > timedelta(minutes=2) for at in (today.open, today.close))
        if quiet and world.operator.is_own(name) and order.get("type") == "market":
            held = world.exchange.positions().get(order["symbol"], Decimal(0))
            if Decimal(order["qty"]) > abs(held) or (held > 0) == (order["side"] == "buy"):
                self.tell("CLOSES_TOO_MUCH", f"{name}: {order['side']} {order['qty']}, held {held}")

    def _switch(self, packet: Packet, name: str, symbol: str, strategy: str) -> None:
        for engaged in self.world.operator.engaged.values():
            late = self.world.now - engaged.at > BRIEFLY
            if late and covers(engaged.scope, strategy, symbol) and self.steady(packet.sender):
                self.tell("SENT_AGAINST_SWITCH", f"{name} ({strategy} {symbol}) leaves under {engaged.scope}")

    def on_answer(self, packet: Packet, answer: Answer | None) -> None:
        "A caller learns what became of its request, or gives up."
        if (asked := self.look_ups.pop(packet.number, None)) and answer is not None and answer.status in (200, 404):
            sent = self.orders.setdefault(asked[0], Sent())
            sent.asked = asked[1]
            if sent.at and sent.at <= asked[1]:
                sent.doubt = False
        if packet.order and (sent := self.orders.get(str(packet.order.get("client_order_id")))):
            sent.open.pop(packet.number, None)
            sent.refused |= answer is not None and 400 <= answer.status < 429 and answer.judged
            if answer is not None and answer.judged and not sent.open:
                sent.doubt = False
