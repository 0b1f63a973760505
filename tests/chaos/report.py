"""What was broken while a study ran, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from tests.chaos.plan import DESCRIPTIONS, Kind


@dataclass(frozen=True)
class ChaosReport:
    """What was broken, and what came of it.

    Attributes
    ----------
    faults : that had their effect, by kind
    required : how many of each kind had to
    repeated : that had none, as a worker was dead already or woke up with its trial, and came once more
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
    woken_wrote : rows of the record that such workers added or changed
    differences : what ``study verify`` found
    """

    seed: int
    seconds: float
    faults: dict[str, int]
    required: dict[str, int]
    repeated: dict[str, int]
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
    woken_wrote: int
    differences: list[str]

    @property
    def missing_faults(self) -> dict[str, int]:
        """How many of each kind are missing from those that had to have an effect."""
        missing = {kind: count - self.faults.get(kind, 0) for kind, count in self.required.items()}
        return {kind: count for kind, count in missing.items() if count > 0}

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
            or self.woken_wrote
            or self.differences
            or self.missing_faults
        )

    def lines(self) -> list[str]:
        """The report as a person reads it."""
        ends = ", ".join(f"{code}: {count}" for code, count in self.worker_ends.items())
        states = ", ".join(f"{count} {state}" for state, count in self.trials.items())
        return [
            f"chaos, seed {self.seed}: {self.seconds:.0f} s",
            *(self._fault_line(kind) for kind in DESCRIPTIONS),
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
            f"  {self.woken_wrote:>4}  rows written by workers after their trial was taken over",
            f"  {len(self.differences):>4}  differences between SQL, Optuna and MLflow",
            *(f"        {line}" for line in self.differences),
            *(f"  MISSING: {count} x {DESCRIPTIONS[kind]}" for kind, count in self.missing_faults.items()),  # type: ignore[index]
        ]

    def _fault_line(self, kind: Kind) -> str:
        line = f"  {self.faults[kind]:>4}  {DESCRIPTIONS[kind]}, of {self.required[kind]} required"
        again = self.repeated.get(kind, 0)
        return f"{line} ({again} more had no effect)" if again else line
