"""When to stop, and which epoch to keep: the rules of the GCN and of the GAT paper."""

from collections.abc import Sequence

from common.run import Best


def above_mean(losses: Sequence[float], window: int | None) -> bool:
    """Whether the last validation loss is above the mean of the `window` before it (GCN, 5.2)."""
    before = losses[-window - 1 : -1] if window else []
    return bool(before) and len(before) == window and losses[-1] > sum(before) / window


class Both(Best):
    """GAT's rule (Sec. 3.3): an epoch is stale if neither the validation loss nor the score (the
    accuracy, or F1) is as good as the best so far; the epoch to keep is the last at which both are.

    `value` is the lowest loss and the highest score, which may be of different epochs.
    """

    def see(self, metrics: dict[str, float], whole: bool) -> None:
        """Compares an epoch; one that --max-steps cut short only where there is no other."""
        if "val_loss" not in metrics or not (whole or self.value is None):
            return
        loss = metrics["val_loss"]
        score = metrics["val_f1"] if "val_f1" in metrics else metrics["val_accuracy"]
        if isinstance(self.value, float):  # of a run that watched the loss alone
            self.value = (self.value, 0.0)
        lowest, highest = self.value or (loss, score)
        self.improved = loss <= lowest and score >= highest
        higher = score >= highest and (highest < 1 or self.value is None)  # 1 can't improve
        self.stale = 0 if loss <= lowest or higher else self.stale + 1
        self.value = (min(loss, lowest), max(score, highest)) if whole else None
