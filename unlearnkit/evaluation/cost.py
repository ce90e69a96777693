"""What an evaluation may take, and what it took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """What an examination may take and where it keeps what it finds.

    `max_new_tokens` replaces the suite's bound; `cache` keeps results on disk by content.
    """

    batch_tokens: int = 16384
    max_new_tokens: int | None = None
    cache: bool = True
    progress: bool = True


@dataclass
class Cost:
    """What the model was really asked; known answers cost nothing."""

    scored_pairs: int = 0
    generated: int = 0
    tokens: int = 0
    others: int = 0

    @property
    def asked(self) -> int:
        """Questions that a model was run on."""
        return self.scored_pairs + self.generated + self.others

    def as_json(self) -> dict[str, int]:
        """For the summary."""
        return {name: value for name, value in vars(self).items() if value or name != "others"}
