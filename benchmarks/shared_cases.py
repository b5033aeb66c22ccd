"""Cases that workers on any number of machines share, in a database that Optuna keeps.

A case is a trial of an Optuna study, with its name and its measurement as attributes. A worker claims a trial that
waits, and renews the claim while it works on it. If it no longer does, another worker takes the case up.
"""

from __future__ import annotations

import hashlib
import time
import warnings
from collections.abc import Mapping, Sequence
from threading import Event, Lock, Thread
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from benchmarks import result
from benchmarks.campaign import Row, failed

CASE, ROW = "case", "measurement"  # attributes of a trial
ATTEMPTS = 5  # to create the database
RETRY = 30.0  # seconds between attempts to reach a database that was reached before


class SharedCases:
    """The cases of one command, of which each is done once, whichever worker does it.

    Args:
        url: of the database, as SQLAlchemy has it: ``sqlite:///cases.db``, ``postgresql://host/name``.
        benchmark: the benchmark's name.
        settings: the command's settings, which all workers must share.
        cases: the names of all cases. Those that failed wait again.
        lease: seconds without an answer of its worker after which a case is taken up by another one; at least 3.

    Raises:
        SystemExit: the database cannot be reached, or holds the cases of another command.
    """

    def __init__(self, url: str, benchmark: str, settings: Mapping[str, Any], cases: Sequence[str], lease: int):
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # leases are, since 2021
        self._url, self._lease = url, lease
        self._claims: dict[str, _Claim] = {}
        self._lock = Lock()
        try:
            self._storage = _open(url, self._lease)
            self._study = self._join(benchmark, result.plain({**settings, "cases": cases}))
            self.add_missing(cases)
        except (ImportError, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            reason = str(error.__cause__ or error).splitlines()[0]
            raise SystemExit(
                f"--storage {url} cannot be used ({reason}): give the URL of a database, such as sqlite:///cases.db"
            ) from error

    def _join(self, benchmark: str, settings: dict[str, Any]) -> optuna.Study:
        """The study of a command: its name is a digest of the settings, so that workers cannot mix two commands."""
        name = f"{benchmark} {hashlib.sha256(result.encode(settings).encode()).hexdigest()[:16]}"
        for study in self._storage.get_all_studies():
            if study.study_name != name:
                found = study.user_attrs.get("settings", {})
                differences = "; ".join(result.differences(settings, found)) or study.study_name
                raise SystemExit(
                    f"--storage {self._url} holds the cases of another command ({differences}): give the same command "
                    "to all workers, or another --storage"
                )
        joined = optuna.create_study(storage=self._storage, study_name=name, load_if_exists=True)
        joined.set_user_attr("settings", settings)
        return joined

    def add_missing(self, cases: Sequence[str]) -> None:
        """Let cases wait that are neither done nor in the database. Two workers may do so at the same time."""
        known = {trial.user_attrs[CASE] for trial in self._trials() if trial.state != TrialState.FAIL}
        for case in cases:
            if case not in known:
                self._enqueue(case)

    def _enqueue(self, case: str) -> None:
        self._study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs={CASE: case}))

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        return self._study.get_trials(deepcopy=False, states=states or None)

    @property
    def unfinished(self) -> int:
        """The number of cases that wait, or on which a worker works."""
        fail_stale_trials(self._study)  # their cases wait again
        return len(self._trials(TrialState.WAITING, TrialState.RUNNING))

    def claim(self) -> str | None:
        """Claim a case that waits; None if there is none."""
        for trial in self._trials(TrialState.WAITING):
            if self._take(trial):
                return trial.user_attrs[CASE]
        return None

    def _take(self, trial: FrozenTrial) -> bool:
        """Claim a trial, if no other worker was faster."""
        self._storage.record_heartbeat(trial._trial_id)  # first: a claim without one would never end
        try:
            if not self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                return False
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        case = trial.user_attrs[CASE]
        same = [one for one in self._trials() if one.user_attrs[CASE] == case and one.state != TrialState.FAIL]
        if any(one.number < trial.number for one in same):  # two workers added it
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
            return False
        with self._lock:
            self._claims[case] = _Claim(self._storage, trial._trial_id, self._lease / 3)
        return True

    def finish(self, case: str, row: Row) -> bool:
        """Keep the measurement of a claimed case; return False if another worker has taken the case up meanwhile.

        Waits for a database that cannot be reached.
        """
        with self._lock:
            claim = self._claims.pop(case)
        try:
            return self._keep(claim.trial, case, row)
        finally:
            claim.end()

    def _keep(self, trial: int, case: str, row: Row) -> bool:
        while True:
            try:
                self._storage.set_trial_user_attr(trial, ROW, row)
                if failed(row):
                    self._storage.set_trial_state_values(trial, TrialState.FAIL)
                else:
                    self._storage.set_trial_state_values(trial, TrialState.COMPLETE, [0.0])  # Optuna wants a value
                return True
            except optuna.exceptions.UpdateFinishedTrialError:
                return False
            except optuna.exceptions.StorageInternalError as error:
                print(
                    f"--storage {self._url} cannot be reached ({error.__cause__ or error}): trying again every "
                    f"{RETRY:.0f} s; Ctrl-C gives up, and loses the measurement of {case}", flush=True,
                )  # fmt: skip
                time.sleep(RETRY)

    def release(self) -> None:
        """Give the claimed cases back, for other workers."""
        with self._lock:
            claims, self._claims = self._claims, {}
        try:
            for case, claim in claims.items():
                claim.end()
                self._storage.set_trial_state_values(claim.trial, TrialState.FAIL)
                self._enqueue(case)
        except optuna.exceptions.StorageInternalError as error:
            print(f"the cases cannot be given back, and wait for their leases to end: {error.__cause__ or error}")

    def rows(self) -> dict[str, Row]:
        """The measurements so far by case, failed ones included: the last one of each case."""
        trials = sorted(self._trials(), key=lambda trial: trial.number)
        return {trial.user_attrs[CASE]: trial.user_attrs[ROW] for trial in trials if ROW in trial.user_attrs}


class _Claim:
    """A trial that this worker works on: tells the database at regular times that it does.

    Args:
        storage: the database.
        trial: the trial's number in it.
        interval: seconds between the times.
    """

    def __init__(self, storage: RDBStorage, trial: int, interval: float):
        self.trial = trial
        self._storage, self._interval, self._ended = storage, interval, Event()
        Thread(target=self._renew, name="saltus claim", daemon=True).start()

    def _renew(self) -> None:
        while not self._ended.wait(self._interval):
            try:
                self._storage.record_heartbeat(self.trial)
            except optuna.exceptions.StorageInternalError as error:
                print(f"a claim was not renewed, the next attempt may do it: {error.__cause__ or error}", flush=True)

    def end(self) -> None:
        """Renew it no more."""
        self._ended.set()


def _open(url: str, lease: int) -> RDBStorage:
    """Open a database, or create it. Workers that start together may do so at the same time, and one of them fails."""
    for attempt in range(ATTEMPTS):
        try:
            storage = RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {},
                heartbeat_interval=lease // 3,
                grace_period=lease,
                heartbeat_stale_trial_callback=RetryHeartbeatStaleTrialCallback(),
            )
            break
        except (sqlalchemy.exc.IntegrityError, sqlalchemy.exc.OperationalError, sqlalchemy.exc.ProgrammingError):
            if attempt == ATTEMPTS - 1:
                raise
            time.sleep(0.3)
    if url.startswith("sqlite"):
        _lock_transactions(storage.engine)
    return storage


def _lock_transactions(engine: sqlalchemy.Engine) -> None:
    """Let each transaction lock the whole database from its start, so that two workers cannot claim one trial.

    By default Python's driver begins a transaction at the first write, after the read that decided it.
    """

    @sqlalchemy.event.listens_for(engine, "connect")
    def _leave_transactions_to_us(connection: Any, _record: object) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(engine, "begin")
    def _begin(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    engine.dispose()  # connections of before
