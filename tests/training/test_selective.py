"""The selective term: masks of the data, decisions by the model's numbers, one denominator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from helpers_training import data_sets, make_trainer

from unlearnkit.data.collate import StreamCollator
from unlearnkit.data.formats import IGNORE
from unlearnkit.data.token_stats import TokenStats, TokenWeights
from unlearnkit.errors import RecipeError
from unlearnkit.training.deciding import BatchStats
from unlearnkit.training.gather import gather_values
from unlearnkit.training.objective import Step, WeightedSum, as_counts, count_streams
from unlearnkit.training.retain import CrossEntropy
from unlearnkit.training.selective import SelectiveNLL, data_selectors, survey

V = 11


class Table(torch.nn.Module):
    """Logits that depend on the token alone: row t of the table predicts what follows token t."""

    def __init__(self) -> None:
        super().__init__()
        values = torch.linspace(-2, 2, V * V, dtype=torch.float64)
        self.table = torch.nn.Parameter(values[torch.randperm(V * V, generator=_seed())].reshape(V, V))

    def forward(self, input_ids: torch.Tensor, **others: Any) -> Any:
        return SimpleNamespace(logits=self.table[input_ids])


def _seed() -> torch.Generator:
    return torch.Generator().manual_seed(3)


@dataclass(frozen=True)
class Hardest:
    """Keeps the `share` of the tokens with the largest loss."""

    share: float
    weight: float = 1.0
    reads: ClassVar[tuple[str, ...]] = ("logps",)

    def __call__(self, stats: TokenStats) -> TokenWeights:
        ranks = stats.logps.argsort().argsort()
        return TokenWeights.keep(ranks < self.share * len(ranks) - 1e-9)._replace(
            learn=(ranks < self.share * len(ranks) - 1e-9).float() * self.weight
        )


@dataclass(frozen=True)
class Push:
    """Unlearns what is likely."""

    above: float
    reads: ClassVar[tuple[str, ...]] = ("logps",)
    unlearns: ClassVar[bool] = True

    def __call__(self, stats: TokenStats) -> TokenWeights:
        likely = (stats.logps.exp() > self.above).float()
        return TokenWeights(1 - likely, likely)


def _row(*ids: int, unlearn: Sequence[int] = (), drop: Sequence[int] = ()) -> dict[str, Any]:
    return {
        "example_id": str(ids), "input_ids": list(ids),
        "labels": [IGNORE, *(IGNORE if i in drop else token for i, token in enumerate(ids[1:], 1))],
        "unlearn": [int(i in unlearn) for i in range(len(ids))], "candidates": len(ids) - 1,
    }  # fmt: skip


ROWS = [_row(1, 2, 3, 4, 5), _row(6, 7, 8), _row(9, 1, 3, 5, 7, 2), _row(4, 4)]


def _batch(rows: Sequence[Any], streams: tuple[str, ...] = ("train",), **layout: Any) -> Any:
    return StreamCollator(streams, pad_id=0, **layout)([{"train": [row]} for row in rows])


def _step(model: Any, batch: Any, whole: Sequence[Any] = (), **options: Any) -> Step:
    names = tuple(batch)
    return Step(
        model, batch, as_counts(count_streams(list(whole) or [batch], names, "cpu"), names), **options
    )


def _gradient(loss: torch.Tensor, model: Table) -> torch.Tensor:
    [gradient] = torch.autograd.grad(loss, [model.table])
    return gradient


def test_without_a_selector_it_is_cross_entropy_to_the_bit():
    model, batch = Table(), _batch(ROWS)
    one = SelectiveNLL()(_step(model, batch), batch)
    other = CrossEntropy(("train",))(_step(model, batch), batch)
    assert torch.equal(one.loss, other.loss)
    assert torch.equal(_gradient(one.loss, model), _gradient(other.loss, model))
    assert torch.equal(one.metrics["train/nll"], other.metrics["train/nll"])
    assert one.metrics["train/kept"] == 1


@pytest.mark.parametrize("layout", [{}, {"side": "left"}, {"multiple_of": 8}])
def test_the_formula_with_unlearned_targets(layout):
    """Of 11 targets 2 are dropped, 2 unlearned: L = (sum of 7 NLLs + 2 unlikelihoods) / 9, by hand."""
    rows = [
        _row(1, 2, 3, 4, 5, drop=[2], unlearn=[3]),
        ROWS[1],
        _row(9, 1, 3, 5, 7, 2, drop=[1], unlearn=[5]),
    ]
    model, batch = Table(), _batch(rows, **layout)
    marks: Any = SimpleNamespace(reads=(), unlearns=True)  # which the rows have already
    out = SelectiveNLL(selectors=(marks,))(_step(model, batch), batch)
    p = torch.softmax(model.table, -1)
    learned = [(1, 2), (4, 5), (6, 7), (7, 8), (1, 3), (3, 5), (5, 7)]
    removed = [(3, 4), (7, 2)]
    nll = -torch.stack([p[pair].log() for pair in learned]).sum()
    pushed = -torch.stack([(1 - p[pair]).log() for pair in removed]).sum()
    torch.testing.assert_close(out.loss, (nll + pushed) / 9)
    torch.testing.assert_close(
        _gradient(out.loss, model), _gradient((nll + pushed) / 9, model), rtol=1e-10, atol=1e-12
    )
    expected = {"nll": nll / 7, "kept": torch.tensor(7 / 11), "unlikelihood": pushed / 2}
    for name, value in expected.items():
        torch.testing.assert_close(out.metrics[f"train/{name}"].double(), value.detach().double())


def test_what_a_model_selector_drops_has_no_gradient_to_the_bit():
    """Kept are the 6 hardest of 12 targets: their mean is the loss, and no other row gets a gradient."""
    model, batch = Table(), _batch(ROWS)
    out = SelectiveNLL(selectors=(Hardest(0.5),))(_step(model, batch), batch)
    pairs = [(a, b) for row in ROWS for a, b in zip(row["input_ids"], row["input_ids"][1:], strict=False)]
    nll = torch.stack([-torch.log_softmax(model.table, -1)[pair] for pair in pairs])
    hardest = nll.argsort(descending=True)[: len(pairs) // 2]
    torch.testing.assert_close(out.loss, nll[hardest].mean())
    gradient = _gradient(out.loss, model)
    rows = {pairs[i][0] for i in hardest.tolist()}
    assert 0 < len(rows) < V
    assert torch.equal(gradient.abs().sum(-1) > 0, torch.tensor([i in rows for i in range(V)]))
    assert out.metrics["train/kept"] == 0.5
    torch.testing.assert_close(out.metrics["train/nll"], nll[hardest].mean())


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    "selectors",
    [(Hardest(0.4),), (Push(0.2),), (Hardest(0.7), Push(0.3)), (Hardest(0.5, 0.25),)],
)
def test_micro_batches_are_decided_together(selectors, packed):
    """The losses, gradients and metrics of 2 + 1 + 1 rows add up to those of 4 rows at once."""
    rows = [*ROWS[:3], _row(4, 8, 2, 6, unlearn=[2], drop=[1])]
    model, term = Table(), SelectiveNLL(selectors=selectors)
    whole = _batch(rows)
    expected = term(_step(model, whole), whole)
    parts = [_batch(rows[:2], packed=packed), _batch(rows[2:3], packed=packed), _batch(rows[3:])]
    counts = as_counts(count_streams(parts, ("train",), "cpu"), ("train",))
    survey(term, parts, lambda batch: Step(model, batch, counts))
    outs = [term(Step(model, part, counts), part) for part in parts]
    total = torch.stack([out.loss for out in outs]).sum()
    torch.testing.assert_close(total, expected.loss)
    torch.testing.assert_close(_gradient(total, model), _gradient(expected.loss, model))
    for name, value in expected.metrics.items():
        share = sum(float(out.metrics.get(name, 0.0)) for out in outs)
        assert share == pytest.approx(float(value), rel=1e-6)


def test_targets_that_weigh_nothing_are_targets_no_more():
    """After the survey the labels, and with packing the places in the lines, hold what is kept alone."""
    model, term = Table(), SelectiveNLL(selectors=(Hardest(0.5),))
    parts = [_batch(ROWS[:2], packed=True), _batch(ROWS[2:], packed=True)]
    before = [part["train"]["packed_positions"] for part in parts]
    counts = as_counts(count_streams(parts, ("train",), "cpu"), ("train",))
    survey(term, parts, lambda batch: Step(model, batch, counts))
    kept = [len(part["train"]["target_positions"]) for part in parts]
    assert sum(kept) == 6
    for part, known, number in zip(parts, before, kept, strict=True):
        one = part["train"]
        assert (one["labels"][:, 1:] != IGNORE).sum() == number == len(one["target_weights"])
        assert set(one["packed_positions"].tolist()) <= set(known.tolist())
        assert one["target_totals"].tolist() == [6, 1, 6]


def test_another_term_on_the_same_stream_is_not_disturbed():
    model, plain = Table(), CrossEntropy(("train",))
    objective = WeightedSum(((1.0, SelectiveNLL(selectors=(Hardest(0.5),))), (1.0, plain)))
    parts = [_batch(ROWS[:2]), _batch(ROWS[2:])]
    counts = as_counts(count_streams(parts, ("train",), "cpu"), ("train",))
    survey(objective, parts, lambda batch: Step(model, batch, counts))
    shares = [plain(Step(model, part, counts), part).loss for part in parts]
    whole = _batch(ROWS)
    torch.testing.assert_close(torch.stack(shares).sum(), plain(_step(model, whole), whole).loss)


def test_processes_are_decided_together():
    """Two processes with 3 and 9 targets, of which one has the hard ones: shares of one mean."""
    model, term = Table(), SelectiveNLL(selectors=(Hardest(0.5),))
    whole, parts = _batch(ROWS), [_batch(ROWS[1:2]), _batch([ROWS[0], *ROWS[2:]])]
    expected = term(_step(model, whole), whole).loss

    def gathered(own: int) -> Any:
        # What each process would send, in the order in which it is asked for.
        def gather(values: torch.Tensor) -> tuple[torch.Tensor, slice]:
            sent[own].append(values)
            number = len(sent[own]) - 1
            if number >= len(sent[1 - own]):
                return values, slice(0, len(values))
            both = [sent[0][number], sent[1][number]]
            start = len(both[0]) if own else 0
            return torch.cat(both), slice(start, start + len(values))

        return gather

    # What a process sends last, its sums, depends on what the others sent before: hence several rounds.
    sent: list[list[torch.Tensor]] = [[], []]
    losses = []
    for _ in range(3):
        losses = []
        for own in (0, 1):
            sent[own].clear()
            losses.append(term(_step(model, parts[own], parts, gather=gathered(own)), parts[own]).loss)
    torch.testing.assert_close(losses[0] + losses[1], expected)


def test_streams_share_one_denominator():
    rows = {"train": ROWS[:2], "more": ROWS[2:]}
    collate = StreamCollator(("train", "more"), pad_id=0)
    model, batch = Table(), collate([{"train": rows["train"], "more": rows["more"]}])
    one = _batch(ROWS)
    for selectors in ((), (Hardest(0.5),)):
        together = SelectiveNLL(("train", "more"), selectors)(_step(model, batch), batch)
        alone = SelectiveNLL(("train",), selectors)(_step(model, one), one)
        torch.testing.assert_close(together.loss, alone.loss)


def test_a_batch_without_targets_costs_nothing():
    batch = _batch([_row(1, 2, 3, drop=[1, 2])])
    for selectors in ((), (Hardest(0.5),)):
        model = Table()
        loss = SelectiveNLL(selectors=selectors)(_step(model, batch), batch).loss
        assert loss == 0
        assert torch.equal(_gradient(loss, model), torch.zeros(V, V, dtype=torch.float64))


def test_numbers_that_were_not_asked_for_are_not_known():
    stats = BatchStats(torch.tensor([1]), {"logps": torch.tensor([-1.0])}, 4)
    assert (stats.logps.item(), stats.step, stats.targets.item()) == (-1, 4, 1)
    for name in ("entropies", "error_norms", "risks"):
        with pytest.raises(RuntimeError, match=f"asks for {name}"):
            getattr(stats, name)


def test_masks_of_the_data_belong_to_the_parts_of_their_term():
    mask: Any = SimpleNamespace(reads=())
    term = SelectiveNLL(("train",), (mask, Hardest(0.5)))
    objective = WeightedSum(((1.0, term), (1.0, CrossEntropy(("retain",)))))
    assert data_selectors(objective, "train") == (mask,)
    assert data_selectors(objective, "retain") == ()


@pytest.mark.parametrize(
    ("also", "message"),
    [
        ({"npo": {}}, "names 'npo', which does not choose tokens"),
        ({"goldfish": {"kay": 4}}, "training.also.goldfish: unknown key 'kay'; it is one of: k, h"),
        ({"goldfish": {"h": "many"}}, "training.also.goldfish.h must be .*found 'many'"),
        ({"goldfish": {"k": 1}}, "training.also.goldfish.k must be at least 2"),
        ({"goldfsh": {}}, "goldfish"),
    ],
)
def test_further_methods_are_checked(also, message, tmp_path):
    from unlearnkit.methods.goldfish import GoldfishConfig

    with pytest.raises(RecipeError, match=message):
        GoldfishConfig(output_dir=str(tmp_path), use_cpu=True, also=also).selectors()


def test_what_is_logged_does_not_depend_on_the_rows_of_a_process():
    """All processes log the same names, also where one of them has nothing to unlearn."""
    batch, model = _batch(ROWS), Table()
    for selectors, logged in (((Push(1.0),), True), ((Hardest(0.5),), False), ((), False)):
        metrics = SelectiveNLL(selectors=selectors)(_step(model, batch), batch).metrics
        assert ("train/unlikelihood" in metrics) is logged
        assert float(metrics.get("train/unlikelihood", 0.0)) == 0


def test_each_stream_is_logged_with_its_own_mean():
    """Keeping everything by the model's numbers logs what plain cross-entropy logs, stream by stream."""
    collate = StreamCollator(("train", "more"), pad_id=0)
    model, batch = Table(), collate([{"train": ROWS[:1], "more": ROWS[1:]}])
    plain = SelectiveNLL(("train", "more"))(_step(model, batch), batch)
    chosen = SelectiveNLL(("train", "more"), (Hardest(1.0),))(_step(model, batch), batch)
    assert plain.metrics.keys() == chosen.metrics.keys()
    assert float(plain.metrics["train/nll"]) != pytest.approx(float(plain.metrics["more/nll"]), rel=0.01)
    for name, value in plain.metrics.items():
        assert float(chosen.metrics[name]) == pytest.approx(float(value), rel=1e-6)


def test_weights_that_add_up_to_less_than_one_token_still_give_a_mean():
    model, batch = Table(), _batch([_row(1, 2)])
    whole = SelectiveNLL()(_step(model, batch), batch).loss
    quarter = SelectiveNLL(selectors=(Hardest(1.0, 0.25),))(_step(model, batch), batch).loss
    torch.testing.assert_close(quarter, whole)


def test_nothing_is_gathered_as_at_least_one_row():
    """Accelerate reshapes what it gathers on GPUs to (-1, n), which fails for n = 0."""
    sent: list[torch.Tensor] = []

    def gather(values: torch.Tensor) -> torch.Tensor:
        sent.append(values)
        return torch.cat([values, values])

    accelerator = SimpleNamespace(num_processes=2, process_index=1, gather=gather)
    values, own = gather_values(accelerator, torch.zeros(0))
    assert len(values) == 0
    assert own == slice(0, 0)
    assert all(one.numel() > 0 for one in sent)
    values, own = gather_values(accelerator, torch.tensor([1.0, 2.0]))
    assert values.tolist() == [1, 2, 1, 2]
    assert values[own].tolist() == [1, 2]


@pytest.fixture
def eslm(tiny_model, tiny_tokenizer, fictional_rows, tmp_path):
    """`eslm(method, **settings)`: a trainer over the ten training rows."""

    def make(method="eslm", **settings):
        return make_trainer(
            method, tiny_model(), tiny_tokenizer, data_sets(fictional_rows), tmp_path, **settings
        )

    return make


def test_the_survey_sees_the_model_as_it_is_trained(eslm):
    """Also in the first step and after an evaluation, when the trainer has not switched to training yet."""
    trainer = eslm(gradient_accumulation_steps=2, per_device_train_batch_size=2, num_train_epochs=1)
    modes = []
    trainer.model.register_forward_pre_hook(
        lambda model, args: modes.append((torch.is_grad_enabled(), model.training))
    )
    trainer.model.eval()
    trainer.train()
    assert (False, True) in modes
    assert all(training for _, training in modes)


def test_a_first_step_that_leaves_out_everything_is_no_broken_model(eslm, caplog):
    """Its loss is 0, which is warned of; the check for missing gradients waits for a step that learns."""
    trainer = eslm("error_norm", threshold=0.01, start_step=0, num_train_epochs=1)
    trainer.train()
    assert "so nothing is learned in it" in caplog.text
    assert all(entry["train/kept"] == 0 for entry in trainer.state.log_history if "train/kept" in entry)


def test_a_retain_term_is_refused(eslm):
    with pytest.raises(RecipeError, match=r"training.retain is 'kl', but this method learns all"):
        eslm("goldfish", retain="kl")
