"Report blocks: text is escaped, numbers are readable, charts are the same every time."

import re
from datetime import date, timedelta
from decimal import Decimal
from html.parser import HTMLParser

import polars as pl
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tradenb.core.report import (
    FEW,
    FORMATS,
    LEFT,
    Block,
    Section,
    aligned,
    areas,
    band,
    bars,
    document,
    headline,
    heat,
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
floats = st.one_of(st.floats(-1e300, 1e300), st.sampled_from([float("nan"), float("inf"), float("-inf")]))


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
        heat(pl.DataFrame({text: [text, "b"], "the amount": [0.5, None]}), caption=text),
        Section(text, text, ()).block(),
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
    around, drawn = {"figure", "figcaption", "small", "div"}, {"g", "path", "text", "defs", "use", "clippath", "rect"}
    assert set(Tags(block.html).tags) <= around | drawn | {"svg", "tspan"}


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
        lines(frame, "name", ["value"], beside=["value"]),
        lines(frame.with_columns(value=pl.lit(2.0)), "name", ["value"], log=True),
        band(frame, "name", "value", "value", "value"),
        areas(frame.with_columns(pl.col("value").abs()), "name", ["value"]),
    ]


def test_the_same_chart_has_the_same_bytes() -> None:
    assert [block.html for block in charts()] == [block.html for block in charts()]


def test_charts_carry_no_address_and_leave_no_global_figure() -> None:
    from matplotlib import pyplot

    html = side_by_side(*charts()).html
    assert "http" not in html
    assert pyplot.get_fignums() == []


def drawn_texts(block: Block) -> dict[str, float]:
    "Each text of a chart with its height on the canvas, in points from the top."
    found = re.findall(
        r"<text[^>]*?(?:translate\([-\d.]+[ ,]+([-\d.]+)\)|y=\"([-\d.]+)\")[^>]*>([^<]*)</text>", block.html
    )
    return {text: float(moved or y) for moved, y, text in found}


def test_labels_of_bars_that_hang_from_zero_keep_clear_of_the_axis() -> None:
    at = drawn_texts(waterfall({"Held": Decimal(0), "Costs": Decimal("-398.87")}, total="P&amp;L", format="money"))
    assert abs(at["−$398.87"] - at["Costs"]) > 10


def test_decimals_within_a_charts_text_are_kept_and_coordinates_are_short() -> None:
    svg = bars(pl.DataFrame({"name": ["0.0624", "1.23456"], "value": [0.123456, 0.3]}), "name", "value").html
    assert {"0.0624", "1.23456"} <= drawn_texts(Block(svg)).keys()
    assert not re.search(r' d="[^"]*\d\.\d{3}', svg)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 40), st.dates(date(2000, 1, 1), date(2100, 1, 1)))
@example(2, date(2024, 1, 3))
@example(12, date(2000, 12, 21))
@example(13, date(2023, 12, 24))
def test_sessions_are_written_as_dates_and_never_as_hours(sessions: int, first: date) -> None:
    days = [first + timedelta(days=at) for at in range(sessions)]
    frame = pl.DataFrame({"date": days, "value": [float(at) for at in range(sessions)]})
    for block in (lines(frame, "date", ["value"]), bars(frame, "date", "value")):
        assert not re.search(r"\d\d:\d\d", Tags(block.html).text)
        if 2 <= sessions <= FEW:
            assert labels_of(block, days) == labels_that_fit(days)


def labels_of(block: Block, days: list[date]) -> list[date]:
    "The days whose labels a chart has."
    said = {text.partition(",")[0] for text in drawn_texts(block)}
    return [day for day in days if f"{day:%b} {day.day}" in said]


def labels_that_fit(days: list[date]) -> list[date]:
    "The last day always; every other one where the year makes labels too long for all of twelve."
    step = 2 if len(days) > 10 and days[0].year != days[-1].year else 1
    return days[::-step][::-1]


def test_one_value_is_said_instead_of_drawn() -> None:
    one = pl.DataFrame({"date": [date(2024, 1, 3)], "equity": [999_601.13]})
    said = lines(one, "date", ["equity"], "Equity", "dollars").html
    assert "<svg" not in said
    assert "Equity on 2024-01-03: $999,601" in said
    assert "no values yet" in lines(one.clear(), "date", ["equity"], "Equity").html


def test_counts_are_never_labelled_twice_on_an_axis() -> None:
    steps = pl.DataFrame({"at": list(range(20)), "symbols": [108] * 15 + [109] * 5})
    labels = re.findall(r">(10\d)</text>", lines(steps, "at", ["symbols"], format="integer").html)
    assert len(labels) == len(set(labels)) > 0


@given(st.lists(st.decimals(-1000, 1000, places=2), min_size=1, max_size=8))
def test_aligned_labels_have_alike_decimals_and_the_same_values(values: list[Decimal]) -> None:
    labels = aligned([str(value) for value in values])
    assert len({len(label.partition(".")[2]) for label in labels}) == 1
    assert [Decimal(label) for label in labels] == values


def test_dates_in_a_table_stay_on_one_line() -> None:
    html = table(pl.DataFrame({"day": [date(2024, 1, 3)], "why": ["a long reason"]})).html
    assert '<td class="tn-l tn-day">2024-01-03</td>' in html
    assert '<td class="tn-l">a long reason</td>' in html


def test_a_table_without_headings_has_no_empty_row_above_it() -> None:
    assert "<thead" not in table(pl.DataFrame({"a": ["x"], "b": ["y"]}), labels={"a": " ", "b": " "}).html


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=8), st.floats(-100, 100))
def test_the_strongest_colour_of_a_heat_table_is_its_largest_value_and_sums_do_not_count(
    values: list[float], total: float
) -> None:
    frame = pl.DataFrame({"year": ["2023"], **{f"m{n}": [value] for n, value in enumerate(values)}, "sum": [total]})
    shares = [int(share) for share in re.findall(r"(\d+)%,transparent", heat(frame, sums=["sum"]).html)]
    assert len(shares) == len(values)
    assert max(shares) == (60 if any(values) else 6)
    assert shares.index(max(shares)) == [abs(v) for v in values].index(max(map(abs, values))) or len(set(shares)) < len(
        shares
    )


def test_a_document_leads_to_each_of_its_sections_and_loads_nothing() -> None:
    html = document(
        "A & B", note("first"), [Section("What it earned", "", (note("x"),)), Section("Costs & more", "", ())]
    )
    assert (
        re.findall(r'href="#([^"]+)"', html)
        == re.findall(r'<h2 id="([^"]+)"', html)
        == ["what-it-earned", "costs-more"]
    )
    assert "<title>A &amp; B</title>" in html and "http" not in html.replace("http-equiv", "").replace("Http", "")


def test_zero_has_no_sign() -> None:
    assert [text_of(value, "price") for value in (-0.001, 0.0, -0.01)] == ["0.00", "0.00", "−0.01"]


def test_a_notebooks_dark_theme_reaches_its_blocks() -> None:
    assert "[data-jp-theme-light=false] .tn" in note("x")._repr_html_()
