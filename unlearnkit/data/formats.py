"""Rows -> `input_ids` and `labels`: the only place where text becomes tokens.

Labels are -100 on the prompt and equal to `input_ids` on the answer and on one EOS. They are not shifted here
(see `training/logprobs.py`). How a prompt and an answer are written as one text is said in
`data/template.py`.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from unlearnkit.data.cells import answer_text, listed_rows
from unlearnkit.data.encoding import Tokens, encode_document, encode_pair, pieces
from unlearnkit.data.encoding import tokenize_pair as tokenize_pair
from unlearnkit.data.spans import Span, placed, spans_of
from unlearnkit.data.template import Template as Template
from unlearnkit.data.token_rows import IGNORE as IGNORE
from unlearnkit.data.token_rows import Chosen as Chosen
from unlearnkit.data.token_rows import Tokenized as Tokenized
from unlearnkit.data.token_rows import TokenRow as TokenRow
from unlearnkit.data.token_stats import ExampleStats, Selector, combined, reads_text
from unlearnkit.errors import DataError

logger = logging.getLogger(__name__)


def prompt_and_answer(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """The prompt and the answer of a canonical row; of `messages` the last assistant turn is the answer."""
    if row.get("messages"):
        messages = row["messages"]
        if messages[-1]["role"] != "assistant":
            raise DataError(
                f"example {row['example_id']} ends with a {messages[-1]['role']} message; the last "
                "must be the assistant's"
            )
        if len(messages) < 2:
            raise DataError(
                f"example {row['example_id']} has no message before the assistant's; put the question there"
            )
        return list(messages[:-1]), messages[-1]["content"]
    return row["prompt"], row["completion"]


def text_to_learn(row: Mapping[str, Any]) -> str:
    """What a canonical row teaches, in which its spans lie: its text, or what its answer says."""
    if row.get("text") is not None and "prompt" not in row:
        return str(row["text"])
    return answer_text(prompt_and_answer(row)[1])


def with_answer(row: Mapping[str, Any], answer: Any) -> dict[str, Any]:
    """The same question under the same `example_id` with another answer, as `prompt` and `completion`.

    Args:
        row: a canonical row of any shape with a prompt.
        answer: text, or messages of which the last is the answer.

    Raises:
        DataError: a `text` row, which asks nothing.
    """
    if not row.get("messages") and row.get("prompt") is None:
        raise DataError(
            f"example {row['example_id']} is a text without a prompt, so it cannot get another answer; give "
            "its stream prompt and completion, or messages"
        )
    prompt = row["messages"][:-1] if row.get("messages") else row["prompt"]
    return {"example_id": row["example_id"], "prompt": prompt, "completion": answer}


class Tokenizer:
    """Makes token rows of canonical rows, one after the other, and counts what happens to them.

    Args:
        tokenizer: a tokenizer with an EOS.
        template: how a prompt and an answer are written.
        max_length: tokens at most in one example; `text` rows that are longer become several examples.
        truncate: cut an answer that does not fit instead of refusing it.
        name: the stream's, for messages.
        selectors: of the data, which choose among the targets.
    """

    def __init__(
        self, tokenizer: Any, template: Template, *, max_length: int, truncate: bool = False,
        name: str = "data", selectors: Sequence[Selector] = (),
    ) -> None:  # fmt: skip
        self.tokenizer, self.template = tokenizer, template
        self.max_length, self.truncate, self.name = max_length, truncate, name
        self.selectors = tuple(selectors)
        self.reads_text = reads_text(self.selectors)
        self.chosen = Chosen()
        self.split_rows = self.cut_rows = 0
        self.longest = 0
        self._number = 0
        self._too_long: list[tuple[int, int]] = []
        self._special_ids = frozenset(getattr(tokenizer, "all_special_ids", ()) if self.selectors else ())

    def rows(self, row: Mapping[str, Any]) -> list[TokenRow]:
        """The examples of one canonical row: one, several of a long `text`, none of an answer that is too
        long (see `finish`).

        Raises:
            DataError: spans that do not fit the text.
            ModelError: a tokenizer without offsets where they are needed.
        """
        self._number += 1
        if row.get("text") is not None and "prompt" not in row:
            tokens = encode_document(self.tokenizer, row["text"], offsets=self.reads_text)
            return self.document(row, tokens)
        return self._answered(row)

    def document(self, row: Mapping[str, Any], tokens: Tokens) -> list[TokenRow]:
        """The examples of a `text` row whose tokens are known: pieces of which all but the first token are
        targets."""
        cuts = pieces(len(tokens), self.max_length)
        spans = spans_of(row, row["text"]) if self.reads_text else ()
        made = []
        for number, (start, end) in enumerate(cuts):
            name = row["example_id"] if len(cuts) == 1 else f"{row['example_id']}/{number}"
            piece = tokens[start:end]
            made.append(self._example(name, piece, [IGNORE, *piece.ids[1:]], row["text"], spans))
        return made

    def _answered(self, row: Mapping[str, Any]) -> list[TokenRow]:
        prompt, answer = prompt_and_answer(row)
        texts = self.template.texts(self.tokenizer, prompt, answer)
        prompt_tokens, answer_tokens, is_prefix = encode_pair(
            self.tokenizer, *texts, chat=self.template.chat, offsets=self.reads_text
        )
        self.split_rows += not is_prefix
        length = len(prompt_tokens) + len(answer_tokens)
        if length > self.max_length:
            # An answer of which nothing would be left is refused even when cutting is allowed.
            if not self.truncate or len(prompt_tokens) >= self.max_length:
                self._too_long.append((self._number - 1, length))
                return []
            answer_tokens = answer_tokens[: self.max_length - len(prompt_tokens)]
            self.cut_rows += 1
        labels = [IGNORE] * len(prompt_tokens) + answer_tokens.ids
        specials = self.tokenizer.all_special_tokens if self.reads_text else ()
        spans = placed(row, answer, texts, specials) if self.reads_text else ()
        tokens = prompt_tokens + answer_tokens
        return [self._example(row["example_id"], tokens, labels, "".join(texts), spans)]

    def _example(
        self, name: str, tokens: Tokens, labels: list[int], text: str, spans: Sequence[Span]
    ) -> TokenRow:
        row = TokenRow(example_id=name, input_ids=tokens.ids, labels=labels)
        self.longest = max(self.longest, len(tokens))
        if self.selectors:
            stats = ExampleStats(name, tokens, labels, self._special_ids, text, spans)
            self.chosen.add(choose(row, self.selectors, stats))
        return row

    def finish(self, count: int) -> None:
        """After the last row, of which `count` examples were made.

        Raises:
            DataError: answers that did not fit, named by row with their lengths; no example at all; nothing
                left to learn.
        """
        _refuse_long(self._too_long, self.max_length, self.name, self.truncate)
        if not count:
            raise DataError(f"data.{self.name} has no rows; give it at least one example")
        if not self.selectors:
            return
        if not self.chosen.learned and not self.chosen.unlearned:
            raise DataError(
                f"data.{self.name}: of {self.chosen.candidates} target tokens none is left to learn; "
                "choose fewer of them to be dropped"
            )
        found = [remark(self.longest) for one in self.selectors if (remark := getattr(one, "remark", None))]
        found += [
            remark(self.chosen.risks)
            for one in self.selectors
            if (remark := getattr(one, "remark_risks", None))
        ]
        self.chosen.remarks = [f"data.{self.name}: {text}" for text in found if text]
        if empty := self.chosen.without_target:
            self.chosen.remarks.append(
                f"data.{self.name}: {empty} of {count} examples are left without any token to learn"
            )
        if safe := self.chosen.without_risk:
            self.chosen.remarks.append(f"data.{self.name}: {safe} of {count} examples hold nothing risky")
        for text in self.chosen.remarks:
            logger.warning("%s", text)


def choose(row: TokenRow, selectors: Sequence[Selector], stats: ExampleStats) -> Chosen:
    """Take what selectors drop out of the row's labels, mark what they unlearn, and count.

    Raises:
        ValueError: a weight that is neither 0 nor 1; only what reads the model may weigh tokens.
    """
    weights = combined(selectors, stats)
    learn, unlearn = weights.learn.tolist(), weights.unlearn.tolist()
    if not {*learn, *unlearn} <= {0.0, 1.0}:
        raise ValueError("selectors of the data drop, learn or unlearn a token, and give weights of 0 or 1")
    if any(unlearn) and not any(getattr(one, "unlearns", False) for one in selectors):
        raise ValueError("a selector unlearns tokens, but it has no attribute `unlearns` that says so")
    marks = [0] * len(row["input_ids"])
    where = stats.places.tolist()
    for place, learned, unlearned in zip(where, learn, unlearn, strict=True):
        if unlearned:
            marks[place] = 1
        elif not learned:
            row["labels"][place] = IGNORE
    row["unlearn"], row["candidates"] = marks, len(where)
    kept, removed = int(sum(learn)), int(sum(unlearn))
    chosen = Chosen(len(where), kept, removed, int(kept + removed == 0))
    if stats.knows_risks:
        chosen.risks = Counter(risk for risk in stats.risks if risk)
        chosen.without_risk = int(not chosen.risks)
    return chosen


def tokenize_stream(
    rows: Iterable[Mapping[str, Any]],
    tokenizer: Any,
    template: Template,
    *,
    max_length: int,
    truncate: bool = False,
    name: str = "data",
    selectors: Sequence[Selector] = (),
) -> Tokenized:
    """Tokenise canonical rows (see `Tokenizer`).

    Raises:
        DataError: an answer that does not fit, named by row with its length; spans that do not fit.
    """
    maker = Tokenizer(
        tokenizer, template, max_length=max_length, truncate=truncate, name=name, selectors=selectors
    )
    made = [example for row in rows for example in maker.rows(row)]
    maker.finish(len(made))
    return Tokenized(
        made, maker.split_rows, maker.cut_rows, [len(r["input_ids"]) for r in made],
        maker.chosen if maker.selectors else None,
    )  # fmt: skip


def _refuse_long(too_long: list[tuple[int, int]], max_length: int, name: str, truncate: bool) -> None:
    if too_long:
        listed = ", ".join(f"row {n} has {length} tokens" for n, length in too_long[:3])
        longest = max(length for _, length in too_long)
        also = ", or data.truncate: true to cut the answers"
        if truncate:
            also = "; cutting would leave nothing of their answers, and prompts are not cut"
        raise DataError(
            f"data.{name}: {len(too_long)} example(s) do not fit data.max_length={max_length} ({listed}); "
            f"set data.max_length to {longest} or more{also}"
        )


def refuse_equal_pairs(chosen: Tokenized, rejected: Tokenized, name: str, max_length: int) -> None:
    """Refuse preference pairs whose two sides are the same tokens, as they are where cutting removed the
    difference.

    Args:
        chosen: rows aligned with those of `rejected`.
        name: the stream's name, for messages.
        max_length: the bound at which rows were cut.

    Raises:
        DataError: names the first pairs by number.
    """
    sides = enumerate(zip(chosen.rows, rejected.rows, strict=True))
    same = [(n, len(one["input_ids"])) for n, (one, other) in sides if one["input_ids"] == other["input_ids"]]
    if same:
        cut = any(length >= max_length for _, length in same)
        remedy = f"data.max_length={max_length} cuts off where they differ, so raise it" if cut else (
            "they differ only in what the template or the tokenizer drops, so write another answer"
        )  # fmt: skip
        raise DataError(
            f"data.{name}: {len(same)} pair(s) have a chosen and a rejected answer of the same tokens "
            f"({listed_rows([n for n, _ in same])}); {remedy}, or remove the pair(s)"
        )
