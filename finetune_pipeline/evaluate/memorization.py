"""Does the tuned model remember its training rows? Told by whether their loss gives them away. Pure.

    memorized(train_losses, test_losses)     # {"auc": 0.53, "interval": [0.46, 0.60], ...}

The AUC is the chance that a training row has a lower loss than a test row: 0.5 is none (the rows cannot be told apart),
1.0 is all. This is the simplest membership inference there is (Yeom et al. 2018, "Privacy Risk in Machine Learning");
stronger attacks exist, so that a value near 0.5 is good news, not a proof of privacy.

The interval is that of DeLong et al. (1988) at 95 %, the p-value that of the Mann-Whitney test against "no lower".
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune_pipeline.records import Json

MOST_ROWS = 64  # of each side: an AUC of 0.5 is then known to about 0.1, in some 20 seconds on two cores


def memorized(train: Sequence[float], test: Sequence[float]) -> dict[str, Json]:
    """AUC of telling training rows from test rows by their loss (mean negative log likelihood per token)."""
    import numpy as np
    from scipy.stats import mannwhitneyu, norm

    seen, unseen = np.asarray(train, dtype=float), np.asarray(test, dtype=float)
    p_value = float(mannwhitneyu(seen, unseen, alternative="less").pvalue)
    below = (seen[:, None] < unseen[None, :]) + 0.5 * (seen[:, None] == unseen[None, :])
    auc = float(below.mean())
    variance = below.mean(axis=1).var(ddof=1) / len(seen) + below.mean(axis=0).var(ddof=1) / len(unseen)
    reach = float(norm.ppf(0.975) * np.sqrt(variance))
    return {
        "auc": round(auc, 4),
        "interval": [round(max(auc - reach, 0.0), 4), round(min(auc + reach, 1.0), 4)],
        "p_value": round(p_value, 4),
        "train_rows": len(seen),
        "test_rows": len(unseen),
        "train_loss": round(float(seen.mean()), 4),
        "test_loss": round(float(unseen.mean()), 4),
    }
