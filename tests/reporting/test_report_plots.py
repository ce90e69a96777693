"""The plots as numbers: points of the curves, what is marked and said, and colours for both modes."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearnkit.reporting import curves, roc, trajectory_plot
from unlearnkit.reporting.attacks import Attack, Recovery, Stage
from unlearnkit.reporting.colours import PALETTE, themed
from unlearnkit.reporting.drawing import COLOURS, MARKERS, RUN_COLOURS
from unlearnkit.reporting.html import static
from unlearnkit.reporting.tables import Cell

TEXTS = ("ink", "quiet", "unlearned", "bad", "mixed", "good")
PAPERS = ("page", "soft")


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.2)."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    red, green, blue = (
        part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def test_contrast_has_its_known_values() -> None:
    """Black on white is (1 + 0.05) / 0.05 = 21; #767676 is the lightest grey with 4.5 on white."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") > 4.5 > contrast("#777777", "#ffffff")


@pytest.mark.parametrize("mode", [0, 1])
def test_texts_can_be_read_and_lines_be_seen_in_both_modes(mode: int) -> None:
    for paper in PAPERS:
        for text in TEXTS:
            assert contrast(PALETTE[text][mode], PALETTE[paper][mode]) >= 4.5, (text, paper)
    for tone in ("good", "mixed", "bad"):
        for text in (tone, "ink"):
            assert contrast(PALETTE[text][mode], PALETTE[f"{tone}-soft"][mode]) >= 4.5, (text, tone)
    names = {pair[0]: name for name, pair in PALETTE.items()}
    for colour in {*COLOURS.values(), *RUN_COLOURS}:
        assert contrast(PALETTE[names[colour]][mode], PALETTE["page"][mode]) >= 3, names[colour]


def test_the_style_sheet_knows_every_variable_and_no_other_colour() -> None:
    css = static("style.css.j2")
    assert set(re.findall(r"var\(--([\w-]+)", css)) <= set(PALETTE)
    rules = re.sub(r"--[\w-]+: #[0-9a-f]{6};|/\*.*?\*/", "", css, flags=re.DOTALL)
    assert not re.search(r":[^;{}]*(#[0-9a-fA-F]{3,8}\b|\brgba?\(|\bwhite\b|\bblack\b)[^;{}]*[;}]", rules)
    for pair in PALETTE.values():
        assert all(re.fullmatch("#[0-9a-f]{6}", colour) for colour in pair)


def test_no_two_names_share_a_light_colour() -> None:
    """A drawn colour is turned back into its name, which must be one."""
    assert len({pair[0] for pair in PALETTE.values()}) == len(PALETTE)


def test_known_colours_become_variables_and_others_stay() -> None:
    assert themed('<path style="fill: none; stroke: #0072B2"/>') == (
        '<path style="fill: none; stroke: var(--unlearned, #0072b2)"/>'
    )
    assert themed('style="fill: #123456"') == 'style="fill: #123456"'


def share(value: float | None, low: float | None = None, high: float | None = None) -> Cell:
    return Cell("–" if value is None else f"{value:.0%}", value, low=low, high=high)


def recovery(back: float | None, control: float | None, title: str = "ROUGE-L") -> Recovery:
    ends = () if back is None else (back - 0.1, back + 0.1)
    plain = share(0.5)
    return Recovery(title, title, share(back, *ends), share(control), share(None), plain, plain, plain, plain)


def attack(*stages: tuple[str, float | None, float | None, float | None], level: str = "steps") -> Attack:
    made = [
        Stage(variant, number, 40, 0, (), (recovery(back, control), recovery(back, None, "probability")))
        for variant, number, back, control in stages
    ]
    return Attack("made_up", "Made up", "…", level, tuple(made), "…", "b", "", ())


RELEARN = attack(("b", 10, 0.4, 0.1), ("a", 5, 0.2, None), ("c", 20, None, 0.2))


def test_a_curve_over_steps_begins_at_nothing_and_skips_what_was_not_measured() -> None:
    assert curves.curve(RELEARN, "ROUGE-L", "back") == [
        (0.0, 0.0, 0.0, 0.0),
        (5, 0.2, pytest.approx(0.1), pytest.approx(0.3)),
        (10, 0.4, pytest.approx(0.3), pytest.approx(0.5)),
    ]
    # A share without an interval is its own interval.
    assert curves.curve(RELEARN, "ROUGE-L", "control")[1:] == [(10, 0.1, 0.1, 0.1), (20, 0.2, 0.2, 0.2)]
    assert curves.curve(RELEARN, "probability", "control") == []


def test_a_curve_over_samples_begins_with_its_first_sample() -> None:
    sampled = attack(("1", 1, 0.2, 0.1), ("8", 8, 0.4, 0.1), level="samples")
    assert [row[0] for row in curves.curve(sampled, "ROUGE-L", "back")] == [1, 8]


def test_relearning_is_drawn_over_steps_and_forms_one_by_one() -> None:
    over_steps = curves.recovery_plot(RELEARN)
    assert "steps of the attack" in over_steps
    assert "(worst)" not in over_steps
    forms = curves.recovery_plot(attack(("a", None, 0.1, 0.0), ("b", None, 0.6, 0.2), level=""))
    assert "steps" not in forms
    assert "b (worst)" in forms
    assert forms.count("(worst)") == 1
    bits = curves.recovery_plot(attack(("a", 4, 0.1, 0.0), ("b", 8, 0.6, 0.2), level="bits"))
    assert "b (worst)" in bits  # four bits are no step on the way to eight
    for svg in (over_steps, forms):
        assert "unlearned model" in svg
        assert "retain model (control)" in svg
        assert "Share of ROUGE-L that came back" in svg
        assert "Share of probability that came back" in svg


def test_one_stage_is_not_the_worst_of_anything() -> None:
    assert "(worst)" not in curves.recovery_plot(attack(("b", 4, 0.1, 0.0), level="bits"))


def test_what_was_not_measured_is_not_drawn() -> None:
    assert curves.recovery_plot(attack(("a", 5, None, None))) == ""
    without = curves.recovery_plot(attack(("a", 5, 0.2, None), ("b", 10, 0.3, None)))
    assert "retain model" not in without


def test_a_screen_reader_is_told_the_shares() -> None:
    label = re.search(r'aria-label="([^"]*)"', curves.recovery_plot(RELEARN))
    assert label
    assert "b, ROUGE-L: 40%, control 10%" in label.group(1)
    assert "a, ROUGE-L: 20%;" in label.group(1)


def roc_of(role: str, metric: str = "membership_loss", auc: float = 0.75) -> dict[str, Any]:
    return {
        "metric": metric,
        "title": f"Membership: {metric.removeprefix('membership_')} attack (AUC)",
        "role": role,
        "label": role,
        "auc": auc,
        "fpr": [0.0, 0.0, 0.5, 1.0],
        "tpr": [0.0, 0.5, 1.0, 1.0],
    }


def test_each_membership_attack_has_a_panel_with_its_aucs() -> None:
    found = [roc_of("target", auc=0.987), roc_of("retain", auc=0.5), roc_of("target", "membership_zlib", 0.9)]
    for draw in (roc.roc_curves, roc.low_rate_curves):
        svg = draw(found)
        for text in ("Loss attack", "Zlib attack", "target 0.99", "retain 0.50", "target 0.90"):
            assert f">{text}<" in svg
    assert ">0.1 %<" in roc.low_rate_curves(found)
    assert ">0.1 %<" not in roc.roc_curves(found)
    assert roc.roc_curves([]) == roc.low_rate_curves([]) == ""


def test_the_roles_differ_in_more_than_colour() -> None:
    assert len(set(MARKERS.values())) == len(MARKERS)
    dashes = [
        set(re.findall(r"stroke-dasharray: ([\d. ,]+)", roc.roc_curves([roc_of(role)])))
        for role in ("target", "unlearned", "retain")
    ]
    chance = dashes[1]  # the unlearned model's line is drawn through; this is the diagonal alone
    assert len(chance) == 1
    assert dashes[0] - chance
    assert dashes[2] - chance
    assert dashes[0] != dashes[2]


@given(
    st.lists(st.floats(1e-3, 1), min_size=1, max_size=300),
    st.lists(st.floats(1e-3, 1), min_size=1, max_size=300),
    st.booleans(),
)
def test_a_thinned_curve_is_the_curve(fpr: list[float], tpr: list[float], log: bool) -> None:
    """Ends stay; every point left out is less than a step behind a kept one, on both axes."""
    n = min(len(fpr), len(tpr))
    xs, ys = np.sort(np.array(fpr[:n])), np.sort(np.array(tpr[:n]))
    kept_x, kept_y = roc.corners(xs, ys, log)
    assert (kept_x[0], kept_y[0], kept_x[-1], kept_y[-1]) == (xs[0], ys[0], xs[-1], ys[-1])
    assert set(zip(kept_x, kept_y, strict=True)) <= set(zip(xs, ys, strict=True))

    def place(values: Any) -> Any:
        return np.log10(values) / 3 if log else values

    for x, y in zip(place(xs), place(ys), strict=True):
        behind = (place(kept_x) <= x + 1e-12) & (place(kept_y) <= y + 1e-12)
        gaps = np.maximum(x - place(kept_x)[behind], y - place(kept_y)[behind])
        assert gaps.min() < roc.STEP


def trajectory(*points: tuple[int, float | None, float | None], **changes: Any) -> dict[str, Any]:
    return {
        "points": [
            {
                "step": step,
                "epoch": 0.0,
                "metrics": {
                    "forget_rouge": {"value": forget, "low": None, "high": None, "n": 16},
                    "retain_rouge": {"value": keep, "low": None, "high": None, "n": 16},
                },
            }
            for step, forget, keep in points
        ],
        "titles": {"forget_rouge": "Forget ROUGE-L", "retain_rouge": "Retain ROUGE-L"},
        "forget": "forget_rouge",
        "keep": "retain_rouge",
        "kept_step": None,
    } | changes


THREE = ((0, 0.9, 0.95), (20, 0.4, 0.9), (40, 0.1, 0.7))


def test_the_kept_checkpoint_is_marked_where_it_lies() -> None:
    marked = trajectory_plot.trajectory_plot(trajectory(*THREE, kept_step=20))
    assert ">step 20, kept<" in marked
    assert ">target<" in marked
    assert ">step 40<" in marked
    assert "the checkpoint of step 20 was kept" in marked
    plain = trajectory_plot.trajectory_plot(trajectory(*THREE))
    assert "kept" not in plain
    # The last step, when it is the one that was kept, is named once.
    last = trajectory_plot.trajectory_plot(trajectory(*THREE, kept_step=40))
    assert last.count(">step 40, kept<") == 1
    assert ">step 40<" not in last


def test_a_kept_step_without_numbers_draws_no_mark() -> None:
    assert ">step 30" not in trajectory_plot.trajectory_plot(trajectory(*THREE, kept_step=30))


def test_one_metric_alone_is_drawn_over_steps() -> None:
    svg = trajectory_plot.trajectory_plot(trajectory((0, 0.9, None), (20, 0.4, None)))
    assert "training step" in svg
    assert "keeps more" not in svg


def test_fewer_than_two_evaluations_draw_nothing() -> None:
    assert trajectory_plot.trajectory_plot(trajectory((0, 0.9, 0.95))) == ""
    assert trajectory_plot.trajectory_plot(trajectory(*THREE, forget=None, keep=None)) == ""


def test_forget_quality_is_drawn_as_its_logarithm() -> None:
    points = [
        {"step": step, "metrics": {"forget_quality": {"value": value, "low": value, "high": 1.0}}}
        for step, value in ((0, 0.0), (10, 1e-4), (20, None), (30, math.nan))
    ]
    found = trajectory_plot.series_of(points, "forget_quality")
    assert found == {
        0: (trajectory_plot.LOWEST_LOG10, trajectory_plot.LOWEST_LOG10, 0.0),
        10: (pytest.approx(-4), pytest.approx(-4), 0.0),
    }


def test_every_colour_of_a_plot_follows_the_mode_and_equal_numbers_give_equal_bytes() -> None:
    for draw in (
        lambda: curves.recovery_plot(RELEARN),
        lambda: roc.roc_curves([roc_of("target"), roc_of("unlearned"), roc_of("retain")]),
        lambda: roc.low_rate_curves([roc_of("target")]),
        lambda: trajectory_plot.trajectory_plot(trajectory(*THREE, kept_step=20)),
    ):
        svg = draw()
        assert svg == draw()
        bare = re.sub(r"var\(--[\w-]+, #[0-9a-f]{6}\)", "", svg)
        assert not re.search(r"(fill|stroke|color): ?(#|rgb|white|black)", bare)
        assert bare != svg
