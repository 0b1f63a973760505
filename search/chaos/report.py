"""What was broken while a study ran, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from search.chaos.plan import WORDS


@dataclass(frozen=True)
class Report:
    """What was broken, and what came of it.

    Attributes
    ----------
    faults : injected, by kind
    worker_ends : how workers ended, by exit code; that of a signal is negative
    last_words : of workers that gave up
    attempts : at all trials together
    trials_lost : asked for, and neither complete nor pruned
    trials_duplicated : runs or trials beyond one for each
    metrics_lost : epochs of which a metric is not in the record
    overshoot : trials begun beyond those asked for
    restarted : attempts that began at the first epoch after a checkpoint was there
    differing : trials that, repeated undisturbed, give other numbers
    stale_checkpoints : trials whose checkpoint is not that of their last epoch
    awakened : folders in which workers wrote that had lost their trial; nobody reads them
    differences : what ``study verify`` found
    """

    seed: int
    seconds: float
    faults: dict[str, int]
    worker_ends: dict[str, int]
    last_words: list[str]
    trials: dict[str, int]
    attempts: int
    metrics: int
    trials_lost: int
    trials_duplicated: int
    metrics_lost: int
    overshoot: int
    restarted: int
    differing: list[int]
    stale_checkpoints: int
    awakened: int
    differences: list[str]
    missing_faults: dict[str, int]

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, and everything was really broken."""
        return not (
            self.trials_lost
            or self.trials_duplicated
            or self.metrics_lost
            or self.overshoot
            or self.restarted
            or self.differing
            or self.stale_checkpoints
            or self.differences
            or self.missing_faults
        )

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        ends = ", ".join(f"{code}: {count}" for code, count in self.worker_ends.items())
        states = ", ".join(f"{count} {state}" for state, count in self.trials.items())
        return [
            f"chaos, seed {self.seed}: {self.seconds:.0f} s",
            *(f"  {count:>4}  {WORDS[kind]}" for kind, count in self.faults.items()),  # type: ignore[index]
            f"        workers ended with {ends}",
            *(f"        {words}" for words in self.last_words),
            f"study: {states}; {self.attempts} attempts, {self.metrics:,} metric values",
            f"  {self.trials_lost:>4}  trials lost",
            f"  {self.trials_duplicated:>4}  trials duplicated",
            f"  {self.metrics_lost:>4}  metrics lost",
            f"  {self.overshoot:>4}  trials too many",
            f"  {self.restarted:>4}  trainings begun again after their first checkpoint",
            f"  {len(self.differing):>4}  trials with other numbers when repeated undisturbed",
            f"  {self.stale_checkpoints:>4}  checkpoints that are not of the last epoch"
            f" ({self.awakened} folders of workers that woke up too late, read by nobody)",
            f"  {len(self.differences):>4}  differences between SQL, Optuna and MLflow",
            *(f"        {line}" for line in self.differences),
            *(f"  not injected: {count} x {WORDS[kind]}" for kind, count in self.missing_faults.items()),  # type: ignore[index]
        ]
