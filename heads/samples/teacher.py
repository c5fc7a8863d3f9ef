"""Text relevance: which parts of a sample fit what somebody wrote of it, as a teacher for the weights of a head.

Source: LLaVA-Ultra (a vision language model for ultrasound), equation 5: cross-entropy between the normalised attention
of a text to the images of a group, and the normalised scores that a head gives them. Here the attention is that of a
joint text tower, which was trained to tell such pairs: the softmax over the parts of similarity times the model's own
scale. The teacher is needed in training alone.
"""

import numpy as np
import numpy.typing as npt

from heads.samples.joining import present


def text_relevance(
    X: npt.NDArray[np.floating], vectors: npt.NDArray[np.floating], scale: float
) -> npt.NDArray[np.float32]:
    """How much each part is what its sample's text tells of.

    Args:
        X: Embeddings of the parts in the text's space, shape (N, P, D), NaN where a part is absent.
        vectors: Unit vectors of the texts, shape (N, D); NaN where a sample has none.
        scale: What a similarity is multiplied by to give the model's logit.

    Returns:
        Weights, shape (N, P): they sum to 1 over the parts that are there, and are 0 for a sample without a text.
    """
    there = present(X)
    logits = scale * np.einsum("npd,nd->np", np.nan_to_num(X.astype(np.float64)), np.nan_to_num(vectors))
    logits = np.where(there, logits, -np.inf)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    return np.where(np.isnan(vectors[:, :1]), 0, weights).astype(np.float32)
