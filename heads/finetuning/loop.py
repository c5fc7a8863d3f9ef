"""One loop that trains a backbone's parameters together with a head: FT-C-LoRA and the supervised baseline.

Notable choices:

- Every draw (order of clips, dropout) is a function of seed and step, and so is the learning rate. A checkpoint needs
  no generator's state, and a run that was killed resumes as if it had not been: bit for bit on a CPU.
- A batch is divided into micro-batches that fit in memory, and among processes; the loss is divided by the whole
  batch's size, so neither division changes the step. A micro-batch that does not fit is halved and its batch restarted
  again; dropout then draws other numbers, nothing else changes.
- Epoch 0 is the network before training: the result is never worse on validation than what was started from.

Not here: what the network is, where clips come from, thresholds, files other than the checkpoint.
"""

import logging
import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from featurecache.device import is_out_of_memory
from featurecache.errors import DivergedError, SettingsError
from heads.finetuning.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from heads.finetuning.interrupts import Interrupts, defer_interrupts
from heads.finetuning.ranks import Ranks
from heads.finetuning.training_state import (
    Clips,
    Cost,
    Epoch,
    Group,
    Rows,
    Training,
    clock_s,
    micro_batch_seed,
    parameter_groups,
    read_ahead,
)
from heads.scoring.metrics import macro_f1

_log = logging.getLogger(__name__)


class FineTuning:
    """A run of the loop.

    Args:
        network: Gives logits (B, C) of rows; what requires a gradient is trained. It keeps the best parameters.
        groups: Every trainable parameter must begin with exactly one group's prefix.
        train: Training clips.
        validation: Validation clips.
        positive_weight: Weight of each label's positive term in the loss, (C,).
        epochs: Passes over the training clips at most.
        patience: Epochs without a better one after which to stop; 0 never stops.
        select: What makes an epoch better: `macro_f1` at 0.5 (equal ones by loss), or `loss`, both on validation.
        batch_size: Clips of a step.
        micro_batch: Clips at once, at most.
        warmup: Share of all steps in which the learning rate rises; it then falls along a cosine.
        clip_norm: The gradient is scaled down to this norm.
        seed: Seed of the order of clips and of dropout.
        device: Where the network is.
        autocast: Dtype of autocast; None for none.
        ranks: This process among its peers.

    Raises:
        ValueError: If a trainable parameter is of no group or of several.
    """

    def __init__(
        self,
        network: nn.Module,
        groups: Sequence[Group],
        train: Clips,
        validation: Clips,
        *,
        positive_weight: Tensor,
        epochs: int,
        patience: int,
        select: Literal["macro_f1", "loss"],
        batch_size: int,
        micro_batch: int,
        warmup: float,
        clip_norm: float,
        seed: int,
        device: str = "cpu",
        autocast: torch.dtype | None = None,
        ranks: Ranks | None = None,
    ) -> None:
        self.network, self.train, self.validation = network, train, validation
        self.select, self.clip_norm = select, clip_norm
        self.epochs, self.patience = epochs, patience
        self.batch_size, self.micro_batch, self.seed = min(batch_size, len(train.Y)), micro_batch, seed
        self.ranks = ranks or Ranks()
        self._device, self._autocast = torch.device(device), autocast
        self._positive_weight = positive_weight.to(self._device)
        self.trainable = {name: one for name, one in network.named_parameters() if one.requires_grad}
        self._optimizer = torch.optim.AdamW(parameter_groups(self.trainable, groups))
        self._penalised = [
            (parameter, group)
            for group in groups
            for name, parameter in self.trainable.items()
            if group.l2 and parameter.ndim > 1 and name.startswith(group.prefix)
        ]
        self._highest = [group["lr"] for group in self._optimizer.param_groups]
        self.steps_per_epoch = math.ceil(len(train.Y) / self.batch_size)
        self.steps = epochs * self.steps_per_epoch
        self._warmup_steps = math.ceil(warmup * self.steps)
        self.step = 0
        self.history: list[Epoch] = []
        self._losses: list[float] = []  # of this epoch's steps
        self._best: dict[str, Tensor] = {}
        self._checked = False
        self._expected: int | None = None  # the epoch whose clips are

    @property
    def kept_epoch(self) -> int:
        """The best epoch so far."""
        return min(self.history, key=self._order).epoch

    def run(
        self,
        *,
        checkpoint: Path | None = None,
        every_s: float = 600.0,
        signature: Mapping[str, Any] | None = None,
        on_progress: Callable[[Training], None] = lambda _: None,
    ) -> None:
        """Trains to the end, or on to it from a checkpoint, and leaves the best epoch's parameters in the network.

        Args:
            checkpoint: Its file; None keeps none.
            every_s: Seconds from one checkpoint to the next.
            signature: Run signature: what a checkpoint must have started with to be resumed, JSON-ready.
            on_progress: Called after each step and each scored epoch.

        Raises:
            CheckpointError: If the checkpoint is damaged or of another run.
            DivergedError: If training diverges.
            SettingsError: If one clip does not fit in memory.
            KeyboardInterrupt: On SIGINT or SIGTERM, when the checkpoint is written.
        """
        began = saved = time.monotonic()
        found = None if checkpoint is None else load_checkpoint(checkpoint, signature or {})
        if found is not None:
            self._restore(found)

        def save() -> None:
            if checkpoint is not None and self.ranks.is_first:
                save_checkpoint(self._state(signature or {}), checkpoint)

        with defer_interrupts() as interrupts:
            while not self._is_done():
                scored = self.step == len(self.history) * self.steps_per_epoch
                if scored:
                    self._end_epoch()
                else:
                    self._train_step(interrupts)
                if interrupts.asked:
                    save()
                    raise KeyboardInterrupt
                if scored or time.monotonic() - saved > every_s:
                    save()
                    saved = time.monotonic()
                loss = self._losses[-1] if self._losses else None
                elapsed_s = time.monotonic() - began
                on_progress(Training(self.step, self.steps, loss, tuple(self.history), self.micro_batch, elapsed_s))
        self._load(self._best)

    def measure(self) -> Cost:
        """Times a micro-batch of training clips, as the run would do it; changes no parameter and no later draw."""
        numbers = list(range(min(self.micro_batch, len(self.train.Y))))
        self._gradients(numbers, numbers)  # what is made once
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        took = []
        for _ in range(2):
            began = clock_s(self._device)
            self._gradients(numbers, numbers)
            took.append((clock_s(self._device) - began) / len(numbers))
        self._optimizer.zero_grad(set_to_none=True)
        self._checked = False
        began = clock_s(self._device)
        self._score(self.train, numbers)
        return Cost(min(took), (clock_s(self._device) - began) / len(numbers), self.peak_bytes())

    def peak_bytes(self) -> int:
        """Peak memory so far: the device's, or this process's on a CPU."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    def scores(self, clips: Clips) -> npt.NDArray[np.float32]:
        """Probabilities of clips, shape (N, C)."""
        logits = self._score(clips, list(range(len(clips.Y))))
        return torch.sigmoid(logits).numpy()

    # --- one step ---------------------------------------------------------------------------------

    def _train_step(self, interrupts: Interrupts) -> None:
        epoch, place = divmod(self.step, self.steps_per_epoch)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(self.train.Y))
        batch = order[place * self.batch_size : (place + 1) * self.batch_size].tolist()
        if epoch != self._expected:
            starts = range(place * self.batch_size, len(order), self.batch_size)
            batches = [order[start : start + self.batch_size].tolist() for start in starts]
            self.train.expect([number for one in batches for number in self.ranks.share(one)])
            self._expected = epoch
        loss = self._gradients(self.ranks.share(batch), batch, interrupts)
        if loss is None:
            return
        asked = torch.tensor([float(interrupts.asked)], device=self._device)
        for parameter in self.trainable.values():
            if parameter.grad is None:  # this process's share of the batch was empty
                parameter.grad = torch.zeros_like(parameter)
        for parameter, penalised in self._penalised if self.ranks.is_first else []:
            if parameter.grad is not None:
                parameter.grad.add_(penalised.penalise(parameter.detach()), alpha=penalised.l2)
        self.ranks.sum([loss, asked, *(one.grad for one in self.trainable.values() if one.grad is not None)])
        interrupts.asked = bool(asked.item())
        norm = nn.utils.clip_grad_norm_(list(self.trainable.values()), self.clip_norm)
        if not (torch.isfinite(loss).all() and torch.isfinite(norm)):
            raise DivergedError(
                f"training must not diverge, but in step {self.step + 1} the loss is {loss.item():g} and the norm of "
                f"the gradient {norm.item():g}. Lower the learning rates."
            )
        for group, highest in zip(self._optimizer.param_groups, self._highest, strict=True):
            group["lr"] = highest * self._rate(self.step)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self._losses.append(loss.item())
        self.step += 1

    def _rate(self, step: int) -> float:
        """Share of the highest learning rate in a step."""
        if step < self._warmup_steps:
            return (step + 1) / self._warmup_steps
        done = (step - self._warmup_steps) / max(1, self.steps - self._warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * done))

    def _gradients(
        self, numbers: Sequence[int], batch: Sequence[int], interrupts: Interrupts | None = None
    ) -> Tensor | None:
        """Puts into `.grad` what some of a batch's clips add to its gradient.

        Returns:
            What they add to its loss, shape (1,); None if an interruption came between two micro-batches.
        """
        self.network.train()
        while True:
            self._optimizer.zero_grad(set_to_none=True)
            total = torch.zeros(1, device=self._device)
            try:
                for part, rows in read_ahead(self.train, numbers, self.micro_batch):
                    if interrupts is not None and interrupts.asked and self.ranks.count == 1:
                        return None
                    loss = self._loss(self.train, part, rows, whole=len(batch))
                    loss.backward()  # type: ignore[no-untyped-call]
                    total += loss.detach()
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._halve()  # only here are the tensors gone that the exception's traceback held
        if numbers and not self._checked:
            without = [name for name, parameter in self.trainable.items() if parameter.grad is None]
            if without:
                raise RuntimeError(f"every trainable parameter must get a gradient, but {without} got none.")
            self._checked = True
        return total

    def _loss(self, clips: Clips, numbers: Sequence[int], rows: Rows, *, whole: int) -> Tensor:
        """Sum of the weighted binary cross-entropies of some clips, divided by those of the whole batch.

        Source: Guerriero et al., equation 2.
        """
        with torch.random.fork_rng(devices=[self._device] if self._device.type == "cuda" else []):
            torch.manual_seed(micro_batch_seed(self.seed, self.step, numbers[0]))
            logits = self._logits(rows)
        return self._sum_of_losses(logits, clips.Y[list(numbers)]) / (whole * logits.shape[1])

    def _logits(self, rows: Rows) -> Tensor:
        on_device = {name: one.to(self._device, non_blocking=True) for name, one in rows.items()}
        with torch.autocast(self._device.type, dtype=self._autocast, enabled=self._autocast is not None):
            logits: Tensor = self.network(on_device)
        return logits.float()

    def _sum_of_losses(self, logits: Tensor, Y: npt.NDArray[np.integer]) -> Tensor:
        targets = torch.from_numpy(Y.astype(np.float32)).to(logits.device)
        weight = self._positive_weight.to(logits.device)
        return binary_cross_entropy_with_logits(logits, targets, pos_weight=weight, reduction="sum")

    def _halve(self) -> None:
        if self.micro_batch == 1:
            raise SettingsError(
                "one clip must fit in memory, but it does not. Set gradient_checkpointing = true, "
                "train fewer layers, or use a device with more memory."
            )
        self.micro_batch //= 2
        torch.cuda.empty_cache()  # does nothing in a process that has used no GPU

    # --- an epoch's end ---------------------------------------------------------------------------

    def _end_epoch(self) -> None:
        Y = self.validation.Y
        logits = self._score(self.validation, list(range(len(Y))))
        scores = torch.sigmoid(logits).numpy()
        loss = float(self._sum_of_losses(logits, Y)) / Y.size
        if not math.isfinite(loss):
            raise DivergedError(
                f"training must not diverge, but after epoch {len(self.history)} the validation loss is {loss:g}. "
                "Lower the learning rates."
            )
        train_loss = sum(self._losses) / len(self._losses) if self._losses else None
        self.history.append(Epoch(len(self.history), train_loss, loss, macro_f1(Y, scores)))
        _log.debug("%s", self.history[-1])
        self._losses = []
        if self.kept_epoch == self.history[-1].epoch:
            self._best = {name: one.detach().cpu().clone() for name, one in self.trainable.items()}

    @torch.no_grad()
    def _score(self, clips: Clips, numbers: Sequence[int]) -> Tensor:
        """Logits of clips, (n, C), on the CPU; each process does its share."""
        self.network.eval()
        logits = torch.zeros(len(numbers), clips.Y.shape[1], device=self._device)
        while True:
            try:
                mine = self.ranks.share(range(len(numbers)))
                clips.expect([numbers[place] for place in mine])
                for part, rows in read_ahead(clips, [numbers[place] for place in mine], self.micro_batch, places=mine):
                    logits[list(part)] = self._logits(rows)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            self._halve()
        self.ranks.sum([logits])
        return logits.cpu()

    def _order(self, epoch: Epoch) -> tuple[float, float, int]:
        """Sorts epochs, the best one first."""
        f1 = -epoch.validation_macro_f1 if self.select == "macro_f1" else 0.0
        return f1, epoch.validation_loss, epoch.epoch

    def _is_done(self) -> bool:
        if not self.history:
            return False
        last = self.history[-1].epoch
        waited = bool(self.patience) and last - self.kept_epoch >= self.patience
        return self.step == last * self.steps_per_epoch and (waited or last == self.epochs)

    # --- state ------------------------------------------------------------------------------------

    def _state(self, signature: Mapping[str, Any]) -> Checkpoint:
        document = {
            "signature": dict(signature),
            "step": self.step,
            "micro_batch": self.micro_batch,
            "losses": self._losses,
            "history": [vars(epoch) for epoch in self.history],
        }
        tensors = {f"now.{name}": one.detach().cpu() for name, one in self.trainable.items()}
        tensors |= {f"best.{name}": one for name, one in self._best.items()}
        for name, parameter in self.trainable.items():
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value.detach().cpu()
        return Checkpoint(document, tensors)

    def _restore(self, found: Checkpoint) -> None:
        document, tensors = found.document, found.tensors
        self.step, self.micro_batch = document["step"], document["micro_batch"]
        self._losses = list(document["losses"])
        self.history = [Epoch(**epoch) for epoch in document["history"]]
        self._load({name: tensors[f"now.{name}"] for name in self.trainable})
        self._best = {name: tensors[f"best.{name}"] for name in self.trainable if f"best.{name}" in tensors}
        for name, parameter in self.trainable.items():
            if f"exp_avg.{name}" in tensors:
                state = {key: tensors[f"{key}.{name}"] for key in ("step", "exp_avg", "exp_avg_sq")}
                self._optimizer.state[parameter] = {
                    key: value if key == "step" else value.to(parameter.device) for key, value in state.items()
                }

    @torch.no_grad()
    def _load(self, parameters: Mapping[str, Tensor]) -> None:
        for name, parameter in self.trainable.items():
            parameter.copy_(parameters[name])
