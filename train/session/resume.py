"""Starting a run or continuing the one in its folder."""

from __future__ import annotations

from pathlib import Path

from grmp_edge.errors import CheckpointError
from grmp_edge.train.session.checkpoint import CheckpointWriter, State
from grmp_edge.train.session.progress import Reporter
from grmp_edge.train.session.ranks import current_team

__all__ = ["begin_or_continue", "goes_on", "lead_state"]


def begin_or_continue(writer: CheckpointWriter, resume: bool, reporter: Reporter) -> State | None:
    """The state to continue from, or None for a new run.

    Raises:
        CheckpointError: the folder holds a run and ``resume`` is False, or one of other settings.
    """
    leads = current_team().leads
    if not resume:
        if leads:
            writer.refuse_overwrite()
        return None
    state = lead_state(writer.resume() if leads else None)
    for note in writer.notes:
        reporter.note(f"note: {note}")
    return state


def lead_state(state: State | None) -> State | None:
    """Share rank 0's state with all ranks; only rank 0 reads and writes the folder."""
    team = current_team()
    if team.size == 1:
        return state
    progress = team.lead(lambda: None if state is None else state.progress)
    if progress is None:
        return None
    weights = team.lead_tensors(None if state is None else state.weights)
    return State(weights, team.lead_tensors(None if state is None else state.resume), progress)


def goes_on(state: State, epochs: int, output: Path, min_lr: float = 0.0) -> bool:
    """Whether a run has epochs left: it was interrupted, or has finished and more are allowed now.

    Raises:
        CheckpointError: it has finished and did not save the state to continue from.
    """
    progress = state.progress
    if not progress["complete"]:
        return True
    if progress["epoch"] >= epochs or progress.get("lr", min_lr) < min_lr:
        return False
    if not state.resume:
        raise CheckpointError(
            f"{output}: finished after {progress['epoch']} epochs without the state to continue from",
            "train into another -o for more epochs",
        )
    return True
