"""What a training would stop at once its model is loaded, and that can be known before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from unlearnkit.data.parts import check_parts, stream_of
from unlearnkit.data.token_stats import check_selectors
from unlearnkit.preflight import bare_trainer
from unlearnkit.recipe import Recipe

#: The part that the target model writes where the recipe asks for it.
ALTERNATES = "forget.alternate"


def refuse_unfit(recipe: Recipe, args: Any, streams: Mapping[str, Any]) -> None:
    """Check the reference model that is asked for, and the answers of every part that is read.

    Args:
        streams: canonical rows; what could not be reached is missing.

    Raises:
        RecipeError: a reference that cannot give what the objective needs.
        DataError: rows without the answers that are read from them.
    """
    from unlearnkit.training.documents import refuse_documents
    from unlearnkit.training.reference import choose
    from unlearnkit.training.selective import data_selectors

    trainer = bare_trainer(recipe, args)
    objective = trainer.build_objective()
    fresh = recipe.model.lora is not None and trainer.adapts_target
    reference = choose(args.reference, objective.needs, has_fresh_adapter=fresh, retain=args.retain)
    refuse_documents(args, objective, streams, reference)
    later = ALTERNATES if recipe.data.alternates is not None else None
    parts = [part for part in objective.streams if part != later and stream_of(part) in streams]
    check_parts(parts, streams, trainer.build_answers())
    for part in parts:
        check_selectors(data_selectors(objective, part), streams[stream_of(part)], f"data.{part}")


def answers_identity(recipe: Recipe, args: Any) -> dict[str, str]:
    """Names the answers that stand in no stream's rows, such as a list of refusals, by their content."""
    from unlearnkit.files import fingerprint

    answers = bare_trainer(recipe, args).build_answers()
    # An object without words of its own has another name in every process.
    told = {part: one for part, one in answers.items() if " object at 0x" not in repr(one)}
    return {f"answers.{part}": fingerprint(repr(one)) for part, one in told.items()}
