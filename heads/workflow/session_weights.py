"""Weights of heads that never saw a session, with their scores: what the audit of shortcuts takes apart.

A head separates even the noise of sessions that it was fitted on, and better where they have more clips, so what it
does there says nothing of sessions to come. The folds are those that thresholds are chosen by; where sessions are
assigned to folds several times, weights are averaged, which averages log odds.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from heads.data import LearningData
from heads.models import Head, head_scores
from heads.scoring.cross_fitting import Labels, Rows, Scores, Targets, out_of_fold_scores
from heads.settings import HeadSettings

Weights = npt.NDArray[np.float64]
"""What a unit of each dimension of one input adds to each label's log odds, shape (C, D)."""


@dataclass(frozen=True, eq=False)
class SessionWeights:
    """Weights of one input by session, and scores of clips by the same heads.

    Attributes:
        scores: Probabilities of the N clips, shape (N, C); NaN for a label that cannot be learned without some fold.
    """

    scores: npt.NDArray[np.float64]
    _of: dict[str, list[Weights]]

    def of(self, session: str) -> Weights:
        """Those of the heads that were fitted without a session; NaN as in `scores`."""
        return np.asarray(np.mean(self._of[session], axis=0))


def session_weights(
    data: LearningData, settings: HeadSettings, names: tuple[str, ...], name: str, *, device: str
) -> SessionWeights:
    """Fits a linear head's settings without each fold of training and validation sessions.

    Args:
        data: The clips.
        settings: Settings of a linear head.
        names: Its inputs, in the order in which it reads them.
        name: The input whose weights are wanted.
        device: Where to train.

    Raises:
        TrainingDataError: If the splits cannot train a head.
        SettingsError: If training diverges or does not converge.
    """
    from heads.engines.fitting import fitting_some
    from heads.engines.prepared import Prepared

    data.check()
    prepared = Prepared(data, seed=0, device=device)
    clips = prepared.fitting(settings.inputs)
    fit = fitting_some(clips, settings, seed=0, device=device, prior=prepared.prior(settings))
    of: dict[str, list[Weights]] = {}

    def fit_scores(train: Rows, Y_train: Targets, learnable: Labels, held_out: Rows) -> Scores:
        head = fit(train, Y_train, learnable)
        own = _weights(head, names.index(name))
        weights = np.full((len(learnable), own.shape[1]), np.nan)
        weights[learnable] = own
        for session in np.unique(clips.sessions[held_out]).tolist():
            of.setdefault(session, []).append(weights)
        return head_scores(head, clips.X[held_out])

    scores = out_of_fold_scores(fit_scores, clips.Y, prepared.folds, clip_ids=clips.clip_ids)
    return SessionWeights(np.asarray(scores.mean(axis=0)), of)


def _weights(head: Head, at: int) -> Weights:
    """Of the input number `at`."""
    state = {key: tensor.double().numpy() for key, tensor in head.state_dict().items()}
    weights = state["output.weight"]
    if "front.axes" in state:
        weights = weights @ state["front.axes"].T
    widths = head.front.part_widths
    own = slice(sum(widths[:at]), sum(widths[: at + 1]))
    return np.asarray(weights[:, own] / state["front.scale"][own])
