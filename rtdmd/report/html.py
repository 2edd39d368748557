"""Pages and their parts, from the templates beside this file. Text is escaped by the templates; only what is `Markup`
already, as the parts and the charts are, goes into a page as it is."""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from rtdmd.report.charts import DARK

SMALL = 400  # pixels: a narrower picture is of small images, which are enlarged without blur


@dataclass(frozen=True)
class Section:
    """A titled box of a page: how to read it, then its body. ``heading`` is its title in the contents, where those of
    one ``suite`` stand together."""

    title: str
    heading: str
    how_to_read: str
    body: Markup
    anchor: str
    suite: str


def section(title: str, how_to_read: str, body: Markup, anchor: str, suite: str = "") -> Section:
    """A section, of one suite where ``suite`` names it. Its anchor is ASCII: a browser percent-encodes the rest of a
    link, and the script that marks the current section would not find it."""
    named = f"{anchor}-{suite}" if suite else anchor
    slug = re.sub(r"[^a-z0-9_]+", "-", named.lower().encode("ascii", "backslashreplace").decode()).strip("-")
    full_title = f"{title}: {suite}" if suite else title
    return Section(full_title, title, how_to_read, body, slug, suite)


@lru_cache(maxsize=1)
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("rtdmd.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _source(name: str) -> str:
    """The text of a file beside the templates."""
    environment = _environment()
    assert environment.loader is not None
    return environment.loader.get_source(environment, name)[0]


def _part(name: str, *values: Any) -> Markup:
    """A macro of pieces.html, called."""
    module = _environment().get_template("pieces.html").module
    return Markup(str(getattr(module, name)(*values)).strip())


def page(title: str, lead: str, sections: Iterable[Section | None]) -> str:
    """The whole document, with the sections that there are. Nothing outside it is loaded: its policy forbids all but
    the pictures inside it and its own style and script, which it names by their hashes."""
    dark = "".join(f'[fill="{a}"] {{ fill: {b}; }} [stroke="{a}"] {{ stroke: {b}; }}\n' for a, b in DARK.items())
    style = f"{_source('page.css')}@media screen and (prefers-color-scheme: dark) {{\n{dark}}}\n"
    script = _source("page.js")
    allowed = {"style-src": _hash(style), "script-src": _hash(script), "img-src": "data:"}
    policy = "; ".join(["default-src 'none'", *(f"{kind} {source}" for kind, source in allowed.items())])
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title,
            lead=lead,
            sections=[section for section in sections if section is not None],
            policy=policy,
            style=Markup(style),
            script=Markup(script),
        )
    )


def _hash(text: str) -> str:
    """How a page's policy names a text of it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], classes: Sequence[str] = (), kind: str = "") -> Markup:
    """A table; ``classes`` names a class for each row, or is empty."""
    return _part("table", header, [list(row) for row in rows], classes, kind)


def cell(value: Mapping[str, float | None]) -> Markup:
    """A mean with its half-width over noise, as a table cell."""
    mean = f"{value['mean']:.3f}"
    if value["ci95"] is None:
        return Markup(mean)
    return Markup("{} <small>± {}</small>").format(mean, f"{value['ci95']:.3f}")


def plain(value: float | None, digits: int = 3) -> str:
    """A figure without interval."""
    return "–" if value is None else f"{value:.{digits}f}"


def picture(image: Image.Image, text: str, budget: int, caption: str = "") -> Markup:
    """A picture inside the page in at most ``budget`` bytes; ``text`` is read out where it cannot be seen."""
    data = base64.b64encode(webp_bytes(image, budget)).decode()
    kind = "small" if image.width < SMALL else ""
    return _part("figure", f"data:image/webp;base64,{data}", text, caption, kind)


def webp_bytes(image: Image.Image, budget: int) -> bytes:
    """The image as WebP in at most ``budget`` bytes: without loss where that fits, else as well as it fits, and in the
    end with half the pixels, again and again. The same pixels give the same bytes."""
    picture = image.convert("RGB")
    while True:
        for quality in (100, 90, 80, 65):
            buffer = io.BytesIO()
            picture.save(buffer, "WEBP", lossless=quality == 100, quality=quality)
            if buffer.tell() <= budget or max(picture.size) == 1:
                return buffer.getvalue()
        picture = picture.resize((max(1, picture.width * 7 // 10), max(1, picture.height * 7 // 10)))


def paragraphs(texts: Iterable[str]) -> Markup:
    """A paragraph per text."""
    return Markup().join(Markup("<p>{}</p>").format(text) for text in texts)


def drawing(chart: Markup) -> Markup:
    """A wide chart, which scrolls within its own box on a narrow screen."""
    return Markup('<div class="drawing" tabindex="0">{}</div>').format(chart)


def details(title: str, body: Markup) -> Markup:
    """A part that opens on a click."""
    return _part("details", title, body)


def titled(title: str, body: Iterable[Markup], kind: str = "curves") -> Markup:
    """A heading within a section, and charts or pictures in columns below it."""
    return _part("titled", title, kind, Markup().join(body))
