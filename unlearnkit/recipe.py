"""A recipe file, read into dataclasses: what is trained, on what, how, and how it is measured.

A recipe is one YAML file read from top to bottom. Every key is checked; all mistakes are shown together, one
a line, each with its file and line (or its override) and the nearest valid key.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from unlearnkit.files import fingerprint
from unlearnkit.yamlfile import dump_yaml


@dataclass(frozen=True)
class CreateSpec:
    """A model made from scratch: a small Llama and a tokenizer trained on `tokenizer_streams` (null: all)."""

    hidden_size: int = field(metadata={"least": 1})
    num_layers: int = field(metadata={"least": 1})
    num_heads: int = field(metadata={"least": 1})
    intermediate_size: int | None = field(default=None, metadata={"least": 1})
    vocab_size: int = field(default=4096, metadata={"least": 259})  # 256 bytes and three special tokens
    max_position_embeddings: int = field(default=512, metadata={"least": 1})
    seed: int = 0
    tokenizer_streams: list[str] | None = None


@dataclass(frozen=True)
class ModelSpec:
    """The target model. Exactly one of `path` (folder, hub id, `run:NAME`) and `create` is set.

    `lora` holds keywords of peft's LoraConfig; `alpha` and `dropout` may stand for `lora_alpha` and
    `lora_dropout`.
    """

    path: str | None = None
    create: CreateSpec | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    lora: dict[str, Any] | None = None
    tokenizer: str | None = None
    attn_implementation: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class StreamSpec:
    """One source of examples.

    `rows` is a Python slice such as "::2"; `per_row` makes up to that many examples of a row whose question
    or answer is a list (see `data/lists.py`); `join` makes one text of that many consecutive answers; `limit`
    counts examples after all three. `header` names the columns of a CSV file without a header line.
    """

    path: str | None = None
    name: str | None = None
    split: str = "train"
    columns: dict[str, str] | None = None
    header: list[str] | None = None
    rows: str | None = None
    per_row: int | None = field(default=None, metadata={"least": 1})
    join: int | None = field(default=None, metadata={"least": 1})
    limit: int | None = field(default=None, metadata={"least": 1})
    sample_by: Literal["line", "paragraph", "document"] = "line"
    revision: str | None = None


@dataclass(frozen=True)
class MixSpec:
    """How the streams are mixed. `ratios` maps a stream to its examples per example of the anchor.

    In a recipe the ratios are written as `retain_per_forget: 1`.
    """

    anchor: str | None = "forget"
    ratios: dict[str, float] = field(default_factory=dict, metadata={"hidden": True})
    weights: dict[str, float] | None = None
    temperature: float | None = field(default=None, metadata={"least": 0})
    epoch_size: int | None = field(default=None, metadata={"least": 1})
    epoch_policy: Literal["continue", "restart", "fixed"] = "continue"


@dataclass(frozen=True)
class TemplateSpec:
    """How a prompt and its completion become text: the tokenizer's chat template or plain tags."""

    kind: Literal["auto", "chat", "plain"] = "auto"
    system: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)
    question_start: str = "Question: "
    question_end: str = "\n"
    answer_start: str = "Answer: "
    answer_end: str = ""


@dataclass(frozen=True)
class DocumentsSpec:
    """How streams of documents (`text` rows) are trained on.

    `pack`: an item is a block of whole pieces that fill `max_length` together; `on_disk`: tokens lie on the
    disk and are read when they are needed.
    """

    pack: bool = False
    on_disk: bool = False


@dataclass(frozen=True)
class AlternatesSpec:
    """Alternate answers for the forget set, drawn from the target model before it is trained.

    `prompt` is what a model that follows instructions is asked, with {prompt} and {answer} in it; "instruct"
    stands for the text that ships; null asks the question itself. Of the `per_prompt` answers of a row those
    that are empty, repeated or the true answer are left out.
    """

    per_prompt: int = field(default=5, metadata={"least": 1})
    temperature: float = field(default=1.0, metadata={"least": 0})
    top_p: float = field(default=1.0, metadata={"least": 0})
    prompt: str | None = None
    max_new_tokens: int = field(default=64, metadata={"least": 1})
    seed: int = 0


@dataclass(frozen=True)
class AnnotateSpec:
    """Who finds the risky stretches of texts (see `data/annotators.py`), and of which class they are.

    Exactly one of `names` (a list, or a file with one a line), `patterns` (regular expressions), `classifier`
    (a folder or hub id, with the `label` whose score counts and `thresholds` by class) and `call`
    (package.module:function). `streams`: null for every stream that the method reads.
    """

    names: str | list[str] | None = None
    parts: bool | None = None
    ignore_case: bool | None = None
    patterns: list[str] | None = None
    classifier: str | None = None
    label: str | None = None
    thresholds: dict[str, float] | None = None
    call: str | None = None
    risk: str | None = None
    streams: list[str] | None = None


@dataclass(frozen=True)
class DataSpec:
    """The streams by name (each a list of sources, concatenated), and how they become examples.

    `annotate`: who finds risky stretches in them. `alternates`: the target model writes alternate answers to
    the forget set before it is trained. `documents`: how documents are trained on. `max_length` is in tokens.
    `root` (a folder, a hub id, `fictional`) serves streams that have only a name.
    """

    streams: dict[str, list[StreamSpec]] = field(default_factory=dict)
    root: str | None = None
    mix: MixSpec = field(default_factory=MixSpec)
    template: TemplateSpec = field(default_factory=TemplateSpec)
    annotate: list[AnnotateSpec] | None = None
    alternates: AlternatesSpec | None = None
    documents: DocumentsSpec | None = None
    max_length: int = field(default=512, metadata={"least": 2})
    truncate: bool = False
    allow_overlap: bool = False


@dataclass(frozen=True)
class ServingSpec:
    """What a combined model (ULD's pair, say) is served with; null: as the method does by default.

    No setting here changes what is trained.
    """

    alpha: float | None = None
    top_logit_filter: float | None = field(default=None, metadata={"least": 0})


@dataclass(frozen=True)
class EvaluationSpec:
    """What is measured after training; `suite: null` (or `evaluation: null`) measures nothing.

    `reference` is the retain model, its run or its evaluation folder (path or `run:NAME`); `data` overrides
    the suite's own data section; `batch_tokens` bounds the padded tokens of a batch; `before`: measure the
    target model too; `also`: further suites; `attacks`: by name, with options (or a list of names), tried on
    the models of `attack_roles`.

    While training, `every` ("50 steps", "epoch") runs the suite `during` on `during_limit` examples a set;
    `keep` and `stop` are rules over its metrics (see `training/selection.py`). `alphas`: the strengths at
    which a combined model is measured besides its own, all from the same forward passes.
    """

    suite: str | None = "tofu"
    split: str | None = None
    reference: str | None = None
    data: dict[str, Any] = field(default_factory=dict)
    batch_tokens: int = field(default=16384, metadata={"least": 1})
    max_new_tokens: int | None = field(default=None, metadata={"least": 1})
    before: bool = True
    also: list[str] = field(default_factory=list)
    attacks: dict[str, dict[str, Any]] = field(default_factory=dict)
    attack_roles: list[Literal["unlearned", "retain", "target"]] = field(
        default_factory=lambda: ["unlearned", "retain"]
    )
    every: str | None = None
    during: str | None = None
    during_limit: int | None = field(default=100, metadata={"least": 1})
    keep: dict[str, Any] | None = None
    stop: dict[str, Any] | None = None
    alphas: list[float] = field(default_factory=list)

    @property
    def chooses(self) -> bool:
        """Whether a rule over metrics decides which weights are kept."""
        return self.keep is not None or self.stop is not None


#: With a rule that chooses among checkpoints, all that decides the numbers it goes by.
CHOOSING = (
    "every", "during", "during_limit", "keep", "stop", "suite", "split", "data", "reference",
    "max_new_tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Recipe:
    """A whole experiment. `name` is its own, else that of its file ("tofu/npo"); `source` is that file."""

    method: str
    model: ModelSpec
    data: DataSpec
    name: str
    training: dict[str, Any] = field(default_factory=dict)
    evaluation: EvaluationSpec = field(default_factory=EvaluationSpec)
    serving: ServingSpec | None = None
    needs: list[str] = field(default_factory=list)
    output: str | None = None
    seed: int = 0
    source: Path | None = field(default=None, compare=False)

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe as plain values: defaults written out, nulls that mean "not set" left out."""
        result: dict[str, Any] = _plain(self)
        serving = result.pop("serving", None)
        del result["data"], result["training"], result["evaluation"]
        data = _plain(self.data)
        streams = {
            name: _plain(specs[0]) if len(specs) == 1 else [_plain(spec) for spec in specs]
            for name, specs in self.data.streams.items()
        }
        mix = _plain(self.data.mix)
        for stream, ratio in mix.pop("ratios").items():
            mix[f"{stream}_per_{self.data.mix.anchor}"] = ratio
        settings = {key: value for key, value in data.items() if key not in ("streams", "mix")}
        result["data"] = {**streams, "mix": mix, **settings}
        served = {} if serving is None else {"serving": serving}
        return result | {"training": dict(self.training), **served, "evaluation": _plain(self.evaluation)}

    def to_yaml(self) -> str:
        """The resolved recipe as YAML; loading it gives an equal recipe."""
        return dump_yaml(self.to_dict())

    @property
    def fingerprint(self) -> str:
        """Equal for recipes that do the same; the name and the output folder do not count."""
        return self._fingerprint("name", "output")

    @property
    def training_fingerprint(self) -> str:
        """Equal for recipes that train the same; what is measured afterwards does not count.

        What is measured during training counts where it decides which weights are kept (`keep`, `stop`).
        """
        chosen = {}
        if self.evaluation.chooses:
            chosen = {f"evaluation.{key}": getattr(self.evaluation, key) for key in CHOOSING}
        return self._fingerprint("name", "output", "evaluation", "serving", "needs", **chosen)

    def _fingerprint(self, *ignored: str, **further: Any) -> str:
        kept = {key: value for key, value in self.to_dict().items() if key not in ignored}
        return fingerprint({**kept, **further})


def _plain(spec: Any) -> Any:
    """A dataclass as a dictionary, without the fields that are null by default and null still."""
    if isinstance(spec, list):
        return [_plain(item) for item in spec]
    if not dataclasses.is_dataclass(spec):
        return spec
    pairs = ((one, getattr(spec, one.name)) for one in dataclasses.fields(spec) if one.name != "source")
    return {one.name: _plain(value) for one, value in pairs if value is not None or one.default is not None}


def load_recipe(
    name_or_path: str | Path, overrides: Sequence[str] = (), *, check_training: bool = True
) -> Recipe:
    """Read and check a recipe.

    Args:
        name_or_path: a shipped recipe's name ("tofu/npo") or the path of a YAML file.
        overrides: dotted settings with YAML values ("training.beta=0.05", "model.lora={r: 8}").
        check_training: also check `training` against the method's Config and `model.lora` against peft, which
            imports both.

    Raises:
        RecipeError: every mistake found, one a line, each with its `file:line` or its override.
    """
    from unlearnkit.recipe_reader import read_recipe

    return read_recipe(name_or_path, overrides, check_training=check_training)
