"""Step, counts, WeightedSum and the fused batch."""

from __future__ import annotations

import pytest
import torch

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import IGNORE
from unlearnkit.methods.grad_ascent import GradAscent
from unlearnkit.methods.npo import NPO
from unlearnkit.training import logprobs
from unlearnkit.training.objective import (
    BoundReference,
    LossOutput,
    Needs,
    Objective,
    Step,
    WeightedSum,
    as_counts,
    count_streams,
    fuse,
    reference_streams,
)
from unlearnkit.training.retain import KL, CrossEntropy

STREAMS = ("forget", "retain")


def _row(*ids, prompt=1):
    return {"input_ids": list(ids), "labels": [IGNORE] * prompt + list(ids[prompt:])}


ITEMS = [
    {"forget": [_row(5, 6, 7, 8, 9, 10)], "retain": [_row(11, 12)]},
    {"forget": [_row(13, 14, 15)], "retain": [_row(16, 17, 18, 19, prompt=3), _row(20, 21, 22)]},
]


def _collate(items, side="right"):
    return StreamCollator(STREAMS, pad_id=0, side=side)(items)


def _step(model, batch, counts=None, reference=None):
    counts = counts or as_counts(count_streams([batch], STREAMS, "cpu"), STREAMS)
    return Step(model, batch, counts, reference)


class _Counting:
    """Passes calls on and counts them."""

    def __init__(self, model):
        self.model = model
        self.rows = []

    def get_output_embeddings(self):
        return self.model.get_output_embeddings()

    def __call__(self, **inputs):
        self.rows.append(len(inputs["input_ids"]))
        return self.model(**inputs)


@pytest.mark.parametrize("side", ["right", "left"])
def test_all_streams_go_through_the_model_once_and_come_apart_again(tiny_model, side):
    model = _Counting(tiny_model())
    batch = _collate(ITEMS, side)
    step = _step(model, batch)
    for stream in STREAMS:
        alone = _step(tiny_model(), {stream: batch[stream]})
        for ask in ("logits", "targets", "token_logps", "sequence_logps"):
            torch.testing.assert_close(
                getattr(step, ask)(stream), getattr(alone, ask)(stream), rtol=1e-5, atol=1e-5
            )
    assert model.rows == [5]
    assert step.num_target_tokens("retain").tolist() == [1, 1, 2]
    assert step.targets("forget").tolist() == [6, 7, 8, 9, 10, 14, 15]


def test_counts_are_those_of_the_whole_global_batch():
    batches = [_collate(ITEMS[:1]), _collate(ITEMS[1:]), _collate([{}])]
    table = count_streams(batches, STREAMS, "cpu")
    assert table.tolist() == [[2, 7, 7, 7, 0], [3, 4, 4, 4, 0]]
    counts = as_counts(table, STREAMS)
    assert (counts["forget"].sequences.item(), counts["forget"].tokens.item()) == (2, 7)
    assert as_counts(torch.zeros(1, 5), ("forget",))["forget"].tokens.item() == 1


def test_sequences_without_a_target_do_not_count():
    batch = _collate([{"forget": [{"input_ids": [5, 6], "labels": [IGNORE, IGNORE]}, _row(7, 8)]}])
    assert count_streams([batch], STREAMS, "cpu").tolist() == [[1, 1, 1, 1, 0], [0, 0, 0, 0, 0]]


@pytest.mark.parametrize("objective", [
    GradAscent(), CrossEntropy(), CrossEntropy(STREAMS),
    WeightedSum(((1.0, GradAscent()), (0.5, CrossEntropy()))),
])  # fmt: skip
def test_shares_of_micro_batches_add_up(tiny_model, objective):
    """Also with a micro-batch that holds nothing, as the last of an epoch does in one of several
    processes."""
    model = tiny_model().double()
    whole = _collate(ITEMS)
    expected = objective(_step(model, whole), whole)
    counts = as_counts(count_streams([whole], STREAMS, "cpu"), STREAMS)
    shares = []
    for items in (ITEMS[:1], [{}], ITEMS[1:]):
        batch = _collate(items)
        shares.append(objective(_step(model, batch, counts), batch))
    torch.testing.assert_close(sum(s.loss for s in shares), expected.loss, rtol=1e-10, atol=1e-10)
    for name, value in expected.metrics.items():
        torch.testing.assert_close(sum(s.metrics[name] for s in shares), value, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("items", [[{}], [{"forget": [{"input_ids": [5, 6], "labels": [IGNORE, IGNORE]}]}]])
def test_an_empty_batch_gives_zero_with_a_gradient(tiny_model, items):
    """C1: the loss is 0, every parameter gets a finite gradient, so that DDP stays in step."""
    model, batch = tiny_model(), _collate(items)
    step = _step(model, batch)
    out = WeightedSum(((1.0, GradAscent()), (1.0, CrossEntropy())))(step, batch)
    out.loss.backward()
    assert out.loss.item() == 0.0
    assert all(p.grad is not None and float(p.grad.abs().max()) == 0.0 for p in model.parameters())
    assert all(float(v) == 0.0 for v in out.metrics.values())


def test_fuse_keeps_positions_for_either_padding():
    for side in ("right", "left"):
        fused = fuse(_collate(ITEMS, side))
        assert fused["labels"].flatten()[fused["target_positions"] + 1].tolist() == [
            6, 7, 8, 9, 10, 14, 15, 12, 19, 21, 22
        ]  # fmt: skip
        assert ("position_ids" in fused) == (side == "left")


def test_a_weighted_sum_is_the_sum_of_its_terms(tiny_model):
    batch = _collate(ITEMS)
    step = _step(tiny_model(), batch)
    one, other = GradAscent(), CrossEntropy()
    both = WeightedSum(((0.5, one), (3.0, other)))
    torch.testing.assert_close(
        both(step, batch).loss, 0.5 * one(step, batch).loss + 3 * other(step, batch).loss
    )
    assert set(both(step, batch).metrics) == {"forget/nll", "retain/nll"}
    assert both.streams == STREAMS
    assert both.needs is Needs.NOTHING


def test_needs_and_streams_of_nested_sums():
    inner = WeightedSum(((1.0, NPO(0.1)), (1.0, KL())))
    outer = WeightedSum(((1.0, inner), (1.0, NPO(0.1, stream="other")), (1.0, CrossEntropy())))
    assert outer.needs == Needs.REFERENCE_LOGPS | Needs.REFERENCE_LOGITS
    assert outer.streams == ("forget", "retain", "other")
    assert reference_streams(outer) == ("forget", "other")
    assert all(isinstance(term, Objective) for term in (outer, NPO(0.1), KL(), CrossEntropy(), GradAscent()))


def test_a_reference_that_was_not_asked_for_is_our_mistake(tiny_model):
    batch = _collate(ITEMS)
    with pytest.raises(RuntimeError, match="`needs` do not say so"):
        NPO(0.1)(_step(tiny_model(), batch), batch)


def test_the_reference_is_asked_once_per_stream(tiny_model):
    batch = _collate(ITEMS)

    class Provider:
        calls = 0

        def logits(self, stream):
            Provider.calls += 1
            return torch.zeros(len(stream["target_positions"]), 512)

        def token_logps(self, stream):
            raise AssertionError("the logits are known already")

    step = _step(tiny_model(), batch, reference=Provider())
    step.reference.logits("forget")
    uniform = step.reference.token_logps("forget")
    step.reference.sequence_logps("forget")
    assert Provider.calls == 1
    torch.testing.assert_close(uniform, torch.full((7,), -torch.log(torch.tensor(512.0)).item()))


def test_loss_outputs_do_not_share_their_metrics():
    one, other = LossOutput(torch.zeros(())), LossOutput(torch.zeros(()))
    one.metrics["x"] = torch.ones(())
    assert not other.metrics


def test_a_live_reference_is_asked_once_for_both_sides_of_a_pair():
    """One pass serves the parts of a stream; their values come back to the right rows."""
    asked = []

    class Live:
        live = True

        def token_logps(self, batch):
            asked.append(len(batch["labels"]))
            return -logprobs.batch_targets(batch).float()

    rows = {
        "pairs.chosen": [[1, 2, 3], [4, 5]],
        "pairs.rejected": [[1, 6], [4, 7, 8]],
        "retain": [[9, 10]],
    }
    item = {part: [{"input_ids": r, "labels": [-100, *r[1:]]} for r in some] for part, some in rows.items()}
    batch = StreamCollator(tuple(rows), pad_id=0)([item])
    bound = BoundReference(Live(), batch)
    assert bound.sequence_logps("pairs.rejected").tolist() == [-6.0, -15.0]
    assert bound.sequence_logps("pairs.chosen").tolist() == [-5.0, -5.0]
    assert bound.sequence_logps("retain").tolist() == [-10.0]
    assert asked == [4, 1]
