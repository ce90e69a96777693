"""The model as lm-evaluation-harness asks it: what it has answered before is not asked again."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from unlearnkit.errors import ModelError, UserError
from unlearnkit.evaluation.share import gathered, processes
from unlearnkit.files import fingerprint

if TYPE_CHECKING:
    from unlearnkit.evaluation.capability import TaskSpec
    from unlearnkit.evaluation.store import ResultStore

LIKELIHOOD, WHOLE_TEXT, GENERATION = "loglikelihood", "loglikelihood_rolling", "generate_until"


class KeptAnswers:
    """A model for lm-eval's `evaluate`: stored answers first, then those of the model that it wraps.

    Args:
        lm: lm-eval's own wrapper of the model (HFLM).
        stores: the store of each type of request; an answer's name is the hash of the request's arguments.
        together: several processes ask the same requests, and all have to run the model at once.

    Attributes:
        notes: sentences for the user about what happened on the way.
        asked: requests that the model itself has answered.
    """

    def __init__(self, lm: Any, stores: Mapping[str, ResultStore], *, together: bool = False) -> None:
        self._lm = lm
        self._stores = stores
        self._together = together
        self.notes: list[str] = []
        self.asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lm, name)

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """(log-prob in nats, whether it is the greedy one) of each continuation."""
        return [(found["value"], found["greedy"]) for found in self._found(LIKELIHOOD, requests)]

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[float]:
        """Log-prob of each whole text, in nats."""
        return [found["value"] for found in self._found(WHOLE_TEXT, requests)]

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """A generation for each prompt."""
        return [found["text"] for found in self._found(GENERATION, requests)]

    def _found(self, kind: str, requests: Sequence[Any]) -> list[dict[str, Any]]:
        store = self._stores[kind]
        seen: Counter[str] = Counter()
        names = []
        for request in requests:
            name = fingerprint(list(request.args))
            if kind == GENERATION:  # a prompt that is asked n times gets n samples
                seen[name] += 1
                name = fingerprint(name, seen[name])
            names.append(name)
        unknown = {name for name in names if name not in store}
        if self._together:
            unknown = set().union(*gathered(unknown))
        missing = {name: one for name, one in zip(names, requests, strict=True) if name in unknown}
        if missing:
            answers = self._ask(kind, list(missing.values()))
            kept = [
                (name, _packed(kind, request, answer))
                for (name, request), answer in zip(missing.items(), answers, strict=True)
            ]
            if self._together and processes()[0] > 0:
                store.remember(kept)
            else:
                store.add(kept)
                store.flush()
            self.asked += len(missing)
        return [store[name] for name in names]

    def _ask(self, kind: str, requests: list[Any]) -> list[Any]:
        """The model's answers; where memory runs out, in batches of half the size from then on."""
        import torch

        while True:
            try:
                answers: list[Any] = getattr(self._lm, kind)(requests, disable_tqdm=True)
                return answers
            except torch.OutOfMemoryError as error:
                size = int(self._lm.batch_size_per_gpu)
                if size == 1 or self._together:
                    raise ModelError(
                        f"the device's memory is too small for lm-eval's prompts in batches of {size}; set "
                        "a smaller lm_eval.batch_size, or use a larger device"
                    ) from error
                self._lm.batch_size_per_gpu = size // 2
                self.notes.append(
                    f"out of memory with lm_eval.batch_size {size}; went on with batches of {size // 2}"
                )
            torch.cuda.empty_cache()


def _packed(kind: str, request: Any, answer: Any) -> dict[str, Any]:
    """An answer as the store keeps it.

    Raises:
        ModelError: a log-prob that is not a number; lm-eval would take the first choice for the best one.
    """
    if kind == GENERATION:
        return {"text": str(answer)}
    value = float(answer[0] if kind == LIKELIHOOD else answer)
    if math.isnan(value):
        raise ModelError(
            f"the model's log-prob for document {request.doc_id} of the task {request.task_name} "
            f"({str(request.args[-1])[:40]!r}) is not a number; check its weights and its dtype"
        )
    return {"value": value, "greedy": bool(answer[1])} if kind == LIKELIHOOD else {"value": value}


def kept_answers(model: Any, tokenizer: Any, spec: TaskSpec, *, cache: bool, together: bool) -> KeptAnswers:
    """Wrap a model for lm-eval. lm-eval may change the tokenizer: give a copy.

    What decides an answer besides the request is in the store's key: the weights, the tokenizer, lm-eval's
    version, and for generations the model's own settings and the seed.
    """
    import lm_eval

    from unlearnkit.evaluation.probes import generation_settings
    from unlearnkit.evaluation.store import ResultStore
    from unlearnkit.models.load import model_fingerprint

    backend = getattr(tokenizer, "backend_tokenizer", None)
    written = backend.to_str() if backend is not None else tokenizer.get_vocab()
    key = (
        model_fingerprint(model), "lm_eval", lm_eval.__version__,
        fingerprint(written, tokenizer.special_tokens_map),
    )  # fmt: skip
    stores = {
        LIKELIHOOD: ResultStore(*key, LIKELIHOOD, enabled=cache),
        WHOLE_TEXT: ResultStore(*key, WHOLE_TEXT, enabled=cache),
        GENERATION: ResultStore(*key, GENERATION, generation_settings(model), spec.seed, enabled=cache),
    }
    named = {"chat_template": spec.apply_chat_template}  # lm-eval itself would take the default template
    with quiet():
        from lm_eval.models.huggingface import HFLM

        lm = HFLM(
            pretrained=model, tokenizer=tokenizer, batch_size=spec.batch_size, backend="causal",
            chat_template_args=named if isinstance(spec.apply_chat_template, str) else None,
        )  # fmt: skip
    return KeptAnswers(lm, stores, together=together)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """lm-eval's log lines, progress bars and prints do not reach the terminal."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """Random numbers of its own: those of the caller go on as if nothing had happened."""
    import numpy as np
    import torch

    python, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy_state)


def seed_all(seed: int) -> None:
    """Python's, NumPy's and torch's random numbers from here on."""
    import numpy as np
    import torch

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def is_split(model: Any) -> bool:
    """Whether each process holds a part of the weights only (FSDP2, ZeRO-3): all have to run it at once."""
    return any(hasattr(p, "ds_id") or hasattr(p, "full_tensor") for p in model.parameters())


def shared(found: dict[int, Any], error: Exception | None, split: bool) -> dict[int, Any]:
    """What all processes have found together, or an error of any of them, raised in each."""
    if processes()[1] == 1:
        return found
    parts = gathered((found, error if error is None else str(error) or type(error).__name__))
    if error is not None:
        raise error
    if failed := [f"process {rank}: {text}" for rank, (_, text) in enumerate(parts) if text is not None]:
        raise UserError(failed[0])
    if split:
        return dict(parts[0][0])
    return {place: rows for part, _ in parts for place, rows in part.items()}
