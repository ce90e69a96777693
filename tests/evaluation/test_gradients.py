"""The gradient-norm probe: the norms of a plain loop with `.backward()`, on a model left as it was."""

from __future__ import annotations

import copy
import math

import datasets
import pytest
import torch
from helpers_pairs import make_pair
from transformers import GPT2Config, GPT2LMHeadModel

from unlearnkit.data.columns import canonical
from unlearnkit.data.formats import Template
from unlearnkit.errors import ModelError
from unlearnkit.evaluation.gradients import base_parameters, gradient_norms
from unlearnkit.evaluation.questions import Question, likelihood_questions
from unlearnkit.evaluation.serving import served_at

BOTH = ("global_norm", "mean_norm")


@pytest.fixture(scope="module")
def questions(tiny_tokenizer, fictional_rows):
    rows = canonical(datasets.Dataset.from_list(fictional_rows("forget10"))).to_list()[:3]
    template = Template.for_tokenizer(tiny_tokenizer)
    text = {"example_id": "t", "text": rows[0]["completion"]}
    return [
        *likelihood_questions("forget", rows, tiny_tokenizer, template),
        *likelihood_questions("texts", [text], tiny_tokenizer, template),
    ]


def question(prompt, answer):
    return Question("gradient_norm", "forget", "e", "global_norm", 0, "", "", tuple(prompt), tuple(answer))


def norms(model, questions, **options):
    done = []
    found = {}
    for results in gradient_norms(model, questions, done=done.append, **options):
        found.update(results)
    assert sum(done) == len(questions)
    return [found[q.pair] for q in questions]


def plain(model, question, stop=()):
    """Both norms with cross entropy over all positions and `.backward()`, on a copy."""
    expected = {}
    for name in BOTH:
        own = copy.deepcopy(model)
        for parameter in own.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        answer = list(question.answer_ids)
        if name == "mean_norm" and answer[-1] in stop:
            answer = answer[:-1]
        ids = torch.tensor([[*question.prompt_ids, *answer]])
        logits = own(ids).logits[0, len(question.prompt_ids) - 1 : -1].double()
        torch.nn.functional.cross_entropy(logits, torch.tensor(answer)).backward()
        sizes = [p.grad.double().norm() for p in own.parameters() if p.grad is not None]
        together = torch.stack(sizes).square().sum().sqrt()
        expected[name] = float(together if name == "global_norm" else torch.stack(sizes).mean())
    return expected


def test_norms_are_those_of_a_plain_loop(tiny_model, tiny_tokenizer, questions):
    model = tiny_model()
    stop = [tiny_tokenizer.eos_token_id]
    assert [q.answer_ids[-1] in stop for q in questions] == [True, True, True, False]
    for question, found in zip(questions, norms(model, questions, stop=stop, which=BOTH), strict=True):
        assert found == pytest.approx(plain(model, question, stop), rel=1e-5)


def test_each_norm_alone_is_the_same_as_both_together(tiny_model, tiny_tokenizer, questions):
    model = tiny_model()
    stop = [tiny_tokenizer.eos_token_id]
    both = norms(model, questions, stop=stop, which=BOTH)
    assert norms(model, questions, stop=stop) == [{"global_norm": one["global_norm"]} for one in both]
    mean = norms(model, questions, stop=stop, which=["mean_norm"])
    assert mean == [{"mean_norm": one["mean_norm"]} for one in both]


def test_the_order_of_the_questions_does_not_matter(tiny_model, questions):
    model = tiny_model()
    assert norms(model, questions[::-1]) == norms(model, questions)[::-1]


def test_eos_counts_for_the_global_norm_only(tiny_model, tiny_tokenizer):
    """With one token before the EOS, mean_norm is that of the answer without EOS; global_norm is not."""
    model, eos = tiny_model(), tiny_tokenizer.eos_token_id
    with_eos, without = question([1, 5, 6], [7, eos]), question([1, 5, 6], [7])
    first, second = norms(model, [with_eos, without], stop=[eos], which=BOTH)
    assert first["mean_norm"] == pytest.approx(second["mean_norm"], rel=1e-5)
    assert first["global_norm"] != pytest.approx(second["global_norm"], rel=1e-2)
    assert norms(model, [with_eos], which=BOTH)[0]["mean_norm"] != pytest.approx(first["mean_norm"], rel=1e-2)


def test_the_model_is_as_it_was_between_results_and_after(tiny_model, questions):
    model = tiny_model()
    for i, parameter in enumerate(model.parameters()):
        parameter.requires_grad_(i % 2 == 0)
        parameter.grad = torch.full_like(parameter, 3.0) if i % 3 == 0 else None
    needed = [p.requires_grad for p in model.parameters()]
    before = copy.deepcopy(model.state_dict())

    def check():
        assert [p.requires_grad for p in model.parameters()] == needed
        for i, parameter in enumerate(model.parameters()):
            assert (parameter.grad is None) == (i % 3 != 0)
            assert parameter.grad is None or bool((parameter.grad == 3).all())
        for name, values in model.state_dict().items():
            assert torch.equal(values, before[name])

    with torch.no_grad():  # as evaluation calls it
        for results in gradient_norms(model, questions, done=lambda n: None, which=BOTH):
            check()
            assert math.isfinite(results[0][1]["global_norm"])
    check()
    assert norms(model, questions) == norms(tiny_model(), questions)  # frozen parameters count


def test_an_exception_puts_requires_grad_back(tiny_model, questions):
    model = tiny_model().requires_grad_(False)

    def fail(*args):
        raise RuntimeError("full")

    handle = model.lm_head.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="full"):
        norms(model, questions)
    handle.remove()
    assert not any(p.requires_grad for p in model.parameters())


def test_tied_weights_count_once(tiny_tokenizer, questions):
    """GPT-2 ties head and embedding: their gradients add up in one tensor, which has one norm."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=len(tiny_tokenizer), n_embd=32, n_layer=1, n_head=2, n_positions=256,
            tie_word_embeddings=True,
        )  # fmt: skip
        model = GPT2LMHeadModel(config).eval()
    assert model.lm_head.weight is model.transformer.wte.weight
    assert sum(p is model.lm_head.weight for p in base_parameters(model)) == 1
    [found] = norms(model, questions[:1], which=BOTH)
    assert found == pytest.approx(plain(model, questions[0]), rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"modules_to_save": ["lm_head"]}, {"lora_bias": True}])
def test_an_adapter_scores_as_its_merged_model(tiny_model, tiny_tokenizer, questions, options):
    """dL/dW through W x + s B A x is dL/dW' of the merged W' = W + s B A; A and B do not count."""
    from peft import LoraConfig, get_peft_model

    base = tiny_model()
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    base.config.tie_word_embeddings = False  # a merge parts tied weights
    if "lora_bias" in options:  # it is merged into a bias that the layer must have
        for layer in base.model.layers:
            layer.mlp.down_proj.bias = torch.nn.Parameter(torch.zeros(layer.mlp.down_proj.out_features))
    targets = ["down_proj"] if "lora_bias" in options else ["q_proj", "down_proj", "embed_tokens"]
    without = norms(base, questions)
    config = LoraConfig(r=4, lora_alpha=32, target_modules=targets, init_lora_weights=False, **options)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = get_peft_model(base, config).eval()
        for name, parameter in model.named_parameters():
            if "modules_to_save" in name:
                parameter.data += 0.1 * torch.randn_like(parameter)
    needed = {name: p.requires_grad for name, p in model.named_parameters()}
    found = norms(model, questions, which=BOTH)
    assert needed == {name: p.requires_grad for name, p in model.named_parameters()}
    assert not any("lora_" in name for name in names_of(model, base_parameters(model)))
    with model.disable_adapter():
        assert [one["global_norm"] for one in norms(model, questions)] == pytest.approx(
            [one["global_norm"] for one in without], rel=1e-5
        )
    merged = norms(copy.deepcopy(model).merge_and_unload(), questions, which=BOTH)
    for one, other, old in zip(found, merged, without, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
        assert one["global_norm"] != pytest.approx(old["global_norm"], rel=1e-2)


def names_of(model, parameters):
    chosen = {id(p) for p in parameters}
    return [name for name, p in model.named_parameters() if id(p) in chosen]


def test_prompt_tuning_has_no_parameters_of_its_own(tiny_model, questions):
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(
        tiny_model(), PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    ).eval()
    assert len(base_parameters(model)) == len(list(tiny_model().parameters()))


def test_half_precision_is_summed_in_float32(tiny_model, questions):
    """A norm rounded to bfloat16 is off by up to 2^-9 = 0.2 %."""
    model = tiny_model().bfloat16()
    full = norms(tiny_model(), questions, which=BOTH)
    for question, one, other in zip(questions, norms(model, questions, which=BOTH), full, strict=True):
        assert one == pytest.approx(other, rel=0.03)
        assert one == pytest.approx(plain(model, question), rel=1e-4)


def test_what_cannot_be_scored_is_nan(tiny_model, tiny_tokenizer):
    model, eos = tiny_model(), tiny_tokenizer.eos_token_id
    room = model.config.max_position_embeddings
    cases = {
        "no answer": question([1, 5], []),
        "one token, nothing before it": question([], [5]),
        "too long": question([1], [5] * room),
    }
    for name, found in zip(cases, norms(model, list(cases.values()), which=BOTH), strict=True):
        assert all(math.isnan(value) for value in found.values()), name
    just_eos, fits = norms(
        model, [question([1, 5], [eos]), question([1], [5] * (room - 1))], stop=[eos], which=BOTH
    )
    assert math.isnan(just_eos["mean_norm"])
    assert math.isfinite(just_eos["global_norm"])
    assert math.isfinite(fits["global_norm"])


def test_an_unknown_norm_is_refused(tiny_model):
    with pytest.raises(ValueError, match="l1_norm"):
        list(gradient_norms(tiny_model(), [], done=lambda n: None, which=["l1_norm"]))


def test_a_model_without_gradients_is_refused(tiny_model, questions):
    model = tiny_model()
    hook = model.lm_head.register_forward_hook(lambda module, args, output: output.detach())
    with pytest.raises(ModelError, match=r"no floating one .* leave gradient_norm out"):
        norms(model, questions[:1])
    hook.remove()


def test_packed_weights_do_not_count(tiny_model, questions):
    """bitsandbytes may keep 4-bit weights under a floating dtype; they are bytes, not numbers."""
    pytest.importorskip("bitsandbytes")
    from bitsandbytes.nn import Linear4bit

    model = tiny_model()
    names = [name for name, _ in model.named_parameters() if not name.endswith("down_proj.weight")]
    for layer in model.model.layers:
        old = layer.mlp.down_proj
        new = Linear4bit(
            old.in_features, old.out_features, bias=False, quant_type="nf4", compute_dtype=torch.float32,
            quant_storage=torch.bfloat16,
        )  # fmt: skip
        new.load_state_dict(old.state_dict())
        layer.mlp.down_proj = new.to("cpu")
    assert names_of(model, base_parameters(model)) == names
    for one in norms(model, questions, which=BOTH):
        assert all(math.isfinite(value) and value > 0 for value in one.values())


def test_all_networks_of_a_combined_model_count(tiny_model, questions):
    """What two networks share has a gradient in each of them, whether or not it lies in one place."""
    model = make_pair(tiny_model())
    expected = [plain(model, one) for one in questions]
    found = norms(model, questions, which=BOTH)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    with served_at(model, 1.5):
        further = norms(model, questions)
    for one, other in zip(found, further, strict=True):
        assert one["global_norm"] != pytest.approx(other["global_norm"], rel=1e-3)
