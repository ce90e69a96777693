"""Terms that remember: a state of theirs is begun with the run, kept in every checkpoint, and taken up again.

RMU's control vector and the dual variable of primal-dual unlearning are such states. A term without one needs
nothing of this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor
from transformers import TrainerCallback
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from unlearnkit.errors import UserError
from unlearnkit.files import atomic_path
from unlearnkit.training.objective import Objective, terms_of

#: The file in a checkpoint that holds the states of all terms.
FILE = "objective.safetensors"


class TermState(Protocol):
    """What a term remembers from step to step; a term carries it as its attribute `state`."""

    def begin(self, trainer: Any) -> None:
        """Before the first step of a run that is not resumed."""

    def end_step(self, total: Callable[[Tensor], Tensor], epoch: float) -> None:
        """After each optimizer step.

        Args:
            total: sums a tensor over all processes.
            epoch: passes over the data that are done, a fraction within a pass.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """Everything that a resumed run must know."""

    def load_state_dict(self, values: Mapping[str, Tensor]) -> None:
        """The reverse of `state_dict`."""


def states_of(objective: Objective) -> dict[str, TermState]:
    """The states of an objective's terms and of their selectors, named by their places; a shared one
    once."""
    found: dict[int, tuple[str, TermState]] = {}
    for place, term in enumerate(terms_of(objective)):
        owners = [(str(place), term)]
        owners += [(f"{place}-{number}", one) for number, one in enumerate(getattr(term, "selectors", ()))]
        for name, owner in owners:
            state = getattr(owner, "state", None)
            if state is not None:
                found.setdefault(id(state), (name, state))
    return dict(found.values())


class KeepStates(TrainerCallback):  # type: ignore[misc]
    """Calls the states of the terms when something happens to them, and keeps them in checkpoints.

    Args:
        objective: of the run.
    """

    def __init__(self, objective: Objective) -> None:
        self.states = states_of(objective)
        self._trainer: Any = None

    def attach(self, trainer: Any) -> None:
        """The trainer introduces itself before it trains."""
        self._trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up the states of the checkpoint that the run was resumed from, or begin.

        Raises:
            UserError: the checkpoint does not hold them.
        """
        if not self.states:
            return
        if state.global_step > 0:
            self._load(Path(self._trainer.resumed_from or _folder(args, state)))
            return
        for one in self.states.values():
            one.begin(self._trainer)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After each optimizer step."""
        for one in self.states.values():
            one.end_step(self._trainer.sum_over_processes, state.epoch or 0.0)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """States are equal in all processes; the first one writes them."""
        if not self.states or not state.is_world_process_zero:
            return
        from safetensors.torch import save_file

        values = {
            f"{place}.{name}": value.detach().cpu().contiguous()
            for place, one in self.states.items()
            for name, value in one.state_dict().items()
        }
        with atomic_path(_folder(args, state) / FILE) as temporary:
            save_file(values, temporary)

    def _load(self, folder: Path) -> None:
        from safetensors.torch import load_file

        path = folder / FILE
        if not path.exists():
            raise UserError(
                f"{folder} holds no {FILE}, which this method needs to go on; remove the checkpoint and "
                "train anew"
            )
        stored = load_file(path)
        for place, one in self.states.items():
            prefix = f"{place}."
            one.load_state_dict(
                {name.removeprefix(prefix): v for name, v in stored.items() if name.startswith(prefix)}
            )


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
