"""An Optuna study in a database, whose trials workers on any number of machines share.

A worker claims a trial that waits, and renews the claim while it works on it. If it no longer does, another worker
takes the trial up.
"""

from __future__ import annotations

import copy
import hashlib
import json
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from threading import Event, Lock, Thread
from typing import Any

import optuna
import sqlalchemy
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.trial import FrozenTrial, Trial, TrialState

from pipeline.differences import differences
from pipeline.passwords import without_password
from saltus.errors import SaltusError

ATTEMPTS = 5  # to create the database
RETRY = 30.0  # seconds between attempts to reach a database that was reached before
UNREACHABLE = (ImportError, sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError)


class SharedStudy:
    """The trials of one command, in a database.

    Args:
        url: of the database, as SQLAlchemy has it: ``sqlite:///cases.db``, ``postgresql://host/name``.
        name: the start of the study's name.
        settings: plain JSON data, which all workers must share.
        lease: seconds without an answer of its worker after which another one takes a trial up; at least 3.
        content: the trials in a few words, for messages: "the cases".
        results: names of the attributes that `finish` stores, which a trial that waits again does not keep.
        options: further arguments of ``optuna.create_study``, such as the sampler.

    Attributes:
        study: Optuna's study.
        url: the database's URL, without a password.
        retry: lets a trial that failed wait again, as a new trial.

    Raises:
        SaltusError: the database cannot be reached, or holds the trials of another command.
    """

    def __init__(
        self,
        url: str,
        name: str,
        settings: Mapping[str, Any],
        lease: int,
        content: str,
        results: Sequence[str],
        **options: Any,
    ) -> None:
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)  # leases are, since 2021
        self.url, self._lease, self.retry = without_password(url), lease, _Retry(results)
        self._claims: dict[int, _Claim] = {}
        self._lock = Lock()
        try:
            self._storage = _open(url, lease, self.retry)
            self.study = self._join(name, settings, content, options)
        except SaltusError:
            raise
        except (*UNREACHABLE, ValueError) as error:  # ValueError: a port that is no number
            lines = str(error.__cause__ or error).splitlines() or [type(error).__name__]
            reason = without_password(lines[0], url)
            raise SaltusError(
                f"--storage {self.url} cannot be used ({reason}): give the URL of a database, such as "
                "sqlite:///cases.db"
            ) from error

    def _join(self, name: str, settings: Mapping[str, Any], content: str, options: Mapping[str, Any]) -> optuna.Study:
        """The study of a command: its name is a digest of the settings, so that workers cannot mix two commands."""
        name = f"{name} {hashlib.sha256(_encode(settings).encode()).hexdigest()[:16]}"
        for study in self._storage.get_all_studies():
            if study.study_name != name:
                found = study.user_attrs.get("settings", {})
                different = "; ".join(differences(settings, found)) or study.study_name
                raise SaltusError(
                    f"--storage {self.url} holds {content} of another command ({different}): give the same command "
                    "to all workers, or another --storage"
                )
        joined = optuna.create_study(storage=self._storage, study_name=name, load_if_exists=True, **options)
        joined.set_user_attr("settings", settings)
        return joined

    def trials(self, *states: TrialState) -> list[FrozenTrial]:
        """The trials in some states, by default in any."""
        return self.study.get_trials(deepcopy=False, states=states or None)

    @property
    def unfinished(self) -> int:
        """The number of trials that wait, or on which a worker works."""
        self.retry_stale()
        return len(self.trials(TrialState.WAITING, TrialState.RUNNING))

    def retry_stale(self) -> None:
        """Let the trials wait again whose workers no longer answer."""
        fail_stale_trials(self.study)

    def enqueue(self, **attributes: Any) -> None:
        """Let a new trial wait, with attributes."""
        self.study.add_trial(optuna.create_trial(state=TrialState.WAITING, user_attrs=attributes))

    def claim(self, trial: FrozenTrial) -> bool:
        """Claim a trial that waits, if no other worker was faster."""
        self._storage.record_heartbeat(trial._trial_id)  # first: a claim without one would never end
        try:
            if not self._storage.set_trial_state_values(trial._trial_id, TrialState.RUNNING):
                return False
        except optuna.exceptions.UpdateFinishedTrialError:
            return False
        with self._lock:
            self._claims[trial.number] = _Claim(self._storage, trial, self._lease / 3)
        return True

    def drop(self, trial: FrozenTrial | Trial) -> None:
        """Fail a claimed trial, which nobody does again."""
        self.forget(trial.number)
        self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)

    def forget(self, number: int) -> None:
        """Renew a claim no more, for example because another worker has taken the trial up."""
        with self._lock:
            claim = self._claims.pop(number, None)
        if claim is not None:
            claim.end()

    def finish(
        self, number: int, state: TrialState, value: float | None, attributes: Mapping[str, Any], loss: str
    ) -> bool:
        """Store the result of a claimed trial; return False if another worker has taken the trial up meanwhile.

        Waits for a database that cannot be reached.

        Args:
            number: the trial's.
            state: the state of a finished trial.
            value: of the trial, unless it failed.
            attributes: further results.
            loss: the result in a few words, which Ctrl-C loses while the database cannot be reached.
        """
        with self._lock:
            claim = self._claims[number]
        kept = self._store(claim.trial, state, value, attributes, loss)
        self.forget(number)  # only now: Ctrl-C before gives the trial back
        return kept

    def _store(
        self, trial: FrozenTrial, state: TrialState, value: float | None, attributes: Mapping[str, Any], loss: str
    ) -> bool:
        while True:
            try:
                for name, content in attributes.items():
                    self._storage.set_trial_user_attr(trial._trial_id, name, content)
                self._storage.set_trial_state_values(trial._trial_id, state, None if value is None else [value])
                return True
            except optuna.exceptions.UpdateFinishedTrialError:
                return False
            except optuna.exceptions.StorageInternalError as error:
                print(
                    f"--storage {self.url} cannot be reached ({error.__cause__ or error}): trying again every "
                    f"{RETRY:.0f} s; Ctrl-C gives up, and loses {loss}", flush=True,
                )  # fmt: skip
                time.sleep(RETRY)

    def release(self, again: Callable[[FrozenTrial], None] | None = None) -> None:
        """Give the claimed trials back, for other workers.

        Args:
            again: lets a trial wait again; by default `retry`.
        """
        with self._lock:
            claims, self._claims = self._claims, {}
        for claim in claims.values():
            claim.end()
        try:
            for claim in claims.values():
                self._give_back(claim.trial, again or self._retry_latest)
        except optuna.exceptions.StorageInternalError as error:
            print(f"the claims cannot be given back, and wait for their leases to end: {error.__cause__ or error}")

    def _give_back(self, trial: FrozenTrial, again: Callable[[FrozenTrial], None]) -> None:
        try:
            self._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        except optuna.exceptions.UpdateFinishedTrialError:
            return  # another worker has taken it up, or its result was stored
        again(trial)

    def _retry_latest(self, trial: FrozenTrial) -> None:
        """Let a trial wait again with the options that were drawn since its claim."""
        self.retry(self.study, self._storage.get_trial(trial._trial_id))


class _Retry(RetryHeartbeatStaleTrialCallback):
    """Lets a trial wait again, without its results.

    Args:
        results: names of the results among the trial's attributes.
    """

    def __init__(self, results: Sequence[str]):
        super().__init__()
        self._results = {*results}

    def __call__(self, study: optuna.Study, trial: FrozenTrial) -> None:
        trial = copy.deepcopy(trial)
        trial.user_attrs = {name: value for name, value in trial.user_attrs.items() if name not in self._results}
        super().__call__(study, trial)


class _Claim:
    """A trial that this worker works on: tells the database at regular times that it does.

    Args:
        storage: the database.
        trial: the trial, as it was when it waited.
        interval: seconds between the times.
    """

    def __init__(self, storage: RDBStorage, trial: FrozenTrial, interval: float):
        self.trial = trial
        self._storage, self._interval, self._ended = storage, interval, Event()
        Thread(target=self._renew, name="saltus claim", daemon=True).start()

    def _renew(self) -> None:
        while not self._ended.wait(self._interval):
            try:
                self._storage.record_heartbeat(self.trial._trial_id)
            except optuna.exceptions.StorageInternalError as error:
                print(f"a claim was not renewed, the next attempt may do it: {error.__cause__ or error}", flush=True)

    def end(self) -> None:
        """Renew it no more."""
        self._ended.set()


def _encode(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, separators=(",", ":"), ensure_ascii=False)


def _open(url: str, lease: int, retry: _Retry) -> RDBStorage:
    """Open a database, or create it. Workers that start together may do so at the same time, and one of them fails."""
    for attempt in range(ATTEMPTS):
        try:
            storage = RDBStorage(
                url,
                engine_kwargs={"connect_args": {"timeout": 60}} if url.startswith("sqlite") else {},
                heartbeat_interval=lease // 3,
                grace_period=lease,
                heartbeat_stale_trial_callback=retry,
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
