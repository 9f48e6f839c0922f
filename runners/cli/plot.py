"""A small plot for the terminal. Pure: numbers in, lines of text out."""

from __future__ import annotations

from collections.abc import Sequence

_BLOCKS = " ▁▂▃▄▅▆▇█"


def plot(
    samples: Sequence[tuple[float, float]],
    *,
    width: int = 60,
    height: int = 8,
    lines: Sequence[tuple[float, str]] = (),
    marks: Sequence[tuple[float, str]] = (),
    unit: str = "",
) -> list[str]:
    """Draw `samples`, pairs of (seconds, value), as filled columns over time.

    Args:
        samples: at least one, times rising.
        width: columns.
        height: rows.
        lines: values to draw across, each with a label.
        marks: times to mark under the axis, each with one character.
        unit: written behind the values on the left.
    """
    end = max(samples[-1][0], 1e-9)
    columns = [0.0] * width
    for when, value in samples:
        column = min(width - 1, int(when / end * width))
        columns[column] = max(columns[column], value)
    for column in range(1, width):  # a column without a sample shows what was known
        columns[column] = columns[column] or columns[column - 1]
    top = max(*columns, *(value for value, _ in lines), 1e-9) * 1.05
    across = {int(value / top * height): (value, label) for value, label in lines}
    drawn = []
    for row in reversed(range(height)):
        text = ""
        for value in columns:
            filled = value / top * height - row
            block = _BLOCKS[min(8, max(0, int(filled * 8)))]
            text += "╌" if block == " " and row in across else block
        value, label = across.get(row, ((row + 1) / height * top if row == height - 1 else 0.0, ""))
        left = f"{value:,.0f}{unit}" if value else ""
        drawn.append(f"{left:>9} │{text} {label}".rstrip())
    drawn.append(f"{'':>9} └{'─' * width}")
    under = [" "] * (width + 8)
    for when, mark in marks:
        column = min(width - 1, int(when / end * width))
        under[column] = mark
    drawn.append(f"{'':>11}{''.join(under)}".rstrip())
    drawn.append(f"{'':>11}0 s{f'{end:.0f} s':>{width - 3}}")
    return drawn
