"""Errors that are the user's to mend.

Every message is one sentence: what is wrong, what was found, how to fix it. The command line prints it
without a traceback and leaves with exit code 2; anything that is not a `UserError` is a fault of ours and
leaves with 1.
"""


class UserError(ValueError):
    """A mistake in a recipe, a file or a command."""


class RecipeError(UserError):
    """A recipe or an option that cannot be used as written."""


class DataError(UserError):
    """A data set that is missing, empty, malformed or contradictory."""


class UnreachableError(DataError):
    """Data on a hub that cannot be reached from here; `check` notes it, everything else stops."""


class ModelError(UserError):
    """A model, tokenizer, adapter or checkpoint that cannot be used."""


class RecordsError(UserError):
    """Evaluation records or a report's input that cannot be read."""
