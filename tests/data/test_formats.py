"""Text -> tokens: masks by prefix, exactly one EOS after an answer, what does not fit is named."""

from __future__ import annotations

import copy

import datasets
import pytest
from tokenizers.processors import TemplateProcessing

from unlearnkit.data.columns import canonical
from unlearnkit.data.formats import IGNORE, Template, prompt_and_answer, tokenize_pair, tokenize_stream
from unlearnkit.errors import DataError, ModelError
from unlearnkit.recipe import TemplateSpec


@pytest.fixture(scope="module")
def rows(fictional_rows):
    return canonical(datasets.Dataset.from_list(fictional_rows("forget10_perturbed"))).to_list()


@pytest.fixture
def tokenizers(tiny_tokenizer, chat_tokenizer):
    """Every way of writing an example, by name."""
    automatic = copy.deepcopy(tiny_tokenizer)  # puts BOS and EOS around every text, as some tokenizers do
    special = [
        (t, tiny_tokenizer.convert_tokens_to_ids(t))
        for t in (tiny_tokenizer.bos_token, tiny_tokenizer.eos_token)
    ]
    automatic.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{special[0][0]} $A {special[1][0]}", special_tokens=special
    )
    padless = copy.deepcopy(tiny_tokenizer)
    padless.pad_token = None
    pad_is_eos = copy.deepcopy(tiny_tokenizer)
    pad_is_eos.pad_token = pad_is_eos.eos_token
    return {
        "plain": tiny_tokenizer, "plain, BOS and EOS added": automatic, "plain, no pad": padless,
        "plain, pad is EOS": pad_is_eos, "llama": chat_tokenizer("llama"), "qwen": chat_tokenizer("qwen"),
    }  # fmt: skip


KINDS = ["plain", "plain, BOS and EOS added", "plain, no pad", "plain, pad is EOS", "llama", "qwen"]


def tokenized(tokenizer, rows, spec=None, **options):
    template = Template.for_tokenizer(tokenizer, spec)
    return tokenize_stream(rows, tokenizer, template, **{"max_length": 256, **options})


def answer_of(row):
    return [label for label in row["labels"] if label != IGNORE]


@pytest.mark.parametrize("kind", KINDS)
def test_labels_are_the_answer_and_one_eos(tokenizers, rows, kind):
    tokenizer = tokenizers[kind]
    out = tokenized(tokenizer, rows)
    assert out.split_rows == out.cut_rows == 0
    for row, source in zip(out.rows, rows, strict=True):
        masked = row["labels"].count(IGNORE)
        assert row["labels"] == [IGNORE] * masked + row["input_ids"][masked:], "-100 on the prompt alone"
        answer = answer_of(row)
        assert tokenizer.decode(answer[:-1]).strip() == source["completion"]
        assert answer.count(tokenizer.eos_token_id) == 1
        assert answer[-1] == tokenizer.eos_token_id
        asked = tokenizer.decode(row["input_ids"][:masked])
        assert source["prompt"] in asked
        assert source["completion"] not in asked
        assert row["example_id"] == source["example_id"]


@pytest.mark.parametrize("kind", KINDS)
def test_masks_agree_with_character_offsets(tokenizers, rows, kind):
    """Another way to the same mask: tokenise the whole text once, and look where each token starts."""
    tokenizer = tokenizers[kind]
    template = Template.for_tokenizer(tokenizer)
    for row, source in zip(tokenized(tokenizer, rows).rows, rows, strict=True):
        if template.chat:
            messages = [{"role": "user", "content": source["prompt"]}]
            prompt = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            whole = prompt + source["completion"] + tokenizer.eos_token
        else:
            prompt = f"Question: {source['prompt']}\nAnswer:"
            whole = f"{prompt} {source['completion']}{tokenizer.eos_token}"
        plain = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        bos = [tokenizer.bos_token_id] if "BOS" in kind else []
        assert row["input_ids"] == bos + plain["input_ids"]
        starts = [start for start, _ in plain["offset_mapping"]]
        expected = [
            i if start >= len(prompt) else IGNORE for i, start in zip(plain["input_ids"], starts, strict=True)
        ]
        assert row["labels"] == [IGNORE] * len(bos) + expected


def test_masks_agree_with_trl(tiny_model, chat_tokenizer, rows, tmp_path):
    """TRL's SFTTrainer on the same chat; its mask ends with the template's end-of-turn token too."""
    from trl import SFTConfig, SFTTrainer

    tokenizer = chat_tokenizer("llama")
    data = datasets.Dataset.from_list(
        [
            {"prompt": [{"role": "user", "content": r["prompt"]}],
             "completion": [{"role": "assistant", "content": r["completion"]}]}
            for r in rows
        ]
    )  # fmt: skip
    config = SFTConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True, bf16=False, max_length=256,
                       gradient_checkpointing=None)  # fmt: skip
    trainer = SFTTrainer(model=tiny_model(), args=config, train_dataset=data, processing_class=tokenizer)
    for row, theirs in zip(tokenized(tokenizer, rows).rows, trainer.train_dataset, strict=True):
        assert row["input_ids"] == list(theirs["input_ids"])
        assert row["labels"] == list(theirs["labels"])


def test_generation_starts_where_the_labels_start(tokenizers, rows):
    for kind in KINDS:
        tokenizer = tokenizers[kind]
        template = Template.for_tokenizer(tokenizer)
        for row in rows:
            right = template.texts(tokenizer, row["prompt"], row["completion"])
            wrong = template.texts(tokenizer, row["prompt"], row["perturbed_answer"][0])
            assert right[0] == wrong[0]
            prompts = [tokenize_pair(tokenizer, *texts, chat=template.chat)[0] for texts in (right, wrong)]
            assert prompts[0] == prompts[1]


def test_a_merge_across_the_border_splits_the_text(tiny_tokenizer):
    """The answer goes on inside a word of the prompt: its first token would swallow the prompt's last."""
    whole = tiny_tokenizer("Answer").input_ids
    assert len(whole) == 1, "one token in this vocabulary"
    prompt, answer, is_prefix = tokenize_pair(tiny_tokenizer, "Answ", "er", chat=False)
    assert not is_prefix
    assert prompt == tiny_tokenizer("Answ").input_ids
    assert answer == [*tiny_tokenizer("er").input_ids, tiny_tokenizer.eos_token_id]
    row = {"example_id": "a", "prompt": "q", "completion": "er"}
    spec = TemplateSpec(question_start="", question_end="\n", answer_start="Answ")
    assert tokenized(tiny_tokenizer, [row], spec).split_rows == 1


def test_a_turn_that_ends_with_eos_keeps_it(chat_tokenizer):
    """A template without a generation prompt: the EOS after the question belongs to the question."""
    tokenizer = chat_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{{ eos_token }}{% endfor %}"
    )
    row = tokenized(tokenizer, [{"example_id": "a", "prompt": "Who?", "completion": "Ana."}]).rows[0]
    eos = tokenizer.eos_token_id
    masked = row["labels"].count(IGNORE)
    assert row["input_ids"][masked - 1] == eos
    assert answer_of(row).count(eos) == 1
    assert tokenizer.decode(answer_of(row)[:-1]) == "<assistant>Ana."


def test_a_generation_prompt_unlike_the_turn(chat_tokenizer):
    """Thinking models open a block that finished turns lack: the prompt that generation sees is kept."""
    tokenizer = chat_tokenizer("qwen")
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<|assistant|>\n{% endif", "<|assistant|>\n<think>\n{% endif"
    )
    row = tokenized(tokenizer, [{"example_id": "a", "prompt": "Who?", "completion": "Ana."}]).rows[0]
    assert tokenizer.decode(row["input_ids"]).endswith(f"<|assistant|>\n<think>\nAna.{tokenizer.eos_token}")
    assert tokenizer.decode(answer_of(row)) == f"Ana.{tokenizer.eos_token}"


@pytest.mark.parametrize("kind", ["plain", "llama", "qwen"])
def test_messages_and_strings_are_the_same_example(tokenizers, kind):
    user, assistant = {"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ana."}
    shapes = [
        {"prompt": "Who?", "completion": "Ana."},
        {"prompt": [user], "completion": [assistant]},
        {"messages": [user, assistant]},
    ]
    ids = [tokenized(tokenizers[kind], [{"example_id": "a", **row}]).rows[0] for row in shapes]
    assert ids[0] == ids[1] == ids[2]


def test_several_turns_and_a_system_message(tokenizers):
    turns = [
        ("system", "Be brief."),
        ("user", "One?"),
        ("assistant", "Yes."),
        ("user", "Two?"),
        ("assistant", "No."),
    ]
    row = {"example_id": "a", "messages": [{"role": r, "content": c} for r, c in turns]}
    spec = TemplateSpec(system="Ignored: the row has its own.")
    plain, chat = (tokenized(tokenizers[kind], [row], spec).rows[0] for kind in ("plain", "llama"))
    decode, eos = tokenizers["plain"].decode, tokenizers["plain"].eos_token
    assert decode(plain["input_ids"]) == (
        f"Be brief.\nQuestion: One?\nAnswer: Yes.\nQuestion: Two?\nAnswer: No.{eos}"
    )
    assert decode(answer_of(plain)) == f" No.{eos}"
    assert decode(answer_of(chat)) == f"No.{eos}", "only the last turn is learned"
    assert "Ignored" not in decode(chat["input_ids"])
    alone = {"example_id": "a", "prompt": "Two?", "completion": "No."}
    for kind in ("plain", "qwen"):
        text = decode(
            tokenized(tokenizers[kind], [alone], TemplateSpec(system="Be brief.")).rows[0]["input_ids"]
        )
        assert text.index("Be brief.") < text.index("Two?")


@pytest.mark.parametrize(
    ("messages", "parts"),
    [
        (
            [{"role": "user", "content": "x"}],
            "example abc ends with a user message; the last must be the assistant's",
        ),
        ([{"role": "assistant", "content": "x"}], "example abc has no message before the assistant's"),
    ],
)
def test_messages_without_an_answer_or_a_question(messages, parts):
    with pytest.raises(DataError, match=parts):
        prompt_and_answer({"example_id": "abc", "messages": messages})


# Length


def test_what_does_not_fit_is_refused_by_row(tiny_tokenizer, rows):
    lengths = tokenized(tiny_tokenizer, rows).lengths
    limit = sorted(lengths)[-2]
    worst = lengths.index(max(lengths))
    with pytest.raises(DataError, match=r"^data\.forget: 1 example\(s\) do not fit") as caught:
        tokenized(tiny_tokenizer, rows, max_length=limit, name="forget")
    assert f"data.max_length={limit} (row {worst} has {max(lengths)} tokens)" in str(caught.value)
    assert f"set data.max_length to {max(lengths)} or more, or data.truncate: true" in str(caught.value)
    assert tokenized(tiny_tokenizer, rows, max_length=max(lengths)).cut_rows == 0


def test_truncation_cuts_answers_only(tiny_tokenizer, rows):
    whole = tokenized(tiny_tokenizer, rows)
    limit = max(r["labels"].count(IGNORE) for r in whole.rows) + 2
    cut = tokenized(tiny_tokenizer, rows, max_length=limit, truncate=True)
    assert cut.cut_rows == sum(n > limit for n in whole.lengths) > 0
    for short, full in zip(cut.rows, whole.rows, strict=True):
        assert short["input_ids"] == full["input_ids"][:limit]
        assert short["labels"] == full["labels"][:limit]
        assert short["labels"][-1] != IGNORE
    with pytest.raises(DataError, match="do not fit"):
        tokenized(tiny_tokenizer, rows, max_length=5, truncate=True)


@pytest.mark.parametrize("max_length", [2, 3, 7, 8, 9, 50])
def test_long_documents_come_in_pieces(tiny_tokenizer, max_length):
    text = "Ana Bo lived in Lund and wrote elegies, and nobody read them."
    ids = [*tiny_tokenizer(text).input_ids, tiny_tokenizer.eos_token_id]
    out = tokenized(tiny_tokenizer, [{"example_id": "doc", "text": text}], max_length=max_length)
    joined = [i for row in out.rows for i in row["input_ids"]]
    lone = len(ids) % max_length == 1 and len(ids) > max_length
    assert joined == (ids[:-1] if lone else ids)
    assert all(row["labels"] == [IGNORE, *row["input_ids"][1:]] for row in out.rows)
    assert all(2 <= n <= max_length for n in out.lengths)
    assert out.num_target_tokens == len(joined) - len(out.rows)
    names = [row["example_id"] for row in out.rows]
    assert names == (["doc"] if len(names) == 1 else [f"doc/{i}" for i in range(len(names))])


def test_nothing_to_tokenise(tiny_tokenizer):
    with pytest.raises(DataError, match=r"data\.forget has no rows"):
        tokenized(tiny_tokenizer, [], name="forget")


# Tokenizers and templates


def test_tokenizers_that_lack_something(tiny_tokenizer, chat_tokenizer):
    with pytest.raises(ModelError, match="kind is chat, but the tokenizer has no chat template; use plain"):
        Template.for_tokenizer(tiny_tokenizer, TemplateSpec(kind="chat"))
    endless = copy.deepcopy(tiny_tokenizer)
    endless.eos_token = None
    with pytest.raises(ModelError, match="no EOS token"):
        Template.for_tokenizer(endless)
    assert not Template.for_tokenizer(tiny_tokenizer).chat
    assert Template.for_tokenizer(chat_tokenizer()).chat
    assert not Template.for_tokenizer(chat_tokenizer(), TemplateSpec(kind="plain")).chat


def test_fingerprints_name_tokens_and_labels(tiny_tokenizer, chat_tokenizer, rows):
    base = tokenized(tiny_tokenizer, rows)
    assert base.fingerprint == tokenized(tiny_tokenizer, rows).fingerprint
    other = TemplateSpec(answer_start="A: ")
    different = [
        tokenized(tiny_tokenizer, rows, other), tokenized(tiny_tokenizer, rows[::-1]),
        tokenized(tiny_tokenizer, rows[1:]), tokenized(chat_tokenizer(), rows),
    ]  # fmt: skip
    assert len({base.fingerprint, *(t.fingerprint for t in different)}) == 5
    assert base.num_tokens == sum(base.lengths)
    templates = [Template.for_tokenizer(tiny_tokenizer, s) for s in (None, other, TemplateSpec(system="x"))]
    assert len({t.fingerprint for t in templates}) == 3


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("kwargs", [{}, {"date_string": "1 Jan 2020"}])
def test_a_prompt_does_not_change_from_day_to_day(chat_tokenizer, kwargs, several):
    """A template that tells the date, as Llama 3's does, tells a fixed one, or the one that is set."""
    tokenizer = chat_tokenizer("llama")
    tokenizer.chat_template = (
        "{% if not date_string is defined %}{% set date_string = strftime_now('%d %b %Y') %}{% endif %}"
        "Today Date: {{ date_string }}\n" + tokenizer.chat_template
    )
    if several:
        tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": "no dates"}
    template = Template.for_tokenizer(tokenizer, TemplateSpec(chat_template_kwargs=kwargs))
    prompt, _ = template.texts(tokenizer, "Who is Ana?", "A writer.")
    assert prompt.startswith(f"Today Date: {kwargs.get('date_string', '26 Jul 2024')}\n")
