"""The comparison: rates, ratios, and how they are shown."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kangaroo.errors import KangarooError
from kangaroo_lab import comparison, picture, report, workload_image
from kangaroo_lab.comparison import WORKS, Comparison, Measurement, Way

SPEED = {Way.RUNC: 900, Way.VIRTIOFS: 100, Way.PASSTHROUGH: 430}


def compared(*, emulated: bool = True) -> Comparison:
    seen = [
        Measurement(work.name, way, number, speed * factor, speed << 20, 2.0)
        for work in WORKS
        for way, speed in SPEED.items()
        for number, factor in enumerate((1, 1, 9))  # one run out of three is an outlier
    ]
    return Comparison(tuple(seen), "a node", emulated)


def test_the_pods_run_the_image_that_is_built() -> None:
    images = {variant.image for variant in comparison.variants().values()}
    assert images == {workload_image.IMAGE}


def test_a_rate_is_the_median_over_the_rounds() -> None:
    small, written = WORKS[0], WORKS[1]
    assert compared().rate(small, Way.VIRTIOFS) == 50
    assert compared().rate(written, Way.VIRTIOFS) == 50 << 20


def test_a_ratio_above_one_is_faster() -> None:
    assert compared().ratio(WORKS[0], Way.PASSTHROUGH) == pytest.approx(4.3)
    assert compared().ratio(WORKS[0], Way.PASSTHROUGH, Way.RUNC) == pytest.approx(430 / 900)


def test_what_was_not_measured_is_named() -> None:
    nothing = Comparison((), "a node", emulated=False)
    with pytest.raises(KangarooError, match="small-writes was not measured with runc"):
        nothing.rate(WORKS[0], Way.RUNC)


def test_a_result_is_read_and_another_one_refused() -> None:
    text = json.dumps({"test": "metadata", "ops": 3, "bytes": 0, "seconds": 0.5})
    seen = comparison.parse_result(text, work="metadata", way=Way.RUNC, number=1)
    assert seen == Measurement("metadata", Way.RUNC, 1, 3, 0, 0.5)
    for bad in (text.replace("metadata", "fill"), text.replace("0.5", "0"), "sh: no workload"):
        with pytest.raises(KangarooError, match="not a result of metadata"):
            comparison.parse_result(bad, work="metadata", way=Way.RUNC, number=1)


def test_the_json_has_every_measurement_and_its_unit() -> None:
    whole = json.loads(json.dumps(compared().to_json()))
    assert len(whole["series"]) == len(WORKS) * len(Way) * 3
    assert {each["unit"] for each in whole["tests"]} == {"ops/s", "bytes/s"}
    assert whole["tests"][0]["passthrough_to_virtiofs"] == pytest.approx(4.3)


def test_rows_show_rates_with_units_and_ratios() -> None:
    small, written, *_ = report.rows(compared())
    assert small[1:] == ("450/s", "50/s", "215/s", "4.3 ×", "0.48 ×")
    assert written[2] == "50 MiB/s"


def test_emulated_figures_say_so_and_others_do_not() -> None:
    assert any("emulated" in note for note in report.notes(compared(emulated=True)))
    assert not any("emulated" in note for note in report.notes(compared(emulated=False)))


def test_markdown_and_html_hold_every_cell_escaped() -> None:
    table = report.markdown_table(("a", "b"), [("x", "1")])
    assert table.splitlines() == ["| a | b |", "| :--- | ---: |", "| x | 1 |"]
    page = report.html_page("T", [("S", report.html_table(("<a>",), [("x & y",)]))])
    assert "&lt;a&gt;" in page
    assert "x &amp; y" in page


def test_the_picture_shows_the_ratios_and_is_the_same_each_time(tmp_path: Path) -> None:
    svg, png = picture.draw(compared(), tmp_path / "first")
    again, _ = picture.draw(compared(), tmp_path / "second")
    assert "4.3 ×" in svg.read_text()
    assert svg.read_bytes() == again.read_bytes()
    assert png.read_bytes().startswith(b"\x89PNG")
