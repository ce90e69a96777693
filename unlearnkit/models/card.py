"""The model card beside saved weights: what was forgotten, how, and from which model."""

from __future__ import annotations

from pathlib import Path

from unlearnkit import __version__
from unlearnkit.files import write_atomic
from unlearnkit.recipe import Recipe
from unlearnkit.yamlfile import dump_yaml


def write_card(folder: Path, recipe: Recipe, base: str | None) -> None:
    """Write `README.md` with the Hub's metadata header, the settings and where the proof is."""
    adapter = (folder / "adapter_config.json").exists()
    header = {
        "library_name": "peft" if adapter else "transformers",
        "tags": ["unlearnkit", "machine-unlearning", recipe.method],
    }
    if base is not None and not Path(base).exists():
        header["base_model"] = base
    made = "made from scratch" if base is None else f"made from `{base}`"
    text = (
        f"---\n{dump_yaml(header)}---\n# {recipe.name}\n\n"
        f"{'LoRA adapter' if adapter else 'Weights'} {made} with the method `{recipe.method}` of "
        f"UnlearnKit {__version__}.\n\n"
        "What was measured stands in `report.html` of the same run. Settings:\n\n"
        f"```yaml\n{recipe.to_yaml()}```\n"
    )
    write_atomic(folder / "README.md", text)
