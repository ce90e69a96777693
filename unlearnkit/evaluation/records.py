"""Records: what a model said about each example, kept so that metrics never need the model again.

A record is one answer about one example. Likelihood probes write one per (example, answer) pair with the
per-token numbers of the scoring pass; generation probes write one per generated text, with its tokens; others
write one number, and a list of terms has a record for each. Log-probs are natural logarithms. A likelihood
record with `num_tokens` 0 could not be scored: every number read from it is NaN.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd

from unlearnkit.errors import RecordsError, UserError
from unlearnkit.files import atomic_path, read_json, write_json

RECORDS_FILE = "records.parquet"
SUMMARY_FILE = "summary.json"

ANSWER_LIKELIHOOD = "answer_likelihood"
GENERATE_ANSWER = "generate_answer"
SAMPLE_ANSWER = "sample_answer"
CONTINUE_TEXT = "continue_text"
GRADIENT_NORM = "gradient_norm"
JUDGED_LIKELIHOOD = "judged_likelihood"
LIST_TERMS = "list_terms"
LM_EVAL = "lm_eval"

ANSWER = "answer"
PARAPHRASED_ANSWER = "paraphrased_answer"
PERTURBED_ANSWER = "perturbed_answer"
GENERATION = "generation"
SAMPLE = "sample"
CONTINUATION = "continuation"
GLOBAL_NORM = "global_norm"
MEAN_NORM = "mean_norm"
TERM = "term"
#: Probe -> the fields it writes; None: any (a task of lm-evaluation-harness names its own).
FIELDS: dict[str, tuple[str, ...] | None] = {
    ANSWER_LIKELIHOOD: (ANSWER, PARAPHRASED_ANSWER, PERTURBED_ANSWER),
    GENERATE_ANSWER: (GENERATION,),
    SAMPLE_ANSWER: (SAMPLE,),
    CONTINUE_TEXT: (CONTINUATION,),
    GRADIENT_NORM: (GLOBAL_NORM, MEAN_NORM),
    JUDGED_LIKELIHOOD: (GENERATION,),
    LIST_TERMS: (TERM,),
    LM_EVAL: None,
}
PROBES = tuple(FIELDS)
#: Probes whose records hold numbers per token.
SCORED = (ANSWER_LIKELIHOOD, JUDGED_LIKELIHOOD)

# Column -> type on disk. Lists hold one value per label token, the final EOS last; they are empty for
# generations.
COLUMNS = {
    "probe": "string",
    "dataset": "string",  # the suite's name for the data: "forget", "retain", ...
    "example_id": "string",
    "field": "string",
    "index": "int32",  # which of the perturbed answers; 0 otherwise
    "prompt": "string",
    "reference_text": "string",  # the answer that was scored, or the true answer beside a generation
    "text": "string",  # the generation, else null
    "num_tokens": "int32",  # label tokens, EOS included
    "logps": "list<float32>",
    "hits": "list<bool>",
    "means": "list<float32>",
    "variances": "list<float32>",
    "ends_with_eos": "bool",
    "suite": "string",  # name/version of the suite that asked
    "value": "float64",  # a single number about the example: a gradient norm, a task's score
    "tokens": "list<int32>",  # of a generation, EOS left out
    "reference_tokens": "list<int32>",  # the true tokens beside a generation, EOS left out
    "risky": "list<bool>",  # of an answer's tokens: belongs to a term; empty where nobody looked for terms
    "cut_tokens": "int32",  # first tokens of a document that its prompt lacks, the model having no positions
}
#: Columns that records of earlier versions lack, and what they stand for there.
ADDED: dict[str, Any] = {
    "suite": "", "value": float("nan"), "tokens": (), "reference_tokens": (), "risky": (),
    "cut_tokens": 0,
}  # fmt: skip
KEY = ["probe", "dataset", "example_id", "field", "index"]
PER_TOKEN = ("logps", "hits", "means", "variances")


def new_records(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """Make a table of records from dicts; columns left out get their empty value.

    Raises:
        RecordsError: a row has an unknown column, or the table breaks the schema (see `validate`).
    """
    empty: dict[str, Any] = {"index": 0, "text": None, "num_tokens": 0, "ends_with_eos": False, **ADDED}
    empty.update(prompt="", reference_text="")
    filled = []
    for row in rows:
        if unknown := sorted(set(row) - set(COLUMNS)):
            raise RecordsError(f"a record has the unknown column {unknown[0]!r}; use {', '.join(COLUMNS)}")
        filled.append({**empty, **{name: [] for name in PER_TOKEN}, **row})
    frame = pd.DataFrame(filled, columns=list(COLUMNS))
    validate(frame)
    return frame


def validate(frame: pd.DataFrame, where: str = "the records") -> None:
    """Check columns, names, list lengths and that no record appears twice.

    Raises:
        RecordsError: one sentence that names `where`, the first fault found and how to mend it.
    """
    again = "evaluate the model again to rewrite them"
    if missing := [name for name in COLUMNS if name not in frame.columns]:
        raise RecordsError(f"{where} lack the column(s) {', '.join(missing)}; {again}")
    for name in ("probe", "dataset", "example_id", "field", "num_tokens"):
        if frame[name].isna().any():
            raise RecordsError(f"{where} have rows without a value for {name!r}; {again}")
    for probe, rows in frame.groupby("probe", sort=True):
        if str(probe) not in FIELDS:
            raise RecordsError(
                f"{where} name the unknown probe {probe!r} (known: {', '.join(PROBES)}); {again}"
            )
        allowed = FIELDS[str(probe)]
        if allowed is None:
            continue
        if wrong := sorted(set(rows["field"]) - set(allowed)):
            raise RecordsError(
                f"{where} have the field {wrong[0]!r} for {probe} (known: {', '.join(allowed)}); {again}"
            )
    scored = frame[frame["probe"].isin(SCORED)]
    for name in (*PER_TOKEN, "risky"):
        off = scored[name].map(len) != scored["num_tokens"]
        off &= (scored[name].map(len) > 0) | (name != "risky")
        if off.any():
            row = scored[off].iloc[0]
            raise RecordsError(
                f"{where} have {len(row[name])} {name} for the {row['num_tokens']} tokens of example "
                f"{row['example_id']}; {again}"
            )
    if (twice := frame.duplicated(KEY)).any():
        row = frame[twice].iloc[0]
        raise RecordsError(
            f"{where} hold example {row['example_id']} of {row['dataset']!r} ({row['field']} "
            f"{row['index']}) more than once; {again}"
        )


@dataclass
class EvalRun:
    """One evaluation of one model: its records and what is known about it (`summary.json`)."""

    records: pd.DataFrame
    meta: dict[str, Any] = field(default_factory=dict)

    def save(self, folder: str | Path) -> None:
        """Write `records.parquet`, then `summary.json`, each under a temporary name first.

        The summary comes last and holds the hash of the records, so that a run killed in between is noticed.

        Raises:
            RecordsError: the records break the schema.
            UserError: the folder cannot be written or the disk is full.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder = Path(folder)
        validate(self.records)
        try:
            table = pa.Table.from_pandas(self.records, schema=_arrow_schema(), preserve_index=False)
            table = table.replace_schema_metadata(None)  # equal records, equal bytes
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise RecordsError(
                f"the records cannot be written to {folder} ({error}); check their types"
            ) from error
        with atomic_path(folder / RECORDS_FILE) as temporary:
            pq.write_table(table, temporary, compression="zstd")
            digest = _hash(temporary)
        written = {"rows": len(self.records), "hash": digest}
        write_json(folder / SUMMARY_FILE, {**self.meta, "records": written})

    @classmethod
    def load(cls, folder: str | Path) -> EvalRun:
        """Read a folder that `save` wrote.

        Raises:
            RecordsError: a file is missing, half-written, corrupt, of another schema, or the two do not
                belong together.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        path = Path(folder) / RECORDS_FILE
        again = "delete the folder and evaluate the model again"
        if not path.is_file():
            raise RecordsError(f"{path} does not exist; give the folder of a finished evaluation")
        try:
            meta = read_json(path.with_name(SUMMARY_FILE))
        except UserError as error:
            raise RecordsError(f"the evaluation in {folder} is not complete: {error}") from error
        if not isinstance(meta, dict):
            raise RecordsError(f"{path.with_name(SUMMARY_FILE)} does not hold a JSON object; {again}")
        try:
            # ParquetFile reads this one file: read_table would take folder names such as "a=b" for columns.
            frame = pq.ParquetFile(path).read().to_pandas()
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RecordsError(f"{path} cannot be read as parquet ({reason}); {again}") from error
        written = meta.pop("records", None)
        if isinstance(written, dict) and written.get("hash") != _hash(path):
            raise RecordsError(f"{path} and {SUMMARY_FILE} are not from the same evaluation; {again}")
        for name in ADDED:
            if name not in frame.columns:
                frame[name] = [ADDED[name]] * len(frame)
        validate(frame, str(path))
        return cls(frame, meta)


Records: TypeAlias = EvalRun | pd.DataFrame


def frame_of(run: Records) -> pd.DataFrame:
    """The table of records of a run, or the table itself."""
    return run.records if isinstance(run, EvalRun) else run


def select(run: Records, probe: str, dataset: str, field: str | None = None) -> pd.DataFrame:
    """The records of one probe on one data set (and one field), sorted by example id and index."""
    frame = frame_of(run)
    keep = (frame["probe"] == probe) & (frame["dataset"] == dataset)
    if field is not None:
        keep &= frame["field"] == field
    return frame[keep].sort_values(["example_id", "field", "index"], kind="stable")


def answer_nll(records: pd.DataFrame, *, total: bool = False) -> pd.Series[float]:
    """Negative log-likelihood of each record's answer, in nats per token; NaN for a record without tokens.

    Args:
        records: likelihood records; the EOS counts as a token where the answer ends with one.
        total: give the sum over the answer's tokens (nats per answer) in place of the mean.
    """
    values = []
    for logps, num_tokens in zip(records["logps"], records["num_tokens"], strict=True):
        nll = -float(np.sum(np.asarray(logps, dtype=np.float64))) if num_tokens else float("nan")
        values.append(nll if total or not num_tokens else nll / int(num_tokens))
    return pd.Series(values, index=records.index, dtype="float64")


def join(
    left: pd.Series[float],
    right: pd.Series[float],
    *,
    left_name: str = "the first run",
    right_name: str = "the second run",
) -> pd.DataFrame:
    """Put two per-example series side by side (columns `left`, `right`), sorted by example id.

    Raises:
        RecordsError: an id appears on one side only; the sentence names ids of each side.
    """
    faults = [
        f"{len(only)} appear only in {name} (such as {', '.join(map(str, only[:3]))})"
        for only, name in (
            (sorted(set(left.index) - set(right.index)), left_name),
            (sorted(set(right.index) - set(left.index)), right_name),
        )
        if only
    ]
    if faults:
        raise RecordsError(
            f"the two evaluations do not cover the same examples: {' and '.join(faults)}; "
            "evaluate both models on the same data"
        )
    left = left.sort_index(kind="stable")
    return pd.DataFrame({"left": left, "right": right.reindex(left.index)})


def _arrow_schema() -> Any:
    import pyarrow as pa

    types = {"string": pa.string(), "int32": pa.int32(), "bool": pa.bool_(), "float64": pa.float64()}
    types["list<float32>"] = pa.list_(pa.float32())
    types["list<int32>"] = pa.list_(pa.int32())
    types["list<bool>"] = pa.list_(pa.bool_())
    return pa.schema([(name, types[kind]) for name, kind in COLUMNS.items()])


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=8)).hexdigest()
