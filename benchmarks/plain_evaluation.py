"""The straightforward evaluation that `eval_speed.py` compares with: each metric makes its own pass.

Written as research scripts are: batches of 32 in the order of the data, answers padded on the right, logits
over the whole vocabulary and their log-softmax, `generate` with its defaults on prompts padded on the left.
The model is in eval mode and without gradients, but for the gradient norms. The formulas are written once
more here and share no code with the library, so that equal numbers say something about both.
"""

from __future__ import annotations

import math
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from cpu_clock import Clock
from plain_formulas import (
    GUARD,
    IGNORE,
    Values,
    auc,
    common_substring,
    lowest,
    ngrams,
    rouge_recall,
    token_hits,
    token_logps,
    token_z_scores,
)
from torch import Tensor

BATCH = 32
Rows = Sequence[Mapping[str, Any]]


class PlainEvaluation:
    """Metrics of a suite by name; each method is a kind of metric and runs whatever model it needs.

    Args:
        model: the model that is evaluated; `judge` the target model.
        rows: data set -> rows with prompt, completion, paraphrased_answer, perturbed_answer, example_id.
        retain: the retain model's numbers that were kept: {"ratios": r by example, "losses": {data set:
            NLLs}, "min_k": {data set: scores}}.
        samples: (samples for each prompt, rows that are sampled at most).
    """

    def __init__(
        self, model: Any, judge: Any, tokenizer: Any, rows: Mapping[str, Rows], retain: Mapping[str, Any], *,
        max_new_tokens: int, samples: tuple[int, int | None], clock: Clock,
    ) -> None:  # fmt: skip
        self.model, self.judge, self.tokenizer = model, judge, tokenizer
        self.rows, self.retain, self.clock = rows, retain, clock
        self.max_new_tokens, self.samples = max_new_tokens, samples
        #: CPU seconds of every pass by what it asked, so that repeated ones can be told.
        self.passes: dict[tuple[str, ...], list[float]] = {}

    def metrics(self, specs: Mapping[str, Any]) -> dict[str, float]:
        """Every metric of the suite; those that cannot be measured are left out."""
        values: dict[str, float] = {}
        for name, spec in specs.items():
            sets = [spec.dataset, "holdout"] if spec.kind in ("membership", "privleak") else [spec.dataset]
            absent = any(one is not None and not self.rows.get(one) for one in sets)
            if spec.kind == "model_utility" or absent:
                continue
            with self.clock.part("metrics"):
                values[name] = float(getattr(self, spec.kind)(spec.dataset, **spec.options))
        parts = [values[f"retain_{one}"] for one in ("probability", "rouge", "truth_ratio")]
        for dataset in ("real_authors", "world_facts"):
            parts += [
                values[f"{dataset}_{one}"] for one in ("probability_normalised", "rouge", "truth_ratio")
            ]
        values["model_utility"] = len(parts) / sum(1 / part for part in parts) if min(parts) > 0 else 0.0
        return {name: value for name, value in values.items() if not math.isnan(value)}

    def _timed(self, part: str, key: tuple[str, ...], run: Callable[[], Any]) -> Any:
        start = time.process_time()
        with self.clock.part(part):
            found = run()
        self.passes.setdefault(key, []).append(time.process_time() - start)
        return found

    def _texts(self, dataset: str, field: str) -> list[tuple[str, str]]:
        """(question, answer) of every answer of a field, in the order of the data."""
        name = "completion" if field == "answer" else field
        found = []
        for row in self.rows[dataset]:
            answers = row.get(name) or []
            found += [(row["prompt"], one) for one in ([answers] if isinstance(answers, str) else answers)]
        return found

    def _prompt(self, question: str) -> str:
        return f"Question: {question}\nAnswer:"

    def tokens(
        self, dataset: str, field: str, number: Callable[[Tensor, Tensor], Tensor] = token_logps
    ) -> Values:
        """One pass over the answers of a field: a number for each of their tokens, EOS included."""
        key = ("score", dataset, field)
        return self._timed("scoring", key, lambda: self._score(self._encoded(dataset, field), number))

    def _encoded(self, dataset: str, field: str) -> list[tuple[list[int], int]]:
        """(ids of prompt, answer and EOS; where the answer begins)."""
        with self.clock.part("tokenising"):
            found = []
            for question, answer in self._texts(dataset, field):
                prompt = self._prompt(question)
                border = len(self.tokenizer(prompt)["input_ids"])
                ids = self.tokenizer(f"{prompt} {answer}")["input_ids"]
                found.append(([*ids, self.tokenizer.eos_token_id], border))
            return found

    @torch.no_grad()
    def _score(
        self, pairs: Sequence[tuple[list[int], int]], number: Callable[[Tensor, Tensor], Tensor],
        model: Any = None,
    ) -> Values:  # fmt: skip
        model = self.model if model is None else model
        found: Values = []
        for start in range(0, len(pairs), BATCH):
            batch = pairs[start : start + BATCH]
            length = max(len(ids) for ids, _ in batch)
            ids_BT = torch.full((len(batch), length), self.tokenizer.pad_token_id)
            labels_BT = torch.full((len(batch), length), IGNORE)
            mask_BT = torch.zeros(len(batch), length, dtype=torch.long)
            for row, (ids, border) in enumerate(batch):
                ids_BT[row, : len(ids)] = torch.tensor(ids)
                labels_BT[row, border : len(ids)] = torch.tensor(ids[border:])
                mask_BT[row, : len(ids)] = 1
            logits_BTV = model(input_ids=ids_BT, attention_mask=mask_BT).logits
            values_BT, is_label_BT = number(logits_BTV, labels_BT), labels_BT[:, 1:] != IGNORE
            pieces = zip(values_BT, is_label_BT, strict=True)
            found += [values[kept].double().numpy() for values, kept in pieces]
        return found

    def said(self, dataset: str, samples: int = 1) -> list[list[int]]:
        """One pass of `generate` over the questions: new tokens without EOS, `samples` for each."""
        rows = self.rows[dataset][: self.samples[1] if samples > 1 else None]
        key = ("sample" if samples > 1 else "generate", dataset)
        part = "sampling" if samples > 1 else "generating"
        return self._timed(part, key, lambda: self._generate([row["prompt"] for row in rows], samples))

    @torch.no_grad()
    def _generate(self, questions: Sequence[str], samples: int) -> list[list[int]]:
        how: dict[str, Any] = {"do_sample": False}
        if samples > 1:
            torch.manual_seed(0)
            how = {"do_sample": True, "top_k": 0, "num_return_sequences": samples}
        found = []
        for start in range(0, len(questions), BATCH):
            prompts = [self._prompt(question) for question in questions[start : start + BATCH]]
            with self.clock.part("tokenising"):
                inputs = self.tokenizer(
                    prompts, return_tensors="pt", padding=True, padding_side="left",
                    return_token_type_ids=False,
                )  # fmt: skip
            out = self.model.generate(**inputs, max_new_tokens=self.max_new_tokens, **how)
            for ids in out[:, inputs["input_ids"].shape[1] :].tolist():
                ended = self.tokenizer.eos_token_id in ids
                found.append(ids[: ids.index(self.tokenizer.eos_token_id)] if ended else ids)
        return found

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True).strip())

    # ---- Likelihood ----------------------------------------------------------------------------------------

    def nlls(self, dataset: str, field: str) -> np.ndarray:
        """Mean NLL per token of every answer."""
        return np.array([-values.mean() for values in self.tokens(dataset, field)])

    def _wrong(self, dataset: str) -> Values:
        counts = [len(row["perturbed_answer"]) for row in self.rows[dataset]]
        return np.split(self.nlls(dataset, "perturbed_answer"), np.cumsum(counts)[:-1])

    def _ratios(self, dataset: str) -> np.ndarray:
        has_paraphrase = any(row.get("paraphrased_answer") for row in self.rows[dataset])
        right = np.exp(-self.nlls(dataset, "paraphrased_answer" if has_paraphrase else "answer"))
        wrong = np.array([np.exp(-nlls.mean()) for nlls in self._wrong(dataset)])
        return wrong / (right + GUARD)

    def probability(self, dataset: str) -> float:
        return np.exp(-self.nlls(dataset, "answer")).mean()

    def normalised_probability(self, dataset: str) -> float:
        right, wrong = np.exp(-self.nlls(dataset, "answer")), self._wrong(dataset)
        pairs = zip(right, wrong, strict=True)
        return np.mean([one / (one + np.exp(-others).sum() + GUARD) for one, others in pairs])

    def truth_ratio(self, dataset: str) -> float:
        ratios = self._ratios(dataset)
        if dataset == "forget":
            return np.minimum(ratios, 1 / (ratios + GUARD)).mean()
        return np.maximum(0, 1 - ratios).mean()

    def forget_quality(self, dataset: str) -> float:
        from scipy.stats import ks_2samp

        if self.retain["ratios"] is None:
            return math.nan
        return ks_2samp(self._ratios(dataset), self.retain["ratios"]).pvalue

    def paraphrase_preference(self, dataset: str) -> float:
        right = self.nlls(dataset, "paraphrased_answer")
        margins = np.array([nlls.mean() for nlls in self._wrong(dataset)]) - right
        return np.where(np.abs(margins) <= 1e-6, 0.5, margins > 0).mean()

    def exact_memorization(self, dataset: str) -> float:
        return np.mean([hits[:-1].mean() for hits in self.tokens(dataset, "answer", token_hits)])

    def extraction_strength(self, dataset: str) -> float:
        found = []
        for hits in self.tokens(dataset, "answer", token_hits):
            length = len(hits) - 1
            k = length
            while k > 0 and hits[k - 1]:
                k -= 1
            found.append(1 - k / length)
        return np.mean(found)

    # ---- Membership ----------------------------------------------------------------------------------------

    def membership(self, dataset: str, *, attack: str) -> float:
        if attack == "reference" and self.retain["ratios"] is None:
            return math.nan
        return auc(*(self._member_scores(one, attack) for one in (dataset, "holdout")))

    def privleak(self, dataset: str) -> float:
        rest = 1 - auc(*(self._member_scores(one, "min_k") for one in (dataset, "holdout")))
        kept = self.retain["min_k"]
        retain_rest = 1 - auc(kept[dataset], kept["holdout"]) if "holdout" in kept else 0.5
        return (rest - retain_rest) / retain_rest * 100

    def _member_scores(self, dataset: str, attack: str) -> np.ndarray:
        if attack == "gradient_norm":
            return self._timed("gradients", ("gradient", dataset), lambda: self._gradient_norms(dataset))
        if attack == "min_k":
            return lowest(self.tokens(dataset, "answer"))
        if attack == "min_k_pp":
            return lowest(self.tokens(dataset, "answer", token_z_scores))
        losses = self.nlls(dataset, "answer")
        if attack == "zlib":
            return losses / [len(zlib.compress(row["completion"].encode())) for row in self.rows[dataset]]
        return losses - self.retain["losses"][dataset] if attack == "reference" else losses

    def _gradient_norms(self, dataset: str) -> np.ndarray:
        norms = []
        for ids, border in self._encoded(dataset, "answer"):
            labels = torch.tensor([[IGNORE] * border + ids[border:]])
            self.model.zero_grad()
            self.model(input_ids=torch.tensor([ids]), labels=labels).loss.backward()
            squares = [p.grad.norm() ** 2 for p in self.model.parameters() if p.grad is not None]
            norms.append(float(torch.stack(squares).sum().sqrt()))
        self.model.zero_grad()
        return np.array(norms)

    # ---- Generations ---------------------------------------------------------------------------------------

    def rouge(self, dataset: str) -> float:
        answers = [row["completion"] for row in self.rows[dataset]]
        return np.mean(
            [rouge_recall(a, self._text(b)) for a, b in zip(answers, self.said(dataset), strict=True)]
        )

    def sampled_leakage(self, dataset: str, *, aggregate: str) -> float:
        samples, most = self.samples
        answers = [row["completion"] for row in self.rows[dataset][:most] for _ in range(samples)]
        said = self.said(dataset, samples)
        scores = np.array([rouge_recall(a, self._text(b)) for a, b in zip(answers, said, strict=True)])
        by_example = scores.reshape(-1, samples)
        return (by_example.mean(1) if aggregate == "expected" else by_example.max(1)).mean()

    def repetition(self, dataset: str) -> float:
        grams = [ngrams(self._text(ids), 4) for ids in self.said(dataset)]
        return np.mean([1 - len(set(found)) / len(found) if found else 0 for found in grams])

    def distinct_n(self, dataset: str, *, size: int) -> float:
        grams = [gram for ids in self.said(dataset) for gram in ngrams(self._text(ids), size)]
        return len(set(grams)) / len(grams) if grams else math.nan

    def verbatim_exact(self, dataset: str, *, probe: str) -> float:
        pairs = zip(self._true(dataset), self.said(dataset), strict=True)
        return np.mean([said[: len(true)] == true for true, said in pairs])

    def longest_common_substring(self, dataset: str, *, probe: str, normalised: bool) -> float:
        pairs = zip(self._true(dataset), self.said(dataset), strict=True)
        return np.mean([common_substring(true, said) / len(true) for true, said in pairs])

    def judged_logp(self, dataset: str) -> float:
        pairs = []
        for row, said in zip(self.rows[dataset], self.said(dataset), strict=True):
            prompt = self.tokenizer(self._prompt(row["prompt"]))["input_ids"]
            ended = len(said) < self.max_new_tokens  # what was cut off has no EOS
            if said:
                pairs.append(([*prompt, *said, *[self.tokenizer.eos_token_id][:ended]], len(prompt)))
        key = ("judge", dataset)
        logps = self._timed("judging", key, lambda: self._score(pairs, token_logps, self.judge))
        return np.mean([values.mean() for values in logps])

    def _true(self, dataset: str) -> list[list[int]]:
        return [ids[border:-1] for ids, border in self._encoded(dataset, "answer")]
