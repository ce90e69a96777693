"""UnlearnKit makes a language model forget what it must not know, keeps the rest, and proves both."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from unlearnkit.evaluation.runner import evaluate as evaluate
    from unlearnkit.methods.grad_ascent import GradAscentConfig as GradAscentConfig
    from unlearnkit.methods.grad_ascent import GradAscentTrainer as GradAscentTrainer
    from unlearnkit.methods.grad_diff import GradDiffConfig as GradDiffConfig
    from unlearnkit.methods.grad_diff import GradDiffTrainer as GradDiffTrainer
    from unlearnkit.methods.npo import NPOConfig as NPOConfig
    from unlearnkit.methods.npo import NPOTrainer as NPOTrainer
    from unlearnkit.methods.sft import SFTConfig as SFTConfig
    from unlearnkit.methods.sft import SFTTrainer as SFTTrainer

# Names are imported on first use: `import unlearnkit` must not import torch.
_HOMES = {
    "evaluate": "unlearnkit.evaluation.runner",
    "GradAscentConfig": "unlearnkit.methods.grad_ascent",
    "GradAscentTrainer": "unlearnkit.methods.grad_ascent",
    "GradDiffConfig": "unlearnkit.methods.grad_diff",
    "GradDiffTrainer": "unlearnkit.methods.grad_diff",
    "NPOConfig": "unlearnkit.methods.npo",
    "NPOTrainer": "unlearnkit.methods.npo",
    "SFTConfig": "unlearnkit.methods.sft",
    "SFTTrainer": "unlearnkit.methods.sft",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'unlearnkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
