"""What every test shares: no network, no user cache, a small tokenizer and a tiny model."""

from __future__ import annotations

import copy
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

# Hugging Face libraries read these when they are imported, which happens inside the fixtures.
_HOME = tempfile.TemporaryDirectory(prefix="unlearnkit-tests-")
os.environ["HF_HOME"] = _HOME.name
os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

#: Like Llama-3's: a header, the text, and an end-of-turn token, which is also the EOS.
LLAMA_CHAT = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n\n{{ m['content'] | trim }}{{ eos_token }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
)
#: Like Qwen's (ChatML): a newline follows the end-of-turn token.
QWEN_CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
CHATS = {"llama": LLAMA_CHAT, "qwen": QWEN_CHAT}


def pytest_configure(config: pytest.Config) -> None:
    # peft still reads the old name; warnings of ours remain errors.
    config.addinivalue_line(
        "filterwarnings", "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
    )


def pytest_unconfigure() -> None:
    _HOME.cleanup()


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test starts with an empty cache of results."""
    monkeypatch.setenv("UNLEARNKIT_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _own_accelerate_state() -> Iterator[None]:
    """accelerate remembers the precision of the first trainer in a process; no test may inherit it."""
    yield
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def fictional_rows() -> Callable[[str], list[dict[str, Any]]]:
    """`fictional_rows(split)`: rows of a small `fictional` benchmark (10 authors, 4 questions each)."""
    from unlearnkit.data.fictional import FictionalSpec, rows

    spec = FictionalSpec(authors=10, questions=4, holdout_authors=1)
    return lambda split: copy.deepcopy(rows(split, spec))


@pytest.fixture(scope="session")
def tiny_tokenizer(fictional_rows: Callable[[str], list[dict[str, Any]]]) -> Any:
    """512 byte-level tokens with BOS, EOS and PAD; no chat template. Copy it before changing it."""
    from unlearnkit.models.tiny import train_tokenizer

    rows = fictional_rows("full")
    return train_tokenizer(
        [f"Question: {r['question']}\nAnswer: {r['answer']}" for r in rows], vocab_size=512
    )


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer: Any) -> Callable[[], Any]:
    """`tiny_model()`: a fresh copy of one random Llama (hidden 32, 2 layers, float32, in eval mode)."""
    from unlearnkit.models.tiny import create_model

    model = create_model(
        tiny_tokenizer, hidden_size=32, num_layers=2, num_heads=2, max_position_embeddings=256
    )
    model.eval()
    return lambda: copy.deepcopy(model)


@pytest.fixture(scope="session")
def chat_tokenizer(tiny_tokenizer: Any) -> Callable[..., Any]:
    """`chat_tokenizer(kind)`: a fresh copy of the tokenizer with a chat template, "llama" or "qwen"."""

    def build(kind: str = "llama") -> Any:
        tokenizer = copy.deepcopy(tiny_tokenizer)
        tokenizer.chat_template = CHATS[kind]
        return tokenizer

    return build


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory, tiny_model: Any, tiny_tokenizer: Any) -> Path:
    """A saved tiny model with its tokenizer."""
    folder = tmp_path_factory.mktemp("target")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tofu_folder() -> Path:
    """The real TOFU files: $UNLEARNKIT_TOFU, else ../shared/data/tofu; without them the test is skipped."""
    folder = Path(os.environ.get("UNLEARNKIT_TOFU") or Path(__file__).parents[2] / "shared" / "data" / "tofu")
    if not folder.is_dir():
        pytest.skip(f"the TOFU files are not in {folder}; set UNLEARNKIT_TOFU to their folder")
    return folder
