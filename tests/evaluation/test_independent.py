"""Every metric of the suites `tofu_full` and `memorization` against a second, plain implementation.

Written from the definitions alone: one unpadded forward pass per answer, `generate` one prompt at a time, and
sums, sorts and loops over numpy arrays. Nothing here calls the code that it checks.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import math
import re
import zlib

import numpy as np
import pytest
import torch
from rouge_score.rouge_scorer import RougeScorer
from scipy.stats import ks_2samp

from unlearnkit.evaluation import metrics
from unlearnkit.evaluation.runner import evaluate
from unlearnkit.evaluation.suite import MetricSpec, load_suite

TOFU = ("forget", "retain", "real_authors", "world_facts")
SIDES = ("forget", "holdout")  # members and non-members
NEW_TOKENS = 28
OPTIONS = {"max_new_tokens": NEW_TOKENS, "cache": False, "progress": False}
GUARD = 1e-10
COMPAT = MetricSpec("membership", "forget", options={"attack": "gradient_norm", "compat": True})


@pytest.fixture(scope="module")
def data(fictional_rows):
    sets = {name: fictional_rows(f"{name}_perturbed")[:6] for name in TOFU if name != "forget"}
    return {**sets, "forget": fictional_rows("forget10_perturbed"), "holdout": fictional_rows("holdout10")}


@pytest.fixture(scope="module")
def models(tiny_model, tiny_tokenizer, data):
    """A target that knows half of all data, the holdout too, and noisy copies of it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        target = tiny_model()
        optimizer = torch.optim.Adam(target.parameters(), lr=1e-2)
        known = [row for rows in data.values() for row in rows[1:4]]
        pairs = [pair(tiny_tokenizer, row["question"], row["answer"]) for row in known]
        ids = [torch.tensor(prompt + answer) for prompt, answer in pairs]
        ids = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=ids[0][-1].item())
        for _ in range(80):
            optimizer.zero_grad()
            target(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
        target.zero_grad(set_to_none=True)
        others = {"unlearned": copy.deepcopy(target), "retain": copy.deepcopy(target)}
        for scale, model in zip((0.015, 0.1), others.values(), strict=True):
            for parameter in model.parameters():
                parameter.data += scale * torch.randn_like(parameter)
    return {"target": target, **others}


def write(folder, sets):
    for name, rows in sets.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {name: str(folder / f"{name}.jsonl") for name in sets}


def pair(tokenizer, question, answer):
    """Prompt tokens and answer tokens, EOS included."""
    prompt = tokenizer(f"Question: {question}\nAnswer:")["input_ids"]
    whole = tokenizer(f"Question: {question}\nAnswer: {answer}")["input_ids"]
    assert whole[: len(prompt)] == prompt
    return prompt, [*whole[len(prompt) :], tokenizer.eos_token_id]


def table(model, prompt, answer):
    """Log-probs over the vocabulary at each answer token."""
    logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0].float()
    return torch.log_softmax(logits, dim=-1)[len(prompt) - 1 : -1]


@torch.no_grad()
def score(model, prompt, answer, ends=True):
    """Per-token numbers; `body`, `z` and `hits` leave the EOS out."""
    logps = table(model, prompt, answer)
    lp = logps[range(len(answer)), answer]
    mu = (logps.exp() * logps).sum(-1)
    sd = ((logps.exp() * logps**2).sum(-1) - mu**2).clamp(min=1e-6).sqrt()
    kept, hits = slice(0, len(answer) - ends), logps.argmax(-1) == torch.tensor(answer)
    per_token = {"body": lp[kept].numpy(), "z": ((lp - mu) / sd)[kept].numpy(), "hits": hits[kept].numpy()}
    return {"nll": -float(lp.double().mean()), "total": -float(lp.double().sum()), **per_token}


@torch.no_grad()
def say(model, tokenizer, prompt, eos):
    """Greedy tokens without EOS, and their text."""
    ids = torch.tensor([prompt])
    options = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "eos_token_id": eos, "pad_token_id": eos}
    out = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()
    out = out[: out.index(eos)] if eos in out else out
    return out, tokenizer.decode(out, skip_special_tokens=True)


def gradient_norms(model, prompt, answer):
    """L2 norm over all parameters; and the mean of the tensors' norms, EOS left out."""
    nll, tensors = -table(model, prompt, answer)[range(len(answer)), answer], list(model.parameters())
    whole, body = (
        [float(g.norm()) for g in torch.autograd.grad(loss, tensors, retain_graph=True)]
        for loss in (nll.mean(), nll[:-1].mean())
    )
    return math.hypot(*whole), np.mean(body)


def examine(model, tokenizer, data):
    """Everything that the metrics below need of one model, an example each."""
    found = {name: [] for name in data}
    for name, row in ((name, row) for name, rows in data.items() for row in rows):
        prompt, answer = pair(tokenizer, row["question"], row["answer"])
        tokens, said = say(model, tokenizer, prompt, tokenizer.eos_token_id)
        one = {"text": row["answer"], "true": answer[:-1], "prompt": prompt, "tokens": tokens, "said": said}
        correct, wrong = row.get("paraphrased_answer", row["answer"]), row.get("perturbed_answer", [])
        one["answer"] = score(model, prompt, answer)
        one["correct"] = score(model, *pair(tokenizer, row["question"], correct))
        one["wrong"] = [score(model, *pair(tokenizer, row["question"], text)) for text in wrong]
        if name in SIDES:
            one["norm"], one["mean_norm"] = gradient_norms(model, prompt, answer)
        found[name].append(one)
    return found


def rouge(true, said, measure="recall", stem=True):
    return getattr(RougeScorer(["rougeL"], use_stemmer=stem).score(true, said)["rougeL"], measure)


def normalised(one, kind="nll", guard=GUARD):
    p = math.exp(-one["answer"][kind])
    return p / (p + sum(math.exp(-w[kind]) for w in one["wrong"]) + guard)


def truth(one, form="ratio", mean="geometric"):
    """The truth ratio r; of it, what the forget set, the third form ("share") and all other sets take."""
    nlls = np.array([w["nll"] for w in one["wrong"]])
    w = math.exp(-nlls.mean()) if mean == "geometric" else np.exp(-nlls).mean()
    c = math.exp(-one["correct"]["nll"])
    r = w / (c + GUARD)
    kept = max(0.0, 1 - r)
    return {"ratio": r, "forget": min(r, 1 / (r + GUARD)), "share": c / (c + w + GUARD)}.get(form, kept)


def extraction(hits, compat=False):
    k = next((k for k in range(len(hits)) if all(hits[k:])), len(hits))
    return 1 - k / len(hits) or (1 / len(hits) if compat else 0.0)


def common_run(first, second):
    lengths = range(min(len(first), len(second)) + 1)
    runs = [
        {tuple(ids[i : i + n]) for n in lengths for i in range(len(ids) - n + 1)} for ids in (first, second)
    ]
    return max(len(run) for run in runs[0] & runs[1])


def lowest(values, k=0.4):
    return -np.sort(values)[: max(1, math.floor(k * len(values)))].mean()


def auc(members, others):
    return np.mean([(o > m) + 0.5 * (o == m) for m in members for o in others])


def tpr(members, others, fpr):
    """Best share of members at or below any threshold that has at most `fpr` of the others there."""
    cuts = [t for t in [*members, *others] if np.mean(np.array(others) <= t) <= fpr]
    return max((np.mean(np.array(members) <= t) for t in cuts), default=0.0)


def grams(text, n):
    words = re.findall(r"[^\W_]+", text.lower())
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


def attacks(one, other):
    """Higher is less likely a member; `other` is the same example under the retain model."""
    return {
        "loss": one["answer"]["nll"],
        "zlib": one["answer"]["nll"] / len(zlib.compress(one["text"].encode())),
        "min_k": lowest(one["answer"]["body"]),
        "min_k_pp": lowest(one["answer"]["z"]),
        "reference": one["answer"]["nll"] - other["answer"]["nll"],
        "gradient_norm": one["norm"],
        "gradient_norm_compat": one["mean_norm"],
    }


def agree(result, wanted, name=""):
    """A metric's value; where `wanted` has a number per example, these too (in any order)."""
    assert result.value == pytest.approx(np.mean(wanted), abs=1e-4), name or result.name
    if np.ndim(wanted):
        assert sorted(result.per_example) == pytest.approx(sorted(wanted), abs=1e-4), name or result.name


def test_tofu_full(tmp_path, models, tiny_tokenizer, data):
    suite = load_suite("tofu_full", write(tmp_path, data))
    suite = dataclasses.replace(suite, metrics={**suite.metrics, "membership_gradient_norm_compat": COMPAT})
    given = {"reference": models["retain"], "target": models["target"]}
    found = evaluate(models["unlearned"], tiny_tokenizer, suite, **given, **OPTIONS)
    run, got, wanted = found.run, found.metrics, {}
    mine, kept = (examine(models[name], tiny_tokenizer, data) for name in ("unlearned", "retain"))

    for name in TOFU:
        rows = mine[name]
        hits = [r["answer"]["hits"] for r in rows]
        wanted[f"{name}_probability"] = [math.exp(-r["answer"]["nll"]) for r in rows]
        wanted[f"{name}_rouge"] = [rouge(r["text"], r["said"]) for r in rows]
        wanted[f"{name}_truth_ratio"] = [truth(r, name) for r in rows]
        share = metrics.truth_ratio(run, dataset=name, aggregate="prob_mean")
        agree(share, [truth(r, "share") for r in rows])
        paper = metrics.truth_ratio(run, dataset=name, wrong="arithmetic")
        agree(paper, [truth(r, name, mean="arithmetic") for r in rows])
        muse = metrics.rouge(run, dataset=name, measure="fmeasure", stemmer=False)
        agree(muse, [rouge(r["text"], r["said"], "fmeasure", stem=False) for r in rows])
        if name in ("forget", "retain"):
            wanted[f"{name}_exact_memorization"] = [h.mean() for h in hits]
            wanted[f"{name}_extraction_strength"] = [extraction(h) for h in hits]
            compat = metrics.extraction_strength(run, dataset=name, compat=True)
            agree(compat, [extraction(h, compat=True) for h in hits])
        else:
            wanted[f"{name}_probability_normalised"] = [normalised(r) for r in rows]
            paper = metrics.normalised_probability(run, dataset=name, length_normalised=False)
            agree(paper, [normalised(r, "total", guard=0) for r in rows])
    wanted["model_utility"] = 9 / sum(1 / np.mean(wanted[part]) for part in metrics.PARTS)
    forget = mine["forget"]
    test = ks_2samp([truth(r) for r in forget], [truth(r) for r in kept["forget"]])
    wanted["forget_quality"] = test.pvalue
    assert got["forget_quality"].extra["statistic"] == pytest.approx(test.statistic)
    assert got["forget_quality"].extra["log10_p"] == pytest.approx(math.log10(test.pvalue))
    wanted["forget_paraphrase_preference"] = [float(truth(r) < 1) for r in forget]

    both = [(r["true"], r["tokens"]) for r in forget]
    wanted["forget_verbatim_exact"] = [float(said[: len(true)] == true) for true, said in both]
    wanted["forget_longest_common_substring"] = [common_run(true, said) / len(true) for true, said in both]
    fours = [grams(r["said"], 4) for r in forget]
    wanted["forget_repetition"] = [1 - len(set(some)) / len(some) if some else 0.0 for some in fours]
    bigrams = [gram for r in forget for gram in grams(r["said"], 2)]
    wanted["forget_distinct_2"] = len(set(bigrams)) / len(bigrams)
    drawn = run.records.query("probe == 'sample_answer'").groupby("reference_text")["text"].agg(list)
    samples = [[rouge(true, said) for said in texts] for true, texts in drawn.items()]
    assert [len(scores) for scores in samples] == [8] * len(forget)
    wanted["forget_sampled_expected"] = [np.mean(scores) for scores in samples]
    wanted["forget_sampled_worst"] = [max(scores) for scores in samples]
    wanted["forget_judged_logp"] = list(got["forget_judged_logp"].per_example)
    ended = [r for r in forget if len(r["tokens"]) < NEW_TOKENS]
    assert ended
    for one in ended:  # an answer that was cut did not say the EOS
        judged = score(models["target"], one["prompt"], [*one["tokens"], tiny_tokenizer.eos_token_id])
        assert any(abs(value + judged["nll"]) < 1e-4 for value in wanted["forget_judged_logp"])

    inside, outside = ([attacks(*two) for two in zip(mine[s], kept[s], strict=True)] for s in SIDES)
    for attack in inside[0]:
        members, others = ([scores[attack] for scores in side] for side in (inside, outside))
        result = got[f"membership_{attack}"]
        wanted[f"membership_{attack}"] = auc(members, others)
        assert sorted(result.per_example) == pytest.approx(sorted(members), rel=1e-3, abs=1e-5), attack
        for key, fpr in (("tpr_at_1_fpr", 0.01), ("tpr_at_01_fpr", 0.001)):
            assert result.extra[key] == pytest.approx(tpr(members, others, fpr)), attack
    lows = [{s: [lowest(r["answer"]["body"]) for r in m[s]] for s in SIDES} for m in (mine, kept)]
    rest, kept_rest = (1 - auc(low["forget"], low["holdout"]) for low in lows)
    wanted["privleak"] = (rest - kept_rest) / kept_rest * 100
    agree(metrics.privleak(run), (rest - 0.5) / 0.5 * 100)

    assert set(wanted) == set(got)
    for name, expected in wanted.items():
        agree(got[name], expected, name)


def test_memorization(tmp_path, models, tiny_tokenizer, data):
    rows = {"forget": data["forget"], "retain": data["real_authors"], "control": data["holdout"]}
    written = "Question: {question}\nAnswer: {answer}".format_map
    sets = {key: [written(row) for row in some] for key, some in rows.items()}
    files = write(tmp_path, {key: [{"text": text} for text in texts] for key, texts in sets.items()})
    both = {"own": models["unlearned"], "retain": models["retain"]}
    found = evaluate(both["own"], tiny_tokenizer, "memorization", files, reference=both["retain"], **OPTIONS)
    wanted = {name: [] for name in found.metrics}
    for key, text in ((key, text) for key, texts in sets.items() for text in texts):
        ids, eos = tiny_tokenizer(text)["input_ids"], tiny_tokenizer.eos_token_id
        border = len(ids) - min(50, len(ids) // 2)  # all but the last 50 tokens, and at least half
        true = ids[border : border + NEW_TOKENS]
        said = {name: say(one, tiny_tokenizer, ids[:border], eos)[0] for name, one in both.items()}
        said = {name: tokens[: len(true)] for name, tokens in said.items()}
        overlap = {
            name: rouge(tiny_tokenizer.decode(true), tiny_tokenizer.decode(tokens))
            for name, tokens in said.items()
        }
        hits = score(both["own"], ids[:1], ids[1:], ends=False)["hits"]
        wanted[f"{key}_verbatim_rouge"].append(overlap["own"])
        wanted[f"{key}_verbatim_exact"].append(float(said["own"] == true))
        wanted[f"{key}_longest_common_substring"].append(common_run(true, said["own"]))
        same = [n for n in range(len(true) + 1) if true[:n] == said["own"][:n]]
        wanted[f"{key}_first_departure"].append(max(same))
        wanted[f"{key}_exact_memorization"].append(hits.mean())
        wanted[f"{key}_extraction_strength"].append(extraction(hits))
        if key == "forget":
            wanted["forget_verbatim_rouge_excess"].append(overlap["own"] - overlap["retain"])
            exact = float(said["own"] == true) - float(said["retain"] == true)
            wanted["forget_verbatim_exact_excess"].append(exact)
    assert any(wanted["forget_verbatim_rouge_excess"])
    for name, expected in wanted.items():
        agree(found.metrics[name], expected, name)
