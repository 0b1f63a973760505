"""Report of a chaos run: its faults and their consequences."""

from __future__ import annotations

from dataclasses import dataclass

from tests.chaos.plan import DESCRIPTIONS, Kind
from tests.chaos.study_files import StudyName


@dataclass(frozen=True)
class ChaosReport:
    """The faults of a run, and their consequences.

    Attributes
    ----------
    faults : number of faults that had an effect, by kind
    required : number that must have an effect, by kind
    repeated : faults without effect, as the worker had ended or kept its trial; they were repeated
    worker_ends : number of workers by exit code; the code of a signal is negative
    last_words : last lines of workers that gave up
    attempts : number of attempts at all trials together
    trials_lost : trials that were asked for, and are neither complete nor pruned
    trials_duplicated : runs or Optuna trials beyond one for each trial
    metrics_lost : metric values that are not in the record
    overshoot : trials begun beyond those asked for
    restarted : attempts that began at the first epoch though a checkpoint existed
    differing : trials that give other numbers when they are reproduced undisturbed
    stale_checkpoints : trials whose checkpoint is not that of their last epoch
    awakened : folders written by workers that had lost their trial, which nobody reads
    woken_wrote : rows of the record that such workers added or changed
    differences : differences found by ``study verify``
    broken_rules : what differs from what the settings of the study promise
    differing_features : files of feature stores that differ from those that are computed undisturbed
    ended_without_gain : whether the study ended because nothing was left to gain
    """

    seed: int
    study: StudyName
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
    broken_rules: list[str]
    differing_features: list[str]
    ended_without_gain: bool

    @property
    def missing_faults(self) -> dict[str, int]:
        """Number of missing faults of each kind that had to have an effect."""
        missing = {kind: count - self.faults.get(kind, 0) for kind, count in self.required.items()}
        return {kind: count for kind, count in missing.items() if count > 0}

    @property
    def clean(self) -> bool:
        """Whether nothing was lost, and every required fault had its effect."""
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
            or self.broken_rules
            or self.differing_features
            or self.missing_faults
        )

    def lines(self) -> list[str]:
        """The report as lines of text."""
        ends = ", ".join(f"{code}: {count}" for code, count in self.worker_ends.items())
        states = ", ".join(f"{count} {state}" for state, count in self.trials.items())
        return [
            f"chaos, study {self.study}, seed {self.seed}: {self.seconds:.0f} s",
            *(self._fault_line(kind) for kind in DESCRIPTIONS),
            f"        workers ended with {ends}",
            *(f"        {words}" for words in self.last_words),
            f"study: {states}; {self.attempts} attempts, {self.metrics:,} metric values"
            + (", nothing left to gain" if self.ended_without_gain else ""),
            f"  {self.trials_lost:>4}  trials lost",
            f"  {self.trials_duplicated:>4}  trials duplicated",
            f"  {self.metrics_lost:>4}  metrics lost",
            f"  {self.overshoot:>4}  trials too many",
            f"  {self.restarted:>4}  trainings restarted after their first checkpoint",
            f"  {len(self.differing):>4}  trials with other numbers when reproduced without faults",
            f"  {self.stale_checkpoints:>4}  checkpoints that are not of the last epoch"
            f" ({self.awakened} unused folders of workers that were resumed too late)",
            f"  {self.woken_wrote:>4}  rows written by workers after their trial was taken over",
            f"  {len(self.differences):>4}  differences between SQL, Optuna and MLflow",
            *(f"        {line}" for line in self.differences),
            f"  {len(self.differing_features):>4}  files of features that differ from ones computed again",
            f"  {len(self.broken_rules):>4}  differences from what the study file asks for",
            *(f"        {line}" for line in self.broken_rules),
            *(f"  MISSING: {count} x {DESCRIPTIONS[kind]}" for kind, count in self.missing_faults.items()),  # type: ignore[index]
        ]

    def _fault_line(self, kind: Kind) -> str:
        line = f"  {self.faults[kind]:>4}  {DESCRIPTIONS[kind]}, of {self.required[kind]} required"
        again = self.repeated.get(kind, 0)
        return f"{line} ({again} more had no effect)" if again else line
