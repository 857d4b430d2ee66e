"What happened, as lines that a person can follow, and as one hash that says whether it happened again."

from collections import deque
from datetime import datetime
from hashlib import blake2b
from typing import Any

from tradenb.core.clock import NEW_YORK


class Story:
    "Keeps the last lines, hashes all of them, and says them aloud when asked to."

    def __init__(self, aloud: bool = False, keep: int = 60):
        self.aloud, self.digest, self.lines = aloud, blake2b(digest_size=8), 0
        self.last: deque[tuple[datetime, str, str, dict[str, Any]]] = deque(maxlen=keep)

    def tell(self, at: datetime, who: str, what: str, **facts: Any) -> None:
        "One line: who did or suffered what."
        self.digest.update(f"{at.timestamp():.6f} {who} {what} {facts}\n".encode())
        self.lines += 1
        self.last.append((at, who, what, facts))
        if self.aloud:
            print(line(at, who, what, facts))

    def page(self, title: str) -> None:
        "A heading in the story told aloud."
        self.digest.update(title.encode())
        if self.aloud:
            print(f"\n── {title} " + "─" * max(0, 100 - len(title)))

    @property
    def hash(self) -> str:
        "The same for the same story."
        return self.digest.hexdigest()

    def tail(self, count: int = 25) -> list[str]:
        "The newest lines."
        return [line(*entry) for entry in list(self.last)[-count:]]


def line(at: datetime, who: str, what: str, facts: dict[str, Any]) -> str:
    "One line of the story, in New York's time."
    told = "  ".join(f"{name}={short(value)}" for name, value in facts.items() if value not in (None, ""))
    return f"{at.astimezone(NEW_YORK):%m-%d %H:%M:%S.%f}"[:-3] + f"  {who:<14} {what:<22} {told}"


def short(value: object) -> str:
    "A value in a few words; a hash by its head."
    text = str(value)
    return f"{text[:8]}…" if len(text) == 32 and set(text) <= set("0123456789abcdef") else text[:220]
