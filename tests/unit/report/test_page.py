"""The HTML shell: complete, escaped, self-contained."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from pipelines.report import page
from pipelines.report.charts import COLOURS, bar_chart, histogram_chart

EVIL = "<script>alert('x')</script> & \"quotes\""


class Parsed(HTMLParser):
    """The open tags, text, links and ids of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def example() -> str:
    bars = page.figure(bar_chart({EVIL: 1.0, "b": 2.0}, EVIL, EVIL), EVIL)
    histogram = page.figure(histogram_chart([0, 1, 2], [3, 4], EVIL, EVIL, EVIL))
    return page.page(
        EVIL,
        page.facts({EVIL: EVIL}),
        page.charts(bars, histogram, bars),
        page.section(EVIL, page.element("p", EVIL, title=EVIL), EVIL),
        page.table([EVIL, "n"], [[EVIL, page.cell(EVIL, "number")], [1, page.cell(2, "number")]]),
    )


def test_a_page_is_complete_and_everything_given_to_it_is_escaped() -> None:
    parsed = Parsed(example())
    assert parsed.open == []
    assert "script" not in parsed.tags
    assert parsed.text.count(EVIL) >= 10


def test_a_page_fetches_nothing_and_fits_a_narrow_screen_and_the_dark() -> None:
    text = example()
    assert "http" not in text and not re.search(r"@import|url\((?!#)", text)
    assert not any(value and "//" in value for _, value in Parsed(text).attributes)
    assert 'name="viewport"' in text and "max-width:640px" in text
    assert "prefers-color-scheme:dark" in text


def test_charts_of_a_page_use_its_colours_and_have_ids_of_their_own() -> None:
    text = example()
    body = text[text.index("<body>") :]
    assert "var(--series-1)" in body
    assert not any(light in body for light, _ in COLOURS.values())
    for name, (light, dark) in COLOURS.items():
        assert f"--{name}:{light};" in text and f"--{name}:{dark};" in text
    first, second = re.findall(r"<svg.*?</svg>", body, flags=re.DOTALL)[:2]
    ids = [set(re.findall(r'\bid="([^"]+)"', svg)) for svg in (first, second)]
    assert ids[0] and ids[1] and not ids[0] & ids[1]
    for svg, own in zip((first, second), ids, strict=True):
        assert set(re.findall(r'(?:url\(|href=")#([^")]+)', svg)) <= own


def test_a_table_labels_its_cells_for_a_narrow_screen_and_aligns_numbers() -> None:
    table = page.table(["model", "loss"], [["base", page.cell("1.5", "number")]])
    assert '<td data-label="model">base</td>' in table
    assert '<td data-label="loss" class="number">1.5</td>' in table
    assert '<th scope="col" class="number">loss</th>' in table
    assert '<th scope="col">model</th>' in table
    assert "<tbody></tbody>" in page.table(["model"], [])
