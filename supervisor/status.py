"""The picture people and programs get of what runs."""

from __future__ import annotations

import time
from typing import Any

from uml.supervisor import drafts
from uml.supervisor.breaker import Failing
from uml.supervisor.crew import Crew
from uml.supervisor.machine import Machine, process_memory
from uml.supervisor.scheduler import Scheduler
from uml.supervisor.states import State, WorkerState
from uml.supervisor.usage import Usage
from uml.supervisor.watch import Vital
from uml.supervisor.worker import Worker


def report(scheduler: Scheduler, crew: Crew, machine: Machine, usage: Usage) -> dict[str, Any]:
    """The body of GET /status, less what the gateway adds. usage: since the start."""
    budget, waiting = scheduler.budget, scheduler.waiting()
    return {
        "devices": [
            {
                "name": d.name,
                "kind": d.kind,
                "total_bytes": d.total_bytes,
                "cap_bytes": budget.cap(d.name),
                "free_bytes": d.free_bytes,
                "leased_bytes": budget.leased(d.name),
                "detail": d.detail,
            }
            for d in budget.devices.values()
        ],
        "workers": [
            _worker(
                state, scheduler, crew.workers.get(state.id), crew.vitals.get(state.id), machine
            )
            for state in scheduler.workers.values()
        ],
        "waiting": waiting,
        "failed": [_failed(m, f) for m, f in scheduler.breaker.failing(time.monotonic()).items()],
        "residue": [
            {
                "worker": holder,
                "model": next((r.model for r in reversed(crew.receipts) if r.worker == holder), ""),
                "device": device,
                "bytes": count,
                "pids": crew.pids_of(holder),
            }
            for holder, lease in budget.leases.items()
            if lease.residue
            for device, count in lease.bytes.items()
        ],
        "usage": {model: tally.to_map() for model, tally in usage.models.items()},
        "released": dict(crew.released),
        "receipts": [receipt.to_map() for receipt in crew.receipts[-20:]],
    }


def _failed(model: str, found: Failing) -> dict[str, Any]:
    """A model that is left alone. stderr: the last 50 lines of its last worker. report: the file
    with the rest."""
    return {
        "model": model,
        "state": "failed",
        "cause": found.error.message,
        "code": found.error.code,
        "until": time.time() + found.until - time.monotonic(),
        "rounds": found.rounds,
        "stderr": found.error.detail.get("stderr", []),
        "report": found.error.detail.get("report"),
    }


def _worker(
    state: WorkerState,
    scheduler: Scheduler,
    worker: Worker | None,
    vital: Vital | None,
    machine: Machine,
) -> dict[str, Any]:
    need, lease = state.need, scheduler.budget.leases.get(state.id)
    device = str(need.options.get("device", "ram")) if need else "ram"
    pids = worker.pids() if worker else []
    used = machine.used_by(pids)
    used["ram"] = process_memory(pids).rss
    until = state.until()
    return {
        "id": state.id,
        "model": state.model,
        "backend": state.backend,
        "state": state.state.value,
        "device": device,
        "pid": worker.pid if worker else None,
        "lease_bytes": lease.on_devices() if lease else {},
        "memory_bytes": used,
        "context": need.n_ctx if need else 0,
        "draft_model": need.options.get(drafts.KEY) if need else None,
        "cores": state.cores,
        "slots": state.slots,
        "busy": len(state.busy),
        "waiting": scheduler.waiting().get(state.model or "", 0),
        "until": time.time() + until - time.monotonic() if until is not None else None,
        "pinned": bool(need and (need.pinned or need.keep_alive_s < 0)),
        "load_s": vital.load_s if vital else None,
        "stage": vital.stage if vital and state.state is not State.READY else "",
        "progress": vital.fraction if vital and state.state is not State.READY else None,
        "facts": vital.facts if vital else {},
        "pieces": vital.pieces if vital else 0,
        "reason": state.reason,
    }
