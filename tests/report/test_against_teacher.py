"""What the report says of a divergence that is at the most that the teacher's images can show."""

from __future__ import annotations

from rtdmd.report.against_teacher import at_bound


def test_a_divergence_at_its_bound_is_told_in_words() -> None:
    assert at_bound({}) == ""
    text = at_bound({"stage one": 0.0125, "stage two": 0.168})
    assert " At its bound: 1.2 % of the images of stage one, 16.8 % of the images of stage two are" in text
    assert text.endswith("the true one may be far larger.")
