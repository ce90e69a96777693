"""Examples as tokens: what is made of rows of text, and what was counted on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NotRequired, TypedDict

from unlearnkit.files import fingerprint

#: The label of a token that is no target.
IGNORE = -100


class TokenRow(TypedDict):
    """One example as tokens; `labels` are unshifted and have the length of `input_ids`.

    Where selectors chose among the targets (see `data/token_stats.py`): `unlearn` is 1 at the targets that
    are unlearned instead of learned, and `candidates` says how many targets there were before.
    """

    example_id: str
    input_ids: list[int]
    labels: list[int]
    unlearn: NotRequired[list[int]]
    candidates: NotRequired[int]


@dataclass
class Chosen:
    """What selectors of the data made of the targets."""

    candidates: int = 0
    learned: int = 0
    unlearned: int = 0
    #: Examples that are left without anything to learn or to unlearn.
    without_target: int = 0
    #: Examples none of whose targets lies in a span, where selectors read the risks.
    without_risk: int = 0
    #: Risk class -> its targets, where selectors read the risks.
    risks: Counter[str] = field(default_factory=Counter)
    remarks: list[str] = field(default_factory=list)

    def add(self, other: Chosen) -> None:
        """Add the numbers of further examples."""
        self.candidates += other.candidates
        self.learned += other.learned
        self.unlearned += other.unlearned
        self.without_target += other.without_target
        self.without_risk += other.without_risk
        self.risks += other.risks

    def __str__(self) -> str:
        removed = f" and {self.unlearned:,} unlearned" if self.unlearned else ""
        return f"{self.learned:,} of {self.candidates:,} target tokens learned{removed}"

    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "candidates": self.candidates, "learned": self.learned, "unlearned": self.unlearned,
            "dropped": self.candidates - self.learned - self.unlearned,
            "examples_without_target": self.without_target,
            **({"examples_without_risk": self.without_risk} if self.risks else {}),
            **({"targets_by_risk": dict(sorted(self.risks.items()))} if self.risks else {}),
            **({"remarks": self.remarks} if self.remarks else {}),
        }  # fmt: skip


@dataclass
class Tokenized:
    """Token rows of one stream, and what was noticed on the way."""

    rows: Sequence[TokenRow]
    #: Rows whose prompt tokens were no prefix of the whole text's tokens: prompt and answer were tokenised
    #: apart.
    split_rows: int = 0
    #: Rows that were cut to `max_length` (only with `truncate`).
    cut_rows: int = 0
    lengths: list[int] = field(default_factory=list)
    #: None where no selector of the data chose.
    chosen: Chosen | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(r["input_ids"]) for r in self.rows)

    @property
    def num_target_tokens(self) -> int:
        """Tokens that count in a loss."""
        return sum(sum(label != IGNORE for label in r["labels"][1:]) for r in self.rows)

    @property
    def fingerprint(self) -> str:
        """Names the exact tokens and labels; with the model's it names every log-prob computed from them."""
        return fingerprint([(r["example_id"], r["input_ids"], r["labels"], *_marks(r)) for r in self.rows])


def _marks(row: TokenRow) -> list[list[int]]:
    return [row["unlearn"]] if any(row.get("unlearn", ())) else []
