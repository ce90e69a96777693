"""Training on documents: blocks whose documents do not see each other, tokens on disk, several corpora."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal

import pytest
import torch
from datasets import Dataset
from helpers_training import logs, make_trainer, weights
from transformers import TrainerCallback

from unlearnkit.data.parts import StreamRows
from unlearnkit.errors import DataError, RecipeError
from unlearnkit.recipe import MixSpec, load_recipe
from unlearnkit.training.callbacks import last_complete_checkpoint, remove_incomplete_checkpoints
from unlearnkit.training.logprobs import label_logps, target_logits
from unlearnkit.training.objective import fuse

BOTH = {"pack_documents": True, "documents_on_disk": True}


@pytest.fixture(scope="module")
def documents(fictional_rows):
    """40 texts of 4 to 24 words; the longer ones are cut into two pieces."""
    answers = [row["answer"].split() for row in fictional_rows("full")]
    return Dataset.from_list(
        [{"text": " ".join((a * 2)[: 4 + 7 * i % 21])} for i, a in enumerate(answers[:40])]
    )


@pytest.fixture
def trainer_of(tiny_model, tiny_tokenizer, documents, tmp_path):
    def build(streams=None, folder=tmp_path, **settings):
        method = settings.pop("method", "sft")
        return make_trainer(
            method, tiny_model(), tiny_tokenizer, {"train": documents, **(streams or {})}, folder,
            max_length=settings.pop("max_length", 48), **settings,
        )  # fmt: skip

    return build


def last_blocks(trainer):
    """Those of the shortest pieces."""
    return [trainer.mix[i] for i in range(len(trainer.mix))[-4:]]


def logps(model, batch):
    out = target_logits(model, fuse(batch))
    return label_logps(out.logits_NV, out.targets_N)


def test_a_block_is_trained_on_as_its_pieces_apart(trainer_of):
    """Mean over all targets of the blocks = mean over the targets of the pieces, each alone in a batch."""
    trainer = trainer_of(pack_documents=True, max_length=128)
    rows = [row for item in last_blocks(trainer) for row in item["train"]]
    assert len(rows) > 4
    alone = [logps(trainer.model, trainer.data_collator([{"train": [row]}])) for row in rows]
    batch = trainer.data_collator(last_blocks(trainer))
    assert batch["train"]["packed_lines"][1].numel() < batch["train"]["input_ids"].numel()
    loss = trainer.compute_loss(trainer.model, batch)
    torch.testing.assert_close(loss, -torch.cat(alone).mean(), rtol=1e-5, atol=1e-5)
    padded = trainer_of(pack_documents=True, packing="never", max_length=128)
    torch.testing.assert_close(
        padded.compute_loss(padded.model, padded.data_collator(last_blocks(padded))),
        loss,
        rtol=1e-5,
        atol=1e-5,
    )


def test_attention_and_positions_stay_in_their_document(trainer_of):
    """Other words in one document of a block change the log-probs of that document alone."""
    trainer = trainer_of(pack_documents=True, max_length=128)
    rows = next(item["train"] for item in last_blocks(trainer) if len(item["train"]) > 2)
    other = {**rows[1], "input_ids": [5] * len(rows[1]["input_ids"])}
    before, after = (
        logps(trainer.model, trainer.data_collator([{"train": [rows[0], second, *rows[2:]]}]))
        for second in (rows[1], other)
    )
    counts = [len(row["input_ids"]) - 1 for row in rows]
    one, two = counts[0], counts[0] + counts[1]
    assert torch.equal(before[:one], after[:one])
    assert torch.equal(before[two:], after[two:])
    assert (before[one:two] - after[one:two]).abs().max() > 1e-3
    lines = trainer.data_collator([{"train": rows}])["train"]["packed_lines"]
    assert int((lines[1] == 0).sum()) >= len(rows), "every document begins at position 0"


def test_blocks_fill_their_lines_and_lose_nothing(trainer_of):
    trainer, apart = trainer_of(pack_documents=True), trainer_of()
    rows = trainer.mix.streams["train"]
    assert isinstance(rows, StreamRows)
    assert rows.blocks.fill > 0.9
    assert len(trainer.mix) < len(apart.mix)
    assert sorted(
        len(r["input_ids"]) for i in range(len(trainer.mix)) for r in trainer.mix[i]["train"]
    ) == sorted(len(apart.mix[i]["train"][0]["input_ids"]) for i in range(len(apart.mix)))
    assert max(trainer.mix.lengths(0)) <= 48


@pytest.mark.parametrize("pack", [False, True])
def test_on_disk_trains_as_in_memory(trainer_of, tmp_path, pack):
    """To the bit: losses of every step, weights, tokens seen."""
    found = []
    for on_disk in (False, True):
        trainer = trainer_of(
            folder=tmp_path / str(on_disk), pack_documents=pack, documents_on_disk=on_disk, method="goldfish",
            k=3.0,
        )  # fmt: skip
        trainer.train()
        found.append((logs(trainer), weights(trainer.model), trainer.tokens_seen))
    (one, at, seen), (other, to, too) = found
    assert one == other
    assert len(one) > 2
    assert seen == too > 0
    assert all(torch.equal(at[name], to[name]) for name in at)


class _Kill(TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 4:
            os.kill(os.getpid(), signal.SIGKILL)


def test_a_killed_run_goes_on_at_the_exact_example(trainer_of, tmp_path):
    """Killed in the middle of an epoch of blocks on disk; the weights are those of a run undisturbed."""

    def run(folder, kill=False):
        remove_incomplete_checkpoints(folder)
        left = last_complete_checkpoint(folder)
        trainer = trainer_of(
            folder=folder, per_device_train_batch_size=2, save_strategy="steps", save_steps=2,
            callbacks=[_Kill()] if kill else None, **BOTH,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=str(left) if left else None)
        torch.save({"weights": weights(trainer.model), "logs": logs(trainer)}, folder / "result.pt")
        return trainer

    killed, straight = tmp_path / "killed", tmp_path / "straight"
    process = multiprocessing.get_context("fork").Process(target=run, args=(killed, True))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert last_complete_checkpoint(killed).name == "checkpoint-4"
    whole = run(straight)
    per_epoch = -(-len(whole.mix) // 2)
    assert 4 % per_epoch, "in the middle of an epoch"
    run(killed)
    one, other = (torch.load(folder / "result.pt") for folder in (killed, straight))
    assert one["logs"] == other["logs"]
    assert all(torch.equal(one["weights"][name], p) for name, p in other["weights"].items())


@pytest.mark.parametrize(
    ("mix", "shares"),
    [
        (MixSpec(weights={"books": 3.0, "notes": 1.0}), (0.75, 0.25)),
        (MixSpec(weights={"books": 1.0, "notes": 1.0}, epoch_size=40), (0.5, 0.5)),
        # Twice as many blocks: 2 : 1 by size, sqrt(2) : 1 at T = 2.
        (MixSpec(temperature=2.0, epoch_size=200), (2**0.5 / (1 + 2**0.5), 1 / (1 + 2**0.5))),
    ],
)
def test_several_corpora_have_their_shares_of_the_tokens(trainer_of, documents, mix, shares):
    """Blocks are full, so shares of blocks are shares of tokens, whatever the lengths of the documents."""
    texts = [" ".join(documents["text"])] * 6
    trainer = trainer_of(
        {"train": None, "books": Dataset.from_list([{"text": t} for t in texts]),
         "notes": Dataset.from_list([{"text": t} for t in list(documents["text"]) * 3])},
        mix=mix, train_streams=["books", "notes"], **BOTH,
    )  # fmt: skip
    counted = {"books": 0, "notes": 0}
    for i in range(len(trainer.mix)):
        for stream, rows in trainer.mix[i].items():
            counted[stream] += sum(len(row["input_ids"]) for row in rows)
    for stream, share in zip(("books", "notes"), shares, strict=True):
        assert counted[stream] / sum(counted.values()) == pytest.approx(share, abs=0.05)


# Bad input


def test_settings_of_documents_want_documents(trainer_of, fictional_rows):
    rows = Dataset.from_list(fictional_rows("full")[:4])
    for setting in ("pack_documents", "documents_on_disk"):
        with pytest.raises(
            DataError, match=r"data\.documents is for streams of documents.*data\.train.*`join`"
        ):
            trainer_of({"train": rows}, **{setting: True})


def test_cached_log_probs_do_not_go_with_tokens_on_disk(trainer_of, documents):
    streams = {"forget": documents, "train": None}
    with pytest.raises(RecipeError, match=r"cached.*data\.forget.*reference: frozen.*on_disk"):
        trainer_of(streams, method="npo", retain="none", documents_on_disk=True)
    trainer_of(streams, method="npo", retain="none", documents_on_disk=True, reference="frozen")


def test_padded_blocks_are_warned_of(trainer_of, caplog):
    trainer_of(pack_documents=True, packing="never", max_length=128)
    assert "rows of this model are padded" in caplog.text


def test_a_recipe_says_it_once(tmp_path):
    text = "method: sft\nmodel: m\ndata:\n  train: t.jsonl\n  {}\ntraining: {{{}}}\nevaluation: null\n"
    path = tmp_path / "r.yaml"
    path.write_text(text.format("documents: {pack: true}", ""))
    assert load_recipe(path).data.documents.pack
    assert not load_recipe(path).data.documents.on_disk
    path.write_text(text.format("documents: {packed: true}", "pack_documents: true"))
    with pytest.raises(
        RecipeError, match=r"(?s)packed.*pack.*write documents: \{pack: true\} in the section data"
    ):
        load_recipe(path)
    path.write_text(text.format("max_length: 1", ""))
    with pytest.raises(RecipeError, match="max_length"):
        load_recipe(path)


# A whole run


def test_from_a_file_to_a_model(tmp_path, documents, monkeypatch):
    """Checked, trained, found again; another text under the same name is another run."""
    from unlearnkit.pipeline import Pipeline
    from unlearnkit.preflight import load_streams
    from unlearnkit.run import RunDir

    monkeypatch.setenv("UNLEARNKIT_RUNS", str(tmp_path / "runs"))
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents["text"]))
    path = tmp_path / "recipe.yaml"
    path.write_text(
        f"""
method: sft
model: {{create: {{hidden_size: 32, num_layers: 1, num_heads: 2, vocab_size: 300}}}}
data:
  train: {corpus}
  documents: {{pack: true, on_disk: true}}
  max_length: 64
training: {{num_train_epochs: 1, per_device_train_batch_size: 4}}
evaluation: null
"""
    )
    recipe = load_recipe(path)
    said = []
    run = Pipeline(recipe, RunDir(tmp_path / "run"), say=said.append, progress=False)
    found = run.train()
    data = found["data"]["train"]
    assert data["tokens"] == found["tokens_seen"] > 0
    assert data["target_tokens"] == data["tokens"] - data["examples"]
    assert data["blocks"] < data["examples"]
    assert 0.5 < data["blocks_filled"] <= 1
    assert f"train in {data['blocks']} blocks" in said[0]
    run.train()
    assert "already trained" in said[-1]
    corpus.write_text(json.dumps({"text": "Other words."}) + "\n")
    assert "example_id" not in load_streams(recipe, ("train",))["train"].column_names
    with pytest.raises(Exception, match=r"data\.train changed since"):
        run.train()
    path.write_text(
        path.read_text().replace("  max_length", "  annotate: [{names: [Ana], risk: n}]\n  max_length")
    )
    with pytest.raises(RecipeError, match=r"data\.annotate.*on_disk"):
        load_streams(load_recipe(path), ("train",))
