"""A worker on a sweep: does one trial after another."""

from __future__ import annotations

import time
from typing import Any

import optuna
from rich.console import Console

from pipeline.console import print_line
from pipeline.tune.plan import Plan
from pipeline.tune.report import describe, ranked
from pipeline.tune.search import show
from pipeline.tune.sweep import ERROR, Claimed, Sweep, original_number
from pipeline.tune.trial import Outcome, TrialRuns
from saltus.errors import SaltusError

POLL = 2.0  # seconds between looks for a trial whose worker has ended
MOST_BROKEN = 3  # trials in a row that fail before a first evaluation
MOST_REFUSED = 100  # drawn sets of options in a row that make no configuration


class Worker:
    """Does trials until none is left, also those that other workers give back.

    A machine with a full disk, without a compiler or with a broken GPU fails every trial at once. Trials that fail
    before a first evaluation are therefore not stored until another trial has an evaluation, or none is left.

    Args:
        plan: the command.
        sweep: its trials.
        console: where to print.
    """

    def __init__(self, plan: Plan, sweep: Sweep, console: Console):
        self._plan, self._sweep, self._console = plan, sweep, console
        self._broken: list[tuple[Claimed, Outcome]] = []
        self._refused = 0

    def run(self) -> None:
        """Work to the end.

        Raises:
            SaltusError: several trials in a row failed before their first evaluation, and were given back; or drawn
                options do not work together again and again.
        """
        while True:
            unfinished = self._sweep.unfinished
            claimed = self._sweep.claim()
            if claimed is not None:
                self._do(claimed)
            elif self._broken:
                self._finish_broken()
            elif unfinished:
                time.sleep(POLL)
            else:
                return

    def _do(self, claimed: Claimed) -> None:
        try:
            options = self._sweep.options(claimed.trial)
            if not self._accepts(claimed, options):
                return
            self._print(f"trial {claimed.first_number}{_again(claimed)}: {show(options)}")
            outcome = TrialRuns(self._plan, claimed, options, self._print).run()
        except optuna.exceptions.UpdateFinishedTrialError:
            self._lose(claimed)
            return
        if outcome.broken:
            self._broken.append((claimed, outcome))
            self._require_machine(outcome.attributes[ERROR])
            return
        self._finish_broken()
        self._finish(claimed, outcome)

    def _accepts(self, claimed: Claimed, options: dict[str, Any]) -> bool:
        """Whether options make a configuration; if not, the trial does not count, and a new one draws others."""
        try:
            self._plan.config_of(options)
        except SaltusError as error:
            self._sweep.shared.drop(claimed.trial)
            self._refused += 1
            if self._refused == MOST_REFUSED:
                raise SaltusError(
                    f"the options of {MOST_REFUSED} trials in a row do not work together; the last ones, "
                    f"{show(options)}: {error}. Narrow --search"
                ) from None
            self._print(
                f"trial {claimed.first_number}: {show(options)} do not work together and are drawn anew: {error}"
            )
            return False
        self._refused = 0
        return True

    def _require_machine(self, error: str) -> None:
        """Raise SaltusError if this machine seems broken."""
        if len(self._broken) < MOST_BROKEN:
            return
        self._sweep.shared.release()
        raise SaltusError(
            f"{MOST_BROKEN} trials in a row failed before their first evaluation, the last one with: {error}. They are "
            f"given back to {self._sweep.shared.url}. Does this machine have a full disk, no compiler or a broken GPU? "
            "The same command continues"
        )

    def _finish_broken(self) -> None:
        while self._broken:
            self._finish(*self._broken.pop(0))

    def _finish(self, claimed: Claimed, outcome: Outcome) -> None:
        number, name = claimed.trial.number, f"trial {claimed.first_number}"
        if not self._sweep.shared.finish(
            number, outcome.state, outcome.value, outcome.attributes, f"the result of {name}"
        ):
            self._lose(claimed)
            return
        done = self._sweep.done()
        best = ranked(done)
        progress = f"{len(done)} of {self._plan.options.trials} done"
        leader = f", best: trial {original_number(best[0])} with {best[0].value:,.4g}" if best else ""
        result = next(one for one in done if one.number == number)
        self._print(f"{name}: {describe(result)} ({progress}{leader})")

    def _lose(self, claimed: Claimed) -> None:
        self._sweep.shared.forget(claimed.trial.number)
        self._print(
            f"trial {claimed.first_number}: another worker has taken the trial up, after the lease of this one had "
            "ended"
        )

    def _print(self, message: str) -> None:
        print_line(self._console, message)


def _again(claimed: Claimed) -> str:
    """A note on a trial that was given back, and so has a number for each time that it was begun."""
    number = claimed.trial.number
    return "" if number == claimed.first_number else f" again, which was given back (there will be no trial {number})"
