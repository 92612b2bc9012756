"""GET /metrics: the state and the counters in Prometheus' text format.

Source: Prometheus exposition formats, text format 0.0.4.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import psutil
from aiohttp import web

from uml.protocol import __version__
from uml.supervisor.api.gateway import GATEWAY, Gateway
from uml.supervisor.states import State

if TYPE_CHECKING:
    from uml.supervisor.usage import Histogram, Tally

_STATES = [str(state) for state in State]


async def metrics(request: web.Request) -> web.Response:
    gateway = request.app[GATEWAY]
    page = Page()
    _process(page, gateway)
    _machine(page, gateway.pool.status())
    _models(page, gateway.pool.usage.models)
    _http(page, gateway)
    return web.Response(
        body=page.text().encode(),
        headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
    )


class Page:
    """Samples by family. Families without samples are not shown."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}

    def add(self, name: str, kind: str, help: str, value: float, /, **labels: object) -> None:
        """kind: "gauge" | "counter"; a counter's name ends in `_total`."""
        self._family(name, kind, help).append(f"{name}{_labels(labels)} {_number(value)}")

    def histogram(self, name: str, help: str, found: Histogram, /, **labels: object) -> None:
        lines, below = self._family(name, "histogram", help), 0
        for bound, count in zip((*found.bounds, float("inf")), found.counts, strict=True):
            below += count
            with_bound = _labels(labels | {"le": _number(bound)})
            lines.append(f"{name}_bucket{with_bound} {below}")
        lines.append(f"{name}_sum{_labels(labels)} {_number(found.total)}")
        lines.append(f"{name}_count{_labels(labels)} {below}")

    def _family(self, name: str, kind: str, help: str) -> list[str]:
        return self._lines.setdefault(name, [f"# HELP {name} {help}", f"# TYPE {name} {kind}"])

    def text(self) -> str:
        return "".join(f"{line}\n" for lines in self._lines.values() for line in lines)


def _labels(labels: Mapping[str, object]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{k}="{_escaped(str(v))}"' for k, v in labels.items()) + "}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(float(value))


def _process(page: Page, gateway: Gateway) -> None:
    us = psutil.Process()
    with us.oneshot():
        cpu, memory, started = us.cpu_times(), us.memory_info(), us.create_time()
    page.add("uml_info", "gauge", "Version of uml.", 1, version=__version__)
    page.add(
        "uml_ready",
        "gauge",
        "1 when requests are accepted and preloading is over.",
        gateway.ready and not gateway.stopping,
    )
    page.add(
        "uml_uptime_seconds",
        "gauge",
        "Since the supervisor started.",
        round(time.monotonic() - gateway.started_at, 3),
    )
    for name, kind, help, value in (
        ("cpu_seconds_total", "counter", "CPU time of the supervisor.", cpu.user + cpu.system),
        ("resident_memory_bytes", "gauge", "Resident memory of the supervisor.", memory.rss),
        ("start_time_seconds", "gauge", "Start of the process since 1970.", started),
        ("open_fds", "gauge", "Open file descriptors.", len(os.listdir("/proc/self/fd"))),
    ):
        page.add(f"process_{name}", kind, help, round(value, 3))


def _machine(page: Page, status: Mapping[str, Any]) -> None:
    for device in status["devices"]:
        for what, help in (
            ("total", "Memory of the device."),
            ("cap", "Most that uml may hold of it."),
            ("free", "Free, by the device's own count."),
            ("leased", "Promised to workers."),
        ):
            value = device[f"{what}_bytes"]
            page.add(f"uml_device_{what}_bytes", "gauge", help, value, device=device["name"])
    count = Counter(worker["state"] for worker in status["workers"])
    for state in _STATES:
        page.add("uml_workers", "gauge", "Workers by state.", count[state], state=state)
    _workers(page, status["workers"])
    for model, waiting in status["waiting"].items():
        page.add("uml_waiting_requests", "gauge", "Requests that wait.", waiting, model=model)
    for failed in status["failed"]:
        page.add("uml_model_failed", "gauge", "1 while left alone.", 1, model=failed["model"])
    residue: Counter[str] = Counter()
    for left in status["residue"]:
        residue[left["device"]] += left["bytes"]
    for device in status["devices"]:
        page.add(
            "uml_residue_bytes",
            "gauge",
            "Not given back by workers that are gone.",
            residue[device["name"]],
            device=device["name"],
        )


def _workers(page: Page, workers: Iterable[Mapping[str, Any]]) -> None:
    """By model: while one worker leaves, its successor may be there already."""
    memory: Counter[tuple[str, str]] = Counter()
    slots: Counter[str] = Counter()
    busy: Counter[str] = Counter()
    for worker in workers:
        if model := worker["model"]:
            slots[model] += worker["slots"]
            busy[model] += worker["busy"]
            memory.update({(model, device): n for device, n in worker["memory_bytes"].items()})
    for (model, device), held in memory.items():
        page.add("uml_model_memory_bytes", "gauge", "Measured.", held, model=model, device=device)
    for model, count in slots.items():
        page.add("uml_model_slots", "gauge", "Requests it can serve at once.", count, model=model)
    for model, count in busy.items():
        page.add("uml_model_busy_slots", "gauge", "Requests that run.", count, model=model)


def _models(page: Page, models: Mapping[str, Tally]) -> None:
    for model, tally in models.items():
        for outcome in ("finished", "failed", "cancelled"):
            for task, count in getattr(tally, outcome).items():
                page.add(
                    "uml_requests_total",
                    "counter",
                    "Requests by their end.",
                    count,
                    model=model,
                    task=task,
                    outcome=outcome,
                )
        for code, count in tally.errors.items():
            help = "Failed requests by the error's code."
            page.add("uml_request_errors_total", "counter", help, count, model=model, code=code)
        for kind, count in tally.tokens.items():
            page.add(
                "uml_tokens_total",
                "counter",
                "Tokens; cached ones are part of the prompt's.",
                count,
                model=model,
                kind=kind.removesuffix("_tokens"),
            )
        page.add(
            "uml_load_failures_total",
            "counter",
            "Loads that failed.",
            tally.load_failures,
            model=model,
        )
        for name, help, found in (
            ("load_seconds", "From the order to load to ready.", tally.load_s),
            ("wait_seconds", "Of requests, until a worker took them.", tally.wait_s),
            ("time_to_first_output_seconds", "From the request's arrival.", tally.first_s),
            ("request_seconds", "From arrival to the end.", tally.request_s),
            ("tokens_per_second", "Of one request, after its first token.", tally.speed),
        ):
            if found.count:
                page.histogram(f"uml_{name}", help, found, model=model)


def _http(page: Page, gateway: Gateway) -> None:
    for (route, method, status), count in gateway.answers.items():
        page.add(
            "uml_http_responses_total",
            "counter",
            "Answers by route and status; 499 = the client left.",
            count,
            route=route,
            method=method,
            status=status,
        )
    for (event, level), count in gateway.events.counts.items():
        page.add(
            "uml_events_total",
            "counter",
            "What happened, as in the log.",
            count,
            event=event,
            level=level,
        )
