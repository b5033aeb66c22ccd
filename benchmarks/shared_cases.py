"""Cases that workers on any number of machines share.

A case is a trial of a shared study, with its name and its measurement as attributes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from optuna.trial import FrozenTrial, TrialState

from benchmarks import result
from benchmarks.campaign import Row, failed
from pipeline.shared_study import SharedStudy
from saltus.errors import SaltusError

CASE, ROW = "case", "measurement"  # attributes of a trial


class SharedCases:
    """The cases of one command, of which each is done once, whichever worker does it.

    Args:
        url: of the database, see `SharedStudy`.
        benchmark: the benchmark's name.
        settings: the command's settings, which all workers must share.
        cases: the names of all cases. Those that failed wait again.
        lease: seconds without an answer of its worker after which a case is taken up by another one; at least 3.

    Raises:
        SystemExit: the database cannot be reached, or holds the cases of another command.
    """

    def __init__(self, url: str, benchmark: str, settings: Mapping[str, Any], cases: Sequence[str], lease: int):
        self._claimed: dict[str, FrozenTrial] = {}
        try:
            shared = result.plain({**settings, "cases": cases})
            self._shared = SharedStudy(url, benchmark, shared, lease, "the cases", [ROW])
        except SaltusError as error:
            raise SystemExit(str(error)) from error
        self.url = self._shared.url
        self.add_missing(cases)

    def add_missing(self, cases: Sequence[str]) -> None:
        """Let cases wait that are neither done nor in the database. Two workers may do so at the same time."""
        known = {trial.user_attrs[CASE] for trial in self._shared.trials() if trial.state != TrialState.FAIL}
        for case in cases:
            if case not in known:
                self._enqueue(case)

    def _enqueue(self, case: str) -> None:
        self._shared.enqueue(**{CASE: case})

    @property
    def unfinished(self) -> int:
        """The number of cases that wait, or on which a worker works."""
        return self._shared.unfinished

    def claim(self) -> str | None:
        """Claim a case that waits; None if there is none."""
        for trial in self._shared.trials(TrialState.WAITING):
            if self._take(trial):
                return trial.user_attrs[CASE]
        return None

    def _take(self, trial: FrozenTrial) -> bool:
        """Claim a trial, if no other worker was faster."""
        if not self._shared.claim(trial):
            return False
        case = trial.user_attrs[CASE]
        same = [one for one in self._shared.trials() if one.user_attrs[CASE] == case and one.state != TrialState.FAIL]
        if any(one.number < trial.number for one in same):  # two workers added it
            self._shared.drop(trial)
            return False
        self._claimed[case] = trial
        return True

    def finish(self, case: str, row: Row) -> bool:
        """Keep the measurement of a claimed case; return False if another worker has taken the case up meanwhile.

        Waits for a database that cannot be reached.
        """
        state, value = (TrialState.FAIL, None) if failed(row) else (TrialState.COMPLETE, 0.0)  # Optuna wants a value
        number = self._claimed.pop(case).number
        return self._shared.finish(number, state, value, {ROW: row}, f"the measurement of {case}")

    def release(self) -> None:
        """Give the claimed cases back, for other workers."""
        self._claimed = {}
        self._shared.release(lambda trial: self._enqueue(trial.user_attrs[CASE]))

    def rows(self) -> dict[str, Row]:
        """The measurements so far by case, failed ones included: the last one of each case."""
        trials = sorted(self._shared.trials(), key=lambda trial: trial.number)
        return {trial.user_attrs[CASE]: trial.user_attrs[ROW] for trial in trials if ROW in trial.user_attrs}
