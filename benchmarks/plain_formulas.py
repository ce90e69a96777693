"""The formulas of the plain evaluation: token numbers of one batch, and what metrics make of them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

IGNORE = -100
GUARD = 1e-10
Values = list[np.ndarray]

# ---- Token numbers of one batch: logits [B, T, V] and labels [B, T] -> [B, T - 1] --------------------------


def token_logps(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Log-prob of each label; anything where there is none."""
    logps_BTV = torch.log_softmax(logits_BTV[:, :-1].float(), dim=-1)
    return logps_BTV.gather(2, labels_BT[:, 1:].clamp(min=0)[..., None])[..., 0]


def token_hits(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Whether the arg-max is the label."""
    return logits_BTV[:, :-1].argmax(-1) == labels_BT[:, 1:]


def token_z_scores(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Min-K%++: (log-prob - its mean over the vocabulary) / its standard deviation there."""
    logps_BTV = torch.log_softmax(logits_BTV[:, :-1].float(), dim=-1)
    p_BTV = logps_BTV.exp()
    mean_BT = (p_BTV * logps_BTV).sum(-1)
    variance_BT = (p_BTV * (logps_BTV - mean_BT[..., None]).square()).sum(-1)
    found_BT = logps_BTV.gather(2, labels_BT[:, 1:].clamp(min=0)[..., None])[..., 0]
    return (found_BT - mean_BT) / variance_BT.clamp(min=1e-6).sqrt()


# ---- Formulas ----------------------------------------------------------------------------------------------


def lowest(values: Values, share: float = 0.4) -> np.ndarray:
    """Min-K%: minus the mean of the lowest share of an answer's tokens, EOS left out."""
    found = []
    for one in values:
        ordered = np.sort(one[:-1])
        found.append(-ordered[: max(1, int(share * len(ordered)))].mean())
    return np.array(found)


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """P(score of a non-member > score of a member), ties half."""
    difference = np.asarray(others)[:, None] - np.asarray(members)[None, :]
    return float((difference > 0).mean() + (difference == 0).mean() / 2)


def rouge_recall(reference: str, text: str) -> float:
    """ROUGE-L recall with stemming, by the rouge_score library."""
    global _scorer
    if _scorer is None:
        from rouge_score.rouge_scorer import RougeScorer

        _scorer = RougeScorer(["rougeL"], use_stemmer=True)
    return float(_scorer.score(reference, text)["rougeL"].recall)


_scorer: Any = None


def ngrams(text: str, size: int) -> list[tuple[str, ...]]:
    """Runs of words."""
    words = re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", text).casefold())
    return list(zip(*(words[i:] for i in range(size)), strict=False))


def common_substring(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the longest run that stands in both."""
    best, before = 0, [0] * (len(second) + 1)
    for one in first:
        row = [0] * (len(second) + 1)
        for place, other in enumerate(second, start=1):
            if one == other:
                row[place] = before[place - 1] + 1
        best, before = max(best, *row), row
    return best
