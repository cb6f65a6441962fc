"""Transmission of plans: rank 0 sends each plan to the other ranks, and all ranks run it.

Each message names the engine that it is for, by the number that rank 0 gave it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field

from sgl_mlx.runtime.cache.tier import Transfer
from sgl_mlx.runtime.ranks.channel import Message
from sgl_mlx.runtime.ranks.crew import Crew
from sgl_mlx.runtime.ranks.growing import GrowingRows
from sgl_mlx.runtime.ranks.turns import Turns
from sgl_mlx.runtime.scheduler.plan import Decode, Extend, Plan, Runner, RunnerStats, StepResult
from sgl_mlx.runtime.scheduler.wire import from_json, to_json


@dataclass(frozen=True)
class BroadcastingRunner:
    """The `plan.Runner` of rank 0: sends each plan to all other ranks, and runs it itself too.

    Steps of several engines wait for each other (`Turns`). A step that fails ends the processes of
    all ranks (`Crew.fail_step`). Unlike in a single process, the step cannot be tried again,
    because the other ranks may still be waiting within it.
    """

    runner: Runner
    crew: Crew
    turns: Turns
    engine: int
    rows: GrowingRows = field(default_factory=GrowingRows)

    def run(self, plan: Plan) -> StepResult:
        """Run a plan on all ranks; return the result of this one."""
        try:
            with self.turns.turn():
                self._send(plan)
                return self.runner.run(plan)
        except Exception as error:
            self.crew.fail_step(error)

    def synchronise(self, transfers: tuple[Transfer, ...] = ()) -> None:
        """Write all computed KV to the pools and carry out transfers, on all ranks."""
        try:
            with self.turns.turn():
                self._send(Extend((), transfers))
                self.runner.synchronise(transfers)
        except Exception as error:
            self.crew.fail_step(error)

    def forget_epoch(self) -> None:
        """Drop the open epoch on all ranks."""
        self.crew.tell("forget_epoch", engine=self.engine)
        self.runner.forget_epoch()

    def stats(self) -> RunnerStats:
        """Return the counts of this rank."""
        return self.runner.stats()

    def _send(self, plan: Plan) -> None:
        kept, cut = self.rows.cut(plan)
        self.crew.send("plan", f"{self.engine}\n{json.dumps(kept)}\n{to_json(cut)}")


def engine_of(message: Message) -> int:
    """Return the number of the engine that a plan or a note is for."""
    if message.kind == "plan":
        return int(message.text.partition("\n")[0])
    return int(message.note["engine"])


def run_received(runner: Runner, message: Message, rows: GrowingRows) -> bool:
    """Run, on a rank other than 0, a message from the `BroadcastingRunner` of rank 0.

    Args:
        rows: the rows of earlier messages; a new object for each `BroadcastingRunner`.

    Returns:
        True; False if the message is not from a `BroadcastingRunner`.

    Raises:
        ValueError, KeyError, TypeError: the message is broken; see `wire.from_json`.
    """
    if message.kind == "plan":
        _, kept, cut = message.text.split("\n", 2)
        found = from_json(cut)
        if not isinstance(found, Extend | Decode):
            raise ValueError(f"expected a plan, got {cut[:80]!r}")
        plan = rows.mend(json.loads(kept), found)
        if isinstance(plan, Extend) and not plan.rows:
            runner.synchronise(plan.transfers)
        else:
            runner.run(plan)
        return True
    if message.note["is"] == "forget_epoch":
        runner.forget_epoch()
        return True
    return False
