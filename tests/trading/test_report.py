"Report blocks: text is escaped, numbers are readable, charts are the same every time."

import re
from decimal import Decimal
from html.parser import HTMLParser

import polars as pl
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tradenb.trading.report import (
    FORMATS,
    LEFT,
    Block,
    bars,
    headline,
    histogram,
    lines,
    note,
    side_by_side,
    table,
    text_of,
    tiles,
    waterfall,
)

texts = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1, max_size=30)
decimals = st.decimals(-(10**12), 10**12, places=9)
floats = st.floats(allow_nan=True, allow_infinity=True, width=64)


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def blocks(text: str) -> list[Block]:
    frame = pl.DataFrame({text: [text, "b", "c"], "value": [1.0, -2.0, None]})
    return [
        headline(text, text, "green", [text]),
        tiles({text: (text, text)}),
        note(text, "warning"),
        table(frame, caption=text, max_rows=2),
    ]


@settings(deadline=None)
@given(texts)
def test_no_text_becomes_markup(text: str) -> None:
    for block, plain in zip(blocks(text), blocks("x"), strict=True):
        assert Tags(block.html).tags == Tags(plain.html).tags
        assert text in Tags(block.html).text


@settings(deadline=None, max_examples=40)
@given(texts)
@example("$a$ and $b$")
def test_no_label_of_a_chart_becomes_markup(text: str) -> None:
    frame = pl.DataFrame({"name": [text], "value": [1.0]})
    block = bars(frame, "name", "value", title=text, caption=text)
    allowed = {"figure", "figcaption", "small", "svg", "g", "path", "text", "defs", "use", "clippath", "rect", "tspan"}
    assert set(Tags(block.html).tags) <= allowed


@given(st.one_of(floats, decimals), st.sampled_from(sorted(FORMATS.keys() - LEFT)))
def test_no_number_shows_as_nan_or_inf_or_with_a_hyphen(value: float | Decimal, kind: str) -> None:
    shown = text_of(value, kind)  # type: ignore[arg-type]
    assert not re.search(r"nan|inf|-\d|-\$", shown, re.IGNORECASE)


@given(decimals)
def test_shares_and_money_lose_nothing_that_they_should_show(value: Decimal) -> None:
    def number(text: str) -> Decimal:
        return Decimal(text.replace("−", "-").replace("$", "").replace(",", ""))

    assert number(text_of(value, "shares")) == value
    assert abs(number(text_of(value, "money")) - value) <= Decimal("0.005")


def test_an_empty_table_says_so() -> None:
    assert ">none<" in table(pl.DataFrame(schema={"symbol": pl.String, "qty": pl.Int64})).html


def charts() -> list[Block]:
    frame = pl.DataFrame({"name": ["a", "b"], "value": [1.0, -2.0]})
    parts = {"moves": Decimal("5"), "fees": Decimal("-1")}
    return [
        lines(frame, "value", ["value"]),
        bars(frame, "name", "value", signed=True, horizontal=True),
        bars(frame.clear(), "name", "value"),
        histogram([0.1, 0.2, float("nan")], format="percent"),
        waterfall(parts, format="dollars"),
    ]


def test_the_same_chart_has_the_same_bytes() -> None:
    assert [block.html for block in charts()] == [block.html for block in charts()]


def test_charts_carry_no_address_and_leave_no_global_figure() -> None:
    from matplotlib import pyplot

    html = side_by_side(*charts()).html
    assert "http" not in html
    assert pyplot.get_fignums() == []
