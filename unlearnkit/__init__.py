"""UnlearnKit makes a language model forget what it must not know, keeps the rest, and proves both."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    # What follows is for editors and type checkers: at run time names come from `_HOMES`.
    # isort: off
    from unlearnkit.evaluation.runner import evaluate as evaluate
    from unlearnkit.methods.alt_po import AltPOConfig as AltPOConfig, AltPOTrainer as AltPOTrainer
    from unlearnkit.methods.ce_u import CEUConfig as CEUConfig, CEUTrainer as CEUTrainer
    from unlearnkit.methods.dpo import DPOConfig as DPOConfig, DPOTrainer as DPOTrainer
    from unlearnkit.methods.error_norm import ErrorNormConfig as ErrorNormConfig
    from unlearnkit.methods.error_norm import ErrorNormTrainer as ErrorNormTrainer
    from unlearnkit.methods.eslm import ESLMConfig as ESLMConfig, ESLMTrainer as ESLMTrainer
    from unlearnkit.methods.goldfish import GoldfishConfig as GoldfishConfig
    from unlearnkit.methods.goldfish import GoldfishTrainer as GoldfishTrainer
    from unlearnkit.methods.grad_ascent import GradAscentConfig as GradAscentConfig
    from unlearnkit.methods.grad_ascent import GradAscentTrainer as GradAscentTrainer
    from unlearnkit.methods.grad_diff import GradDiffConfig as GradDiffConfig
    from unlearnkit.methods.grad_diff import GradDiffTrainer as GradDiffTrainer
    from unlearnkit.methods.idk_dpo import IdkDPOConfig as IdkDPOConfig, IdkDPOTrainer as IdkDPOTrainer
    from unlearnkit.methods.npo import NPOConfig as NPOConfig, NPOTrainer as NPOTrainer
    from unlearnkit.methods.offset import OffsetConfig as OffsetConfig, OffsetTrainer as OffsetTrainer
    from unlearnkit.methods.pdu import PDUConfig as PDUConfig, PDUTrainer as PDUTrainer
    from unlearnkit.methods.rmu import RMUConfig as RMUConfig, RMUTrainer as RMUTrainer
    from unlearnkit.methods.rpo import RPOConfig as RPOConfig, RPOTrainer as RPOTrainer
    from unlearnkit.methods.sat_imp import SatImpConfig as SatImpConfig, SatImpTrainer as SatImpTrainer
    from unlearnkit.methods.sft import SFTConfig as SFTConfig, SFTTrainer as SFTTrainer
    from unlearnkit.methods.simnpo import SimNPOConfig as SimNPOConfig, SimNPOTrainer as SimNPOTrainer
    from unlearnkit.methods.slung import SLUNGConfig as SLUNGConfig, SLUNGTrainer as SLUNGTrainer
    from unlearnkit.methods.uld import ULDConfig as ULDConfig, ULDTrainer as ULDTrainer
    from unlearnkit.methods.undial import UNDIALConfig as UNDIALConfig, UNDIALTrainer as UNDIALTrainer
    from unlearnkit.methods.value import ValueConfig as ValueConfig, ValueTrainer as ValueTrainer
    from unlearnkit.methods.wga import WGAConfig as WGAConfig, WGATrainer as WGATrainer
    # isort: on

#: Method -> what its classes are called before `Config` and `Trainer`.
_METHODS = {
    "alt_po": "AltPO",
    "ce_u": "CEU",
    "dpo": "DPO",
    "error_norm": "ErrorNorm",
    "eslm": "ESLM",
    "goldfish": "Goldfish",
    "grad_ascent": "GradAscent",
    "grad_diff": "GradDiff",
    "idk_dpo": "IdkDPO",
    "npo": "NPO",
    "offset": "Offset",
    "pdu": "PDU",
    "rmu": "RMU",
    "rpo": "RPO",
    "sat_imp": "SatImp",
    "sft": "SFT",
    "simnpo": "SimNPO",
    "slung": "SLUNG",
    "uld": "ULD",
    "undial": "UNDIAL",
    "value": "Value",
    "wga": "WGA",
}
# Names are imported on first use: `import unlearnkit` must not import torch.
_HOMES = {"evaluate": "unlearnkit.evaluation.runner"} | {
    stem + kind: f"unlearnkit.methods.{method}"
    for method, stem in _METHODS.items()
    for kind in ("Config", "Trainer")
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'unlearnkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
