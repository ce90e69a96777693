"""A recipe's section `evaluation`: what is measured during and after training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from unlearnkit.recipe import EvaluationSpec, ServingSpec
from unlearnkit.strict import Reader
from unlearnkit.training.selection import check_rules
from unlearnkit.yamlfile import Keys, show


def evaluation_section(reader: Reader, value: Any) -> EvaluationSpec | None:
    """The section, with every mistake noted; null measures nothing."""
    if value is None:
        return EvaluationSpec(suite=None)
    values = dict(value) if isinstance(value, Mapping) else value
    if isinstance(values, dict):
        values.update(_attacks(reader, values))
        # Their own sentences say more than the types of their keys.
        rules = {key: values.pop(key, None) for key in ("every", "keep", "stop")}
        wrong = check_rules(**rules)
        for key, message in wrong:
            reader.problem(("evaluation", key), f"evaluation.{key} {message}")
        values.update({} if wrong else {key: rule for key, rule in rules.items() if rule is not None})
    return reader.section(EvaluationSpec, values, ("evaluation",))


def _attacks(reader: Reader, section: Mapping[str, Any]) -> dict[str, Any]:
    """`attacks` as a mapping from names to options, from that or from a list of names."""
    value = section.get("attacks")
    if "attacks" not in section:
        return {}
    if value is None:
        return {"attacks": {}}
    if isinstance(value, list) and all(isinstance(name, str) for name in value):
        return {"attacks": {name: {} for name in value}}
    if isinstance(value, dict) and all(isinstance(item, dict | None) for item in value.values()):
        return {"attacks": {name: options or {} for name, options in value.items()}}
    reader.problem(
        ("evaluation", "attacks"),
        "evaluation.attacks must be a list of names, or names with sections of options "
        f"({{relearn: {{steps: [5, 10]}}}}), found {show(value)}",
    )
    return {"attacks": {}}


def serving_section(reader: Reader, value: Any) -> ServingSpec | None:
    """What a combined model is served with; None where the recipe does not say."""
    if value is None:
        return None
    spec = reader.section(ServingSpec, value, ("serving",))
    if spec is not None and spec.alpha is not None and not 0 < spec.alpha < math.inf:
        reader.problem(
            ("serving", "alpha"),
            f"serving.alpha must be above 0, found {spec.alpha:g}; 0.75 is a good start, and 0 would be the "
            "target model itself",
        )
    if spec is not None and spec.top_logit_filter is not None and spec.top_logit_filter >= 1:
        reader.problem(
            ("serving", "top_logit_filter"),
            f"serving.top_logit_filter must be below 1, found {spec.top_logit_filter:g}; use 0.01, or 0 for "
            "no filter",
        )
    return spec


def suites_named(section: Any) -> list[tuple[Keys, Any]]:
    """Every suite that the section names, with the place where it does."""
    if not isinstance(section, Mapping):
        return []
    also = section.get("also")
    several = list(enumerate(also)) if isinstance(also, list) else []
    return [
        *((("evaluation", key), section.get(key)) for key in ("suite", "during")),
        *((("evaluation", "also", str(index)), one) for index, one in several),
    ]
