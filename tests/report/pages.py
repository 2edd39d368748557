"""What holds of every page: it is well formed, needs nothing else, and its links lead somewhere."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from rtdmd.report.html import _hash

VOID = {"meta", "img", "circle", "line", "polyline", "polygon", "br"}


class Elements(HTMLParser):
    """Every element of a page with its attributes, and what stands in its style and script."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.open: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in VOID or (tag == "circle" and self.get_starttag_text()[-2:] != "/>"):  # type: ignore[index]
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("style", "script"):
            self.texts[self.open[-1]] = data


def assert_stands_alone(page: str) -> Elements:
    """Every link leads to a part of the page, every picture is in it, and its policy allows its own style and script
    alone."""
    elements = Elements(page)
    assert elements.open == []
    named = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(named) == len(set(named))
    links = [attributes["href"] for _, attributes in elements.found if "href" in attributes]
    assert links and {f"#{name}" for name in named} >= set(links)
    sections = {f"#{attributes['id']}" for tag, attributes in elements.found if tag == "section"}
    assert sections <= set(links)
    assert all(str(own["src"]).startswith("data:image/webp;") for _, own in elements.found if "src" in own)
    assert all(own["alt"] for tag, own in elements.found if tag == "img")
    assert set(re.findall(r"https?://[^\"' ]*", page)) == {"http://www.w3.org/2000/svg"}  # a name in the script
    assert "url(" not in page and "@import" not in page
    (policy,) = (str(own["content"]) for _, own in elements.found if "http-equiv" in own)
    style, script = (_hash(elements.texts[name]) for name in ("style", "script"))
    assert policy == f"default-src 'none'; style-src {style}; script-src {script}; img-src data:"
    assert [tag for tag, _ in elements.found].count("script") == 1
    assert not [name for _, own in elements.found for name in own if name.startswith("on") or name == "style"]
    return elements
