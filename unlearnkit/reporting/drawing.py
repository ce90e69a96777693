"""From a matplotlib figure to an inline SVG that is the same, byte for byte, whenever the numbers are.

`Figure` objects only, no pyplot, so that a report leaves no global state behind. Every role has its own
colour, marker and dashes; colours are those of `colours` and change with the page's light or dark mode.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from unlearnkit.reporting.colours import light, themed

COLOURS = {role: light(role) for role in ("target", "unlearned", "retain")}
MARKERS = {"target": "s", "unlearned": "o", "retain": "D"}
DASHES: dict[str, Any] = {"target": (0, (5, 2)), "unlearned": "-", "retain": (0, (1.5, 1.2))}
RUN_COLOURS = tuple(light(name) for name in ("unlearned", "pink", "orange", "sky", "grey", "black"))
INK, QUIET, GRID, PAGE = light("ink"), light("quiet"), light("line"), light("page")

_STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "font.family": ["DejaVu Sans"],
    "font.size": 10.5,
    "text.parse_math": False,
    "axes.edgecolor": light("axis"),
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10.5,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": QUIET,
    "ytick.color": QUIET,
    "xtick.labelsize": 9.5,
    "ytick.labelsize": 9.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.8,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "axes.unicode_minus": True,
}


def style(name: str = "") -> Any:
    """A context with the report's style; `name` salts the SVG's ids so that two plots never share one."""
    return rc_context({**_STYLE, "svg.hashsalt": f"unlearnkit-{name}"})


def figure(width: float = 6.3, height: float = 4.1) -> Figure:
    """An empty figure, in inches of 72 points; call it inside `style`."""
    return Figure(figsize=(width, height), layout="constrained")


def short(text: str, length: int = 34) -> str:
    """The text, cut to `length` characters."""
    return text if len(text) <= length else text[: length - 1] + "…"


def label_points(axes: Axes, points: Sequence[tuple[str, float, float]], size: float = 10) -> None:
    """Write each text beside its (x, y), where it covers no point and no other text if there is such a place.

    Call it last: later changes of the limits or the axis labels move the points.
    """
    figure_ = axes.get_figure(root=True)
    if figure_ is None:
        return
    figure_.draw_without_rendering()
    scale = 72 / figure_.dpi
    (left, bottom), (right, top) = axes.get_window_extent().get_points() * scale
    places = [tuple(axes.transData.transform((x, y)) * scale) for _, x, y in points]
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in places]
    for (text, x, y), (here_x, here_y) in zip(points, places, strict=True):
        width, height = 0.62 * size * len(text), 1.5 * size
        offsets = [
            (side * (11 + width / 2), shift) for shift in (0, 8, -8, 16, -16, 26, -26) for side in (1, -1)
        ]
        offsets = [*offsets[:2], (0, 15), (0, -15), *offsets[2:], (0, 30), (0, -30)]
        boxes = [
            (
                here_x + dx - width / 2,
                here_y + dy - height / 2,
                here_x + dx + width / 2,
                here_y + dy + height / 2,
            )
            for dx, dy in offsets
        ]
        costs = [
            sum(_overlap(box, other) for other in taken)
            + width * height * (box[0] < left or box[2] > right or box[1] < bottom or box[3] > top)
            for box in boxes
        ]
        best = costs.index(min(costs))
        taken.append(boxes[best])
        axes.annotate(
            text,
            (x, y),
            xytext=offsets[best],
            textcoords="offset points",
            ha="center",
            va="center",
            color=INK,
            fontsize=size,
            zorder=4,
            annotation_clip=False,
            bbox={"boxstyle": "round,pad=0.1", "facecolor": PAGE, "edgecolor": "none", "alpha": 0.8},
        )


def _overlap(first: tuple[float, ...], second: tuple[float, ...]) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return width * height if width > 0 and height > 0 else 0.0


def to_svg(fig: Figure, description: str) -> str:
    """The figure as an `<svg>` element for inlining; call it inside the `style` it was drawn in.

    `description` is what a screen reader says.
    """
    buffer = io.StringIO()
    FigureCanvasSVG(fig).print_svg(
        buffer, metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    used = set(re.findall(r'(?:url\(#|href="#)([^)"]+)', svg))
    svg = re.sub(r'\sid="([^"]*)"', lambda match: match.group(0) if match.group(1) in used else "", svg)
    # The page's own fonts, not the one that was used for measuring.
    svg = re.sub(r"font:\s*([^;\"]*?)'DejaVu Sans'", r"font: \1inherit", svg)
    svg = svg.replace("font-family: 'DejaVu Sans'", "font-family: inherit")
    svg = re.sub(r"font: ([^;\"]*?)inherit", _longhand, svg)
    svg = re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', "", svg, count=1)
    # A hundredth of a point is finer than any screen.
    svg = re.sub(r'\sd="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path.group(0)), svg)
    label = html.escape(description, quote=True)
    return themed(svg).replace("<svg", f'<svg role="img" aria-label="{label}"', 1).strip()


def _longhand(match: re.Match[str]) -> str:
    """`font: bold 10px inherit` is not valid CSS; its long form is."""
    words = match.group(1).split()
    size = next((word for word in words if word.endswith(("px", "pt"))), "10px")
    weight = next((word for word in words if word in {"bold", "700", "600"}), "normal")
    return f"font-size: {size.partition('/')[0]}; font-weight: {weight}"
