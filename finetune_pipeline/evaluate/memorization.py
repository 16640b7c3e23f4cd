"""Memorization: how well the tuned model's loss separates its training rows from test rows.

    memorized(train_losses, test_losses)     # {"auc": 0.53, "interval": [0.46, 0.60], ...}

The AUC is the probability that a training row has a lower loss than a test row: at 0.5 the two cannot be separated, at
1.0 they always can. This is the simplest membership inference (Yeom et al. 2018, "Privacy Risk in Machine Learning");
stronger attacks exist, so a value near 0.5 is no proof of privacy.

The interval is that of DeLong et al. (1988) at 95 %, the p-value that of the one-sided Mann-Whitney test ("the losses
of training rows are lower").
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

MAX_ROWS = 64  # of each split: the AUC is then known to about 0.1, in some 20 seconds on two cores


class MemorizationLosses(TypedDict):
    """What the job measures: mean negative log likelihood per token (nats) of as many training as test rows."""

    train: list[float]
    test: list[float]


class MemorizationFigures(TypedDict):
    """`memorization` in report.json. `interval` of `auc` at 95 %; losses in nats per token."""

    auc: float
    interval: list[float]
    p_value: float
    train_rows: int
    test_rows: int
    train_loss: float
    test_loss: float


def memorized(train: Sequence[float], test: Sequence[float]) -> MemorizationFigures:
    """The AUC with which the losses of training rows and test rows (nats per token) are separated."""
    import numpy as np
    from scipy.stats import mannwhitneyu, norm

    train_losses, test_losses = np.asarray(train, dtype=float), np.asarray(test, dtype=float)
    p_value = float(mannwhitneyu(train_losses, test_losses, alternative="less").pvalue)
    lower = train_losses[:, None] < test_losses[None, :]
    concordant = lower + 0.5 * (train_losses[:, None] == test_losses[None, :])  # [training rows, test rows]
    auc = float(concordant.mean())
    variance = concordant.mean(axis=1).var(ddof=1) / len(train) + concordant.mean(axis=0).var(ddof=1) / len(test)
    half_width = float(norm.ppf(0.975) * np.sqrt(variance))
    return {
        "auc": round(auc, 4),
        "interval": [round(max(auc - half_width, 0.0), 4), round(min(auc + half_width, 1.0), 4)],
        "p_value": round(p_value, 4),
        "train_rows": len(train),
        "test_rows": len(test),
        "train_loss": round(float(train_losses.mean()), 4),
        "test_loss": round(float(test_losses.mean()), 4),
    }
