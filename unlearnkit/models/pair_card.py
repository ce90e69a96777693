"""The model card of an exported pair: what must be served together, and what is in it still."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearnkit import __version__
from unlearnkit.files import write_atomic
from unlearnkit.models.combined.configuration_combined import SIGNS
from unlearnkit.yamlfile import dump_yaml

#: Kind -> what the networks are, and what is done with their log-probabilities.
_KINDS = {
    "uld": (
        "a target model and a small assistant, which was trained to remember what must go and nothing else",
        "log p = log p_target - {alpha:g} log p_assistant",
    ),
    "offset": (
        "a base model and two small models, one trained to forget and the same one before",
        "log p = log p_base + {alpha:g} (log p_tuned - log p_untuned)",
    ),
    "value": (
        "a base model and a small network that models what training changes",
        "log p = log p_base + {alpha:g} log p_value",
    ),
}

_TOKENIZER = "transformers.AutoTokenizer.from_pretrained('FOLDER', trust_remote_code=True)"


def write_pair_card(folder: Path, name: str, config: Mapping[str, Any], opening: str) -> None:
    """Write `README.md`; what a run's own card says stays below it.

    Args:
        config: of the pair, as in its config.json.
        opening: the Python line that opens the folder.
    """
    path = folder / "README.md"
    before = path.read_text(encoding="utf-8") if path.is_file() else ""
    if before.startswith("---\n"):
        before = before.partition("\n---\n")[2].partition("\n\n")[2]  # without metadata and title
    header = {"library_name": "transformers", "tags": ["unlearnkit", "machine-unlearning", config["kind"]]}
    what, formula = _KINDS[config["kind"]]
    first, second, *_ = SIGNS[config["kind"]]
    rate = config.get("top_logit_filter")
    filtered = (
        f"A filter (rate {rate:g}) leaves tokens out that the {first} model itself finds far less likely "
        "than its first choice: they are never generated, and in likelihoods the other networks have no say "
        "about them."
        if rate
        else "No filter is used: every token's score is changed."
    )
    text = (
        f"---\n{dump_yaml(header)}---\n# {name}: networks to be served together\n\n"
        f"Several networks that answer as one (UnlearnKit {__version__}): {what}.\n\n"
        f"    {formula.format(alpha=abs(config['weights'][second]))}\n\n"
        f"{filtered}\n\n"
        f"**The {first} model inside is unchanged and still knows everything.** Only what the networks say "
        f"together has forgotten: whoever has this folder can ask the {first} model alone. "
        f"{_where(config['sources'][first])}\n\n"
        f"Open it with\n\n    {opening}\n    {_TOKENIZER}\n"
    )
    made = f"\n## How it was made\n\n{before.strip()}\n" if before.strip() else ""
    write_atomic(path, text + made)


def _where(source: Mapping[str, Any]) -> str:
    if "folder" in source:
        return f"Its weights lie in `{source['folder']}/`."
    place = source["path"]
    return (
        f"It is `{Path(place).name if Path(place).is_absolute() else place}`, which this folder only names."
    )
