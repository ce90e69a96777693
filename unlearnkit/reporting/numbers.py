"""How numbers are written: one place, so that HTML, Markdown and the verdict agree to the digit."""

from __future__ import annotations

import math

MISSING = "–"


def number(value: float | None, digits: int = 3) -> str:
    """A value with a fixed number of decimals; a dash where nothing was measured."""
    if value is None or math.isnan(value):
        return MISSING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if abs(value) < 1e-12:
        value = 0.0  # rounding noise, such as the logarithm of nearly 1
    if value != 0 and abs(value) < 0.5 * 10**-digits:
        return f"{value:.1e}".replace("e-0", "e-")
    return f"{value:.{digits}f}".replace("-", "−")


def p_value(value: float | None, log10: float | None = None) -> str:
    """A probability from 1 down to 1e-300 and below, where only its logarithm is left."""
    if value is None or math.isnan(value):
        return MISSING
    if value >= 0.001:
        return f"{value:.2g}" if value < 0.995 else "1.0"
    if value > 0:
        return f"{value:.1e}"
    if log10 is not None and math.isfinite(log10):
        return f"1e{math.floor(log10)}"
    return "below 1e-300"


def percent(share: float | None) -> str:
    """A share as a whole per cent; never 0 % or 100 % by rounding alone."""
    if share is None or math.isnan(share):
        return MISSING
    rounded = round(100 * share)
    if rounded == 0 and share > 0:
        return "under 1 %"
    if rounded == 100 and share < 1:
        return "over 99 %"
    return f"{rounded} %"


def count(value: float | None) -> str:
    """A whole number with thousands separated by a thin space."""
    if value is None or math.isnan(value):
        return MISSING
    return f"{round(value):,}".replace(",", "\u202f")


def seconds(value: float | None) -> str:
    """A duration in the unit that reads best."""
    if value is None or math.isnan(value):
        return MISSING
    if value < 120:
        return f"{value:.1f} s"
    if value < 7200:
        return f"{value / 60:.1f} min"
    return f"{value / 3600:.1f} h"


def memory(num_bytes: float | None) -> str:
    """Bytes as MiB or GiB."""
    if num_bytes is None or math.isnan(num_bytes):
        return MISSING
    gib = num_bytes / 2**30
    return f"{gib:.2f} GiB" if gib >= 1 else f"{num_bytes / 2**20:.0f} MiB"
