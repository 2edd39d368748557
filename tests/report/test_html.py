"""Pages and their parts: hostile texts stay texts, sections and links are there, pictures keep to their bytes."""

from __future__ import annotations

import io

import numpy as np
import pytest
from markupsafe import Markup
from PIL import Image

from rtdmd.report.charts import curve, forest
from rtdmd.report.html import details, drawing, page, paragraphs, picture, section, table, titled, webp_bytes
from tests.report.pages import assert_stands_alone

HOSTILE = """</style></script><script>alert('"1"')</script><img src=x onerror="alert(2)">&amp;"""


def test_a_hostile_text_is_a_text_wherever_it_comes_in() -> None:
    """As a page's title, a prompt set's or scorer's name, a caption: no element and no attribute is made of it."""
    image = Image.new("RGB", (4, 4))
    body = table([HOSTILE], [[HOSTILE], ["other"]]) + details(HOSTILE, paragraphs([HOSTILE]))
    body += titled(HOSTILE, [curve(HOSTILE, [0, 1], [1.0, 2.0], HOSTILE), picture(image, HOSTILE, 1000, HOSTILE)])
    body += drawing(forest({HOSTILE: {HOSTILE: (1.0, 0.5)}}))
    sections = [section(HOSTILE, HOSTILE, body, "one"), section(HOSTILE, HOSTILE, Markup(), "two", HOSTILE)]
    text = page(HOSTILE, HOSTILE, sections)
    elements = assert_stands_alone(text)
    assert "alert(2)&#34;" in text
    assert [attributes.get("alt") for tag, attributes in elements.found if tag == "img"] == [HOSTILE]
    (svg, _) = ((tag, own) for tag, own in elements.found if tag == "svg")
    assert svg[1]["aria-label"] == f"{HOSTILE} over {HOSTILE}"


def test_a_part_that_is_no_markup_is_a_text() -> None:
    assert "<td>&lt;b&gt;no&lt;/b&gt;</td><td><b>yes</b></td>" in table([], [["<b>no</b>", Markup("<b>yes</b>")]])


def test_the_contents_name_every_section_and_group_those_of_a_suite() -> None:
    sections = [
        section("Samples", "", Markup(), "samples"),
        section("Results", "", Markup(), "results", "draw bench"),
        None,
        section("Tags", "", Markup(), "tags", "draw bench"),
        section("Results", "", Markup(), "results", "Été 漢"),
    ]
    text = page("T", "lead", sections)
    assert_stands_alone(text)
    contents = text.partition("<nav")[2].partition("</nav>")[0]
    lines = [line.strip() for line in contents.splitlines() if line.strip().startswith("<li")]
    assert lines == [
        '<li><a href="#samples">Samples</a></li>',
        '<li class="suite">draw bench</li>',
        '<li class="inner"><a href="#results-draw-bench">Results</a></li>',
        '<li class="inner"><a href="#tags-draw-bench">Tags</a></li>',
        '<li class="suite">Été 漢</li>',
        '<li class="inner"><a href="#results-xe9t-xe9-u6f22">Results</a></li>',
    ]
    assert "<h2>Results: draw bench</h2>" in text


@pytest.mark.parametrize(("budget", "lossless"), [(50_000, True), (6_000, False), (300, False)])
def test_a_picture_keeps_to_its_bytes(budget: int, lossless: bool) -> None:
    """Noise, which no format makes small: first it loses quality, in the end pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (120, 120, 3), dtype=np.uint8)
    data = webp_bytes(Image.fromarray(pixels), budget)
    assert len(data) <= budget
    assert data == webp_bytes(Image.fromarray(pixels), budget)
    with Image.open(io.BytesIO(data)) as found:
        assert np.array_equal(np.asarray(found.convert("RGB")), pixels) == lossless
        assert found.width <= 120 and found.width == found.height
