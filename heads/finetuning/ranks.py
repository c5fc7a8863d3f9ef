"""Several processes that train one model: each takes its share of every batch, and gradients are summed.

A launcher such as `torchrun` sets RANK, WORLD_SIZE and LOCAL_RANK; without it there is one process and nothing to do.
Sums are of gradients that are already divided by the whole batch's size, so two processes take the step of one.

Not here: sharded weights. Every process holds the whole model.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from featurecache.backbones.files import first_line
from featurecache.errors import WorkerDiedError

_PATIENCE = timedelta(hours=12)  # others wait while the first process extracts tokens


@dataclass(frozen=True)
class Ranks:
    """This process among its peers: its number, and how many there are."""

    index: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.index == 0

    def share(self, items: Sequence[int]) -> Sequence[int]:
        """This process's part of a batch: consecutive items, parts as equal as can be, maybe none."""
        edges = [len(items) * number // self.count for number in (self.index, self.index + 1)]
        return items[edges[0] : edges[1]]

    def sum(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over all processes.

        Raises:
            WorkerDiedError: If one of them ended.
        """
        if self.count == 1:
            return
        flat = torch.cat([tensor.detach().float().flatten() for tensor in tensors])
        with _lost_peers():
            dist.all_reduce(flat)
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def wait(self) -> None:
        """Returns when every process has come here.

        Raises:
            WorkerDiedError: If one of them ended.
        """
        if self.count > 1:
            with _lost_peers():
                dist.barrier()


@contextmanager
def _lost_peers() -> Iterator[None]:
    """What gloo and NCCL say of a process that is gone, as a named error."""
    try:
        yield
    except RuntimeError as error:
        raise WorkerDiedError(
            f"every process of a run must stay to its end, but another process of this run ended ({first_line(error)}) "
            "Its own last lines say why. Run again: training resumes from the last checkpoint."
        ) from error


@contextmanager
def joined_ranks(device: str) -> Iterator[tuple[Ranks, str]]:
    """Joins the processes that a launcher started.

    Args:
        device: The torch device of the settings; `cuda` becomes this process's own.

    Yields:
        This process among its peers, and its device.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(), device
        return
    if device == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), count), device
        dist.barrier()  # the first one keeps the store that the others still talk to
    finally:
        dist.destroy_process_group()
