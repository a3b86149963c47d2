"""A table of medians, ratios and spreads."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: Figures of the contenders, one for each round.
Samples = dict[str, list[float]]

HEADINGS = ["measurement", "loop", "figure", "peer", "peer figure", "ratio", "spread", "goal", ""]

_UNITS = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "share": ((0.01, "%"),),
    "jobs/s": ((1.0, "jobs/s"),),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of the table: a figure, and that of a peer in the same rounds.

    Args:
        title: What was measured.
        loop: The name of the event loop.
        figures: The figures, one for each round.
        peer: The name of the peer.
        peers: The figures of the peer, as many as `figures`, or none.
        unit: The unit of the figures.
        goal: Maximum of the ratio, or of the figure without a peer.
        minimum: Minimum of these, if more is better.
    """

    title: str
    loop: str = ""
    figures: Sequence[float]
    peer: str = ""
    peers: Sequence[float] = ()
    unit: str = "s"
    goal: float | None = None
    minimum: float | None = None

    @property
    def has_goal(self) -> bool:
        return self.goal is not None or self.minimum is not None

    @property
    def ratios(self) -> list[float]:
        """The ratios of the figure to that of the peer, one for each round."""
        pairs = zip(self.figures, self.peers, strict=True) if self.peers else ()
        return [figure / peer for figure, peer in pairs if peer]

    def cells(self) -> list[str]:
        """Return the cells of the row."""
        ratios = self.ratios
        judged, unit = (ratios, "x") if self.peers else (self.figures, self.unit)
        goal = met = ""
        if self.goal is not None:
            goal = f"≤ {format_figure(self.goal, unit)}"
            met = "met" if statistics.median(judged) <= self.goal else "missed"
        elif self.minimum is not None:
            goal = f"≥ {format_figure(self.minimum, unit)}"
            met = "met" if statistics.median(judged) >= self.minimum else "missed"
        return [
            self.title,
            self.loop,
            format_figure(statistics.median(self.figures), self.unit),
            self.peer,
            format_figure(statistics.median(self.peers), self.unit) if self.peers else "",
            format_figure(statistics.median(ratios), "x") if ratios else "",
            spread(judged, unit) if len(judged) > 1 else "",
            goal,
            met,
        ]


def compare(
    samples: Samples,
    contender: str,
    peer: str,
    title: str,
    loop: str,
    *,
    unit: str = "s",
    goal: float | None = None,
    minimum: float | None = None,
) -> Row:
    """Return the row that compares two contenders."""
    return Row(
        title=f"{title}: {contender}",
        loop=loop,
        figures=samples[contender],
        peer=peer,
        peers=samples[peer],
        unit=unit,
        goal=goal,
        minimum=minimum,
    )


def format_figure(number: float, unit: str) -> str:
    """Format a figure with three digits and a fitting unit."""
    if unit == "x":
        return f"{number:.2f}x"
    units = _UNITS[unit]
    size, name = next((scale for scale in units if abs(number) >= scale[0]), units[-1])
    digits = f"{number / size:.3g}" if abs(number) < 100 * size else f"{number / size:,.0f}"
    return f"{digits} {name}"


def spread(figures: Sequence[float], unit: str) -> str:
    """Return the range of the middle half of the figures, or of all if there are few."""
    if len(figures) < 8:
        low, high = min(figures), max(figures)
    else:
        low, _, high = statistics.quantiles(figures, n=4)
    return f"{format_figure(low, unit)} to {format_figure(high, unit)}"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
    lines = [HEADINGS, *(row.cells() for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| "
        + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        + " |"
        for line in lines
    )
