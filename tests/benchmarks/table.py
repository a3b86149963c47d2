"""Medians, ratios and spread, and the table that they end up in."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

#: What contenders came to, one figure for each round.
Samples = dict[str, list[float]]

HEADINGS = ["what", "loop", "figure", "peer", "its figure", "ratio", "spread", "goal", ""]

_UNITS = {
    "s": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")),
    "B": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B")),
    "share": ((0.01, "%"),),
    "jobs/s": ((1.0, "jobs/s"),),
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: a figure, and a peer's in the same rounds."""

    what: str
    loop: str = ""
    figures: Sequence[float]
    peer: str = ""
    peers: Sequence[float] = ()  # as many, or none
    unit: str = "s"
    #: The most that the ratio may be, or the figure where there is no peer.
    goal: float | None = None
    #: The least, where more is better.
    least: float | None = None

    @property
    def has_goal(self) -> bool:
        return self.goal is not None or self.least is not None

    @property
    def ratios(self) -> list[float]:
        """The figure as a multiple of the peer's, for each round."""
        pairs = zip(self.figures, self.peers, strict=True) if self.peers else ()
        return [own / other for own, other in pairs if other]

    def cells(self) -> list[str]:
        """Return what stands in the table."""
        ratios = self.ratios
        judged, unit = (ratios, "x") if self.peers else (self.figures, self.unit)
        goal = met = ""
        if self.goal is not None:
            goal = f"≤ {shown(self.goal, unit)}"
            met = "met" if statistics.median(judged) <= self.goal else "missed"
        elif self.least is not None:
            goal = f"≥ {shown(self.least, unit)}"
            met = "met" if statistics.median(judged) >= self.least else "missed"
        return [
            self.what,
            self.loop,
            shown(statistics.median(self.figures), self.unit),
            self.peer,
            shown(statistics.median(self.peers), self.unit) if self.peers else "",
            shown(statistics.median(ratios), "x") if ratios else "",
            spread(judged, unit) if len(judged) > 1 else "",
            goal,
            met,
        ]


def compared(
    samples: Samples,
    own: str,
    peer: str,
    what: str,
    loop: str,
    *,
    unit: str = "s",
    goal: float | None = None,
    least: float | None = None,
) -> Row:
    """Make the row that compares two contenders of the same rounds."""
    return Row(
        what=f"{what}: {own}",
        loop=loop,
        figures=samples[own],
        peer=peer,
        peers=samples[peer],
        unit=unit,
        goal=goal,
        least=least,
    )


def shown(number: float, unit: str) -> str:
    """Return a figure the way it is read most easily."""
    if unit == "x":
        return f"{number:.2f}x"
    units = _UNITS[unit]
    size, name = next((each for each in units if abs(number) >= each[0]), units[-1])
    digits = f"{number / size:.3g}" if abs(number) < 100 * size else f"{number / size:,.0f}"
    return f"{digits} {name}"


def spread(figures: Sequence[float], unit: str) -> str:
    """Return where the middle half of the figures is, or all of them if they are few."""
    if len(figures) < 8:
        low, high = min(figures), max(figures)
    else:
        low, _, high = statistics.quantiles(figures, n=4)
    return f"{shown(low, unit)} to {shown(high, unit)}"


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
