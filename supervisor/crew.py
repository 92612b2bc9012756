"""The worker processes: spawning, what is known of their lives, killing with a receipt.

Decides nothing. `Crew` owns the processes and everything that outlives them: ledger entries,
receipts, last words.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uml.protocol.errors import LoadFailed
from uml.protocol.models import BackendSpec
from uml.supervisor import segments, tree
from uml.supervisor.budget import Bytes
from uml.supervisor.events import Events, Feed
from uml.supervisor.footprints import ram_of
from uml.supervisor.ledger import Ledger, Tree
from uml.supervisor.machine import Machine, process_memory
from uml.supervisor.release import Receipt, come_to_rest, release
from uml.supervisor.watch import Vital
from uml.supervisor.worker import Listener, Worker
from uml.supervisor.worker_log import WorkerLog

if TYPE_CHECKING:
    from uml.supervisor.environments import Environments

_ENTRY = Path(__file__).resolve().parent.parent / "workers" / "__main__.py"
#: The last ones are told by `status`.
RECEIPTS = 200
_LAST_WORDS = 200
#: Logs of workers that are kept on disk.
_LOG_FILES = 100


class Crew:
    """home: for the ledger and the workers' logs."""

    def __init__(
        self, home: Path, environments: Environments, machine: Machine, events: Events
    ) -> None:
        self._environments, self._machine, self._events = environments, machine, events
        self._logs = home / "logs"
        self._scratch = home / "spool"
        self._ledger = Ledger(home / "ledger")
        self.workers: dict[str, Worker] = {}
        self.vitals: dict[str, Vital] = {}
        self.receipts: list[Receipt] = []
        #: What workers write to stderr: `worker`, `line`.
        self.said = Feed()
        self._expected: dict[str, asyncio.Future[Receipt]] = {}
        self._last_words: dict[str, list[str]] = {}
        #: Of running workers; then workers whose memory has not come back; then releases so far.
        self._shared: dict[str, set[str]] = {}
        self._booked: dict[str, frozenset[int]] = {}
        self._left: dict[str, Worker] = {}
        self.released: Counter[str] = Counter()

    async def clear_up(self) -> None:
        """End what an earlier supervisor left, and see to it that orphans come home to us."""
        tree.become_subreaper()
        tree.namespace_prefix()
        left = await asyncio.to_thread(self._ledger.reap)
        for reaped in (r for r in left if r.pids):
            level = "warning" if reaped.stuck else "info"
            self._events.emit("ledger.reaped", level, pids=reaped.pids, stuck=reaped.stuck)
        if left:
            await come_to_rest(self._machine)

    def spawn(self, worker_id: str, spec: BackendSpec, listener: Listener) -> None:
        """Start a process. Raises: UmlError (not installed, or the system refuses)."""
        python = self._environments.python(spec.name)
        self._prune_logs()
        log = WorkerLog(
            self._logs / f"{spec.name}-{worker_id}.log",
            heard=lambda line: self.said.put({"worker": worker_id, "line": line}),
        )
        argv = [python, "-I", "-u", str(_ENTRY), spec.worker]
        environ = spec.environ | {"UML_SCRATCH": str(self._scratch)}
        worker = Worker(worker_id, argv, environ, listener, log, spec.cancel_s)
        # Before there is a process, so that no moment exists in which one could be lost.
        self._ledger.enter(worker.token, None)
        try:
            self._scratch.mkdir(parents=True, exist_ok=True)
            worker.spawn()
        except OSError as e:
            self._ledger.leave(worker.token)
            log.close()
            raise LoadFailed(f"cannot start a worker of {spec.name}: {e}") from e
        self._ledger.enter(worker.token, Tree(worker.started()))
        self.workers[worker_id] = worker
        self.vitals[worker_id] = Vital(time.monotonic())
        self._events.emit(
            "worker.spawned", worker=worker_id, backend=spec.name, pid=worker.launcher
        )

    async def release(self, worker_id: str, model: str, reason: str) -> Bytes:
        """Kill a worker, watch its memory come back, write the receipt; what has not come back."""
        worker = self.workers.get(worker_id)
        if worker is None:  # it never came to be
            self._note(Receipt.of_nothing(model, worker_id, reason))
            return {}
        receipt = await release(
            worker,
            self._machine,
            model=model,
            reason=reason,
            reported=self._on_devices(worker),
            shared=self._shared.pop(worker_id, ()),
        )
        if not receipt.stuck:
            self._ledger.leave(worker.token)
        self._last_words[model] = worker.log.tail(_LAST_WORDS)
        self._note(receipt)
        left = {d: b for d, b in receipt.after.items() if d != "ram" or receipt.stuck}
        if left:
            self._left[worker_id] = worker
        return left

    def keep_book(self, worker_id: str | None = None) -> None:
        """Note on disk who belongs to each worker's tree and which shared memory it has, where
        somebody new has come, or of `worker_id` in any case: it may end before it can be asked,
        and what renamed itself and emptied its environment nobody knows again."""
        for worker in self.workers.values():
            if worker.exit is None and (
                worker.id == worker_id or worker.ever() != self._booked.get(worker.id)
            ):
                self._shared[worker.id] = segments.held(worker.pids())
                self._booked[worker.id] = worker.ever()
                tree_of = Tree(worker.started(), self._shared[worker.id])
                self._ledger.enter(worker.token, tree_of)

    def _prune_logs(self) -> None:
        """Delete the files of workers that ended longest ago, all but the last ones."""
        found = []
        for path in self._logs.glob("*-w*.log*"):
            with contextlib.suppress(OSError):
                found.append((path.stat().st_mtime_ns, path))
        for _, path in sorted(found)[:-_LOG_FILES]:
            path.unlink(missing_ok=True)

    def forget(self, worker_id: str) -> None:
        self.workers.pop(worker_id, None)
        self.vitals.pop(worker_id, None)
        self._booked.pop(worker_id, None)

    def _note(self, receipt: Receipt) -> None:
        self.released[receipt.verified] += 1
        self.receipts = [*self.receipts, receipt][-RECEIPTS:]
        future = self._expected.pop(receipt.worker, None)
        if future and not future.done():
            future.set_result(receipt)
        fields: dict[str, Any] = {
            k: getattr(receipt, k) for k in ("worker", "model", "reason", "freed", "ms", "verified")
        }
        fields |= {"swept": receipt.swept} if receipt.swept else {}
        level = "info" if receipt.verified == "yes" else "warning"
        self._events.emit("worker.released", level, **fields)

    async def receipt(self, worker_id: str) -> Receipt:
        """Wait for a worker's end; several may. One that was just written is given at once."""
        written = next((r for r in reversed(self.receipts) if r.worker == worker_id), None)
        if written:
            return written
        if worker_id not in self._expected:
            self._expected[worker_id] = asyncio.get_running_loop().create_future()
        return await asyncio.shield(self._expected[worker_id])

    def resident(self, devices: Collection[str]) -> dict[str, Bytes]:
        """What each worker holds. Where a device does not tell by pid (NVML in a container speaks
        of the host's), the worker's own word counts."""
        return {worker.id: self._held(worker, devices) for worker in self.workers.values()}

    def _held(self, worker: Worker, devices: Collection[str]) -> Bytes:
        reported = self._on_devices(worker) if worker.exit is None else {}
        own = {d: b for d, b in reported.items() if d in devices}
        return own | self._machine.used_by({*worker.pids(), *worker.ever()})

    def _reported(self, worker: Worker) -> Bytes:
        vital = self.vitals.get(worker.id)
        return vital.reported if vital else {}

    def _on_devices(self, worker: Worker) -> Bytes:
        """Bytes on accelerators, by its own word."""
        beside = ("ram", "mapped", "parked", "unused")
        return {d: b for d, b in self._reported(worker).items() if d not in beside}

    def footprint(self, worker_id: str, devices: Collection[str]) -> Bytes:
        """What a loaded model takes, weights that are mapped included."""
        worker = self.workers[worker_id]
        return ram_of(self._held(worker, devices), self._reported(worker))

    def left_of(self, worker_id: str) -> Bytes:
        """What devices still hold in the name of a worker that is gone; who of it would not die
        gets another chance to."""
        worker = self._left.get(worker_id)
        if worker is None:
            return {}
        stuck = worker.remains()
        if not stuck:
            self._ledger.leave(worker.token)
        held = self._machine.used_by(worker.ever()) | {"ram": process_memory(stuck).anon}
        left = {d: b for d, b in held.items() if b > 0}
        if not left and not stuck:
            del self._left[worker_id]
        return left

    def pids_of(self, worker_id: str) -> list[int]:
        """The pids of a worker whose memory has not come back."""
        worker = self._left.get(worker_id)
        return sorted(worker.ever()) if worker else []

    def tail(self, worker_id: str | None, model: str, lines: int) -> list[str]:
        """The last lines a model's worker wrote to stderr, also after its end."""
        worker = self.workers.get(worker_id or "")
        return worker.log.tail(lines) if worker else self._last_words.get(model, [])[-lines:]
