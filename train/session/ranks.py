"""Several processes that train one model: started by torchrun, or by hand with its environment variables.

Each process is a rank of a team. Everything random depends on what is visited (seed, epoch, task), never on
the rank, so any number of ranks computes the same as one, up to the rounding of sums. Only rank 0 writes
files and prints. Ranks exchange tensors, and JSON as bytes; nothing is unpickled.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor
from torch import distributed as dist
from torch.distributed.rendezvous import rendezvous

from grmp_edge.errors import GrmpError, UsageError, first_line

__all__ = ["ALONE", "PeerFailedError", "Team", "current_team", "joined", "local_device"]

# Longer than the longest time between two exchanges, such as measuring NIQE on a large set: a rank that dies
# is detected by its closed connection, not by this timeout.
_TIMEOUT = timedelta(days=1)
_ENVIRONMENT = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

T = TypeVar("T")


class PeerFailedError(Exception):
    """Another rank failed first and has reported why; this one exits silently with ``status``."""

    def __init__(self, status: int) -> None:
        super().__init__("another process of this training failed")
        self.status = status


@dataclass(frozen=True)
class Team:
    """The ranks of one training run; in a team of one, exchanges do nothing."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on this machine: the index of this rank's GPU
    local_size: int = 1  # ranks on this machine, which share its memory

    @property
    def leads(self) -> bool:
        """Whether this rank writes and prints."""
        return self.rank == 0

    def mine(self, number: int) -> bool:
        """Whether piece of work ``number`` belongs to this rank; the assignment never changes."""
        return number % self.size == self.rank

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype, in place, by their sums over the ranks: one message for all."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        _exchange(lambda: dist.all_reduce(flat))
        _put(flat, tensors)

    def align(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors of one dtype, in place, by rank 0's."""
        if self.size == 1:
            return
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        _exchange(lambda: dist.broadcast(flat, src=0))
        _put(flat, tensors)

    def wait(self) -> None:
        """Return once all ranks have come here."""
        self.sum([torch.zeros(1)])

    def lead(self, action: Callable[[], T]) -> T:
        """The result of ``action``, plain JSON, which runs on rank 0 only."""
        if self.size == 1:
            return action()
        sent = json.dumps(action()).encode() if self.leads else b""
        result: T = json.loads(self._share_bytes(sent))
        return result

    def lead_tensors(self, tensors: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """Rank 0's tensors by name, on the CPU; the other ranks pass None."""
        if self.size == 1:
            return dict(tensors or {})
        sent = save({name: t.contiguous() for name, t in (tensors or {}).items()}) if self.leads else b""
        return load(self._share_bytes(sent))

    def _share_bytes(self, data: bytes) -> bytes:
        length = torch.tensor([len(data)], dtype=torch.int64)
        _exchange(lambda: dist.broadcast(length, src=0))
        content = torch.empty(int(length), dtype=torch.uint8)
        if self.leads:
            content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        _exchange(lambda: dist.broadcast(content, src=0))
        return content.numpy().tobytes()


ALONE = Team()
_team = ALONE


def current_team() -> Team:
    """The team of the surrounding :func:`joined` block, or a team of one."""
    return _team


@contextmanager
def joined(device: str = "auto") -> Iterator[Team]:
    """Join the team that the environment names (torchrun's RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, ...).

    Args:
        device: ``auto``, ``cpu`` or ``cuda``: gloo carries tensors on the CPU, nccl those on GPUs.

    Raises:
        UsageError: the environment is incomplete, or the ranks cannot connect.
        PeerFailedError: the block failed after another rank had; that rank reports why.
    """
    global _team
    size = _number("WORLD_SIZE", 1)
    if size <= 1:
        yield ALONE
        return
    missing = [name for name in _ENVIRONMENT if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE is {size}, but {', '.join(missing)} is not set", "start with torchrun, or set it"
        )
    rank = _number("RANK", 0)
    backend = "cpu:gloo,cuda:nccl" if device != "cpu" and torch.cuda.is_available() else "gloo"
    try:
        # The store outlives a failure, so that the ranks can agree on who reports it.
        store, rank, size = next(rendezvous("env://", rank, size, timeout=timedelta(minutes=5)))
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    except (RuntimeError, ValueError) as error:  # torch raises RuntimeError if it cannot connect
        raise UsageError(
            f"rank {rank} of {size} cannot join {os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} "
            f"({first_line(error)})",
            "check that every machine reaches it and started the same number of processes",
        ) from None
    _team = Team(rank, size, _number("LOCAL_RANK", 0), _number("LOCAL_WORLD_SIZE", 1))
    try:
        yield _team
    except BaseException as error:
        if not _fails_first(store, rank):
            raise PeerFailedError(_status(error)) from error
        raise
    else:
        dist.destroy_process_group()
    finally:
        _team = ALONE


def local_device(device: torch.device) -> torch.device:
    """The device of this rank: the GPU with its index on its machine.

    Raises:
        UsageError: the machine has too few GPUs, or ``device`` names one for several ranks.
    """
    team = _team
    if team.size == 1 or device.type != "cuda":
        return device
    count = torch.cuda.device_count()
    if device.index is not None and team.local_size > 1:
        raise UsageError(f"--device {device} is one GPU for {team.local_size} processes", "use --device cuda")
    if team.local_rank >= count:
        raise UsageError(
            f"process {team.local_rank} of this machine has no GPU of its own ({count} available)",
            f"start at most {count} with --nproc-per-node",
        )
    own = torch.device("cuda", team.local_rank if device.index is None else device.index)
    torch.cuda.set_device(own)
    return own


def _put(flat: Tensor, tensors: Sequence[Tensor]) -> None:
    at = 0
    for tensor in tensors:
        tensor.copy_(flat[at : at + tensor.numel()].view_as(tensor))
        at += tensor.numel()


def _exchange(action: Callable[[], Any]) -> None:
    try:
        action()
    except RuntimeError as error:  # raised by gloo and nccl for any failure
        raise GrmpError(
            f"lost the other processes of this training ({first_line(error, 160)})",
            "see their messages; the same command (of train: with --resume) continues from the last save",
        ) from None


def _fails_first(store: Any, rank: int) -> bool:
    try:
        return int(store.add("grmp-edge failed", 1)) == 1
    except RuntimeError:
        # The store is gone with rank 0, which hosted it: that rank failed first.
        return rank == 0


def _status(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return 130
    return error.exit_code if isinstance(error, GrmpError) else 1


def _number(name: str, default: int) -> int:
    try:
        return int(os.environ.get(name, default))
    except ValueError:
        raise UsageError(f"{name}={os.environ[name]!r} is not a number", "start with torchrun") from None
