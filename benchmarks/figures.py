"""What a benchmark says: figures, what they are compared with, and the targets they should meet. Pure."""

from dataclasses import dataclass, field
from typing import Literal

Verdict = Literal["met", "missed", "no peer", ""]


@dataclass(frozen=True)
class Target:
    """A bound on a ratio, inclusive: `at_most` or `at_least`."""

    at_most: float | None = None
    at_least: float | None = None

    def __post_init__(self) -> None:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("a target has exactly one bound")

    def holds(self, ratio: float) -> bool:
        """Whether `ratio` is on the right side."""
        if self.at_most is not None:
            return ratio <= self.at_most
        return self.at_least is not None and ratio >= self.at_least

    def __str__(self) -> str:
        if self.at_most is not None:
            return f"≤ {_bound(self.at_most)}"
        return f"≥ {_bound(self.at_least or 0.0)}"


def _bound(value: float) -> str:
    """Small bounds read better as fractions: 1/150."""
    if 0 < value < 0.2 and abs(1 / value - round(1 / value)) < 1e-9:
        return f"1/{round(1 / value)}"
    return f"{value:g}"


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Attributes:
        part: module that measured it.
        name: what was measured.
        value: of the host, in `unit`.
        against: what it is compared with; empty when it stands alone.
        reference: the same quantity there; None when that peer was not there.
        target: bound on `ratio`.
        note: a few words that belong to the number.
        samples: the raw samples by system, for the JSON file.
    """

    part: str
    name: str
    value: float
    unit: str
    against: str = ""
    reference: float | None = None
    target: Target | None = None
    note: str = ""
    samples: dict[str, list[float]] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """value / reference, None without a reference."""
        return self.value / self.reference if self.reference else None

    @property
    def verdict(self) -> Verdict:
        """How the ratio stands to the target."""
        if self.target is None:
            return ""
        if self.ratio is None:
            return "no peer"
        return "met" if self.target.holds(self.ratio) else "missed"

    def as_data(self) -> dict[str, object]:
        """Plain data for the JSON file."""
        return {
            "part": self.part,
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "against": self.against,
            "reference": self.reference,
            "ratio": self.ratio,
            "target": str(self.target) if self.target else None,
            "verdict": self.verdict,
            "note": self.note,
            "samples": self.samples,
        }


def quantity(value: float) -> str:
    """A number with three or four digits that mean something: 5228, 173, 12.9, 0.042."""
    magnitude = abs(value)
    if magnitude >= 100:
        return f"{value:.0f}"
    if magnitude >= 10:
        return f"{value:.1f}"
    if magnitude >= 1:
        return f"{value:.2f}"
    return f"{value:.3g}" if value else "0"
