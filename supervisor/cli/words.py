"""Sizes, times and receipts in words. Pure."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from uml.supervisor.units import format_size


def size(count: Any) -> str:
    """Bytes, or "-" when nobody knows."""
    return format_size(int(count)) if isinstance(count, (int, float)) else "-"


def on_devices(held: Mapping[str, int] | None) -> str:
    """{"cuda:0": 4 << 30, "ram": 1 << 28} -> "4.0 GiB on cuda:0, 256.0 MiB on ram"."""
    parts = [f"{size(count)} on {device}" for device, count in (held or {}).items() if count]
    return ", ".join(parts) or "nothing"


def seconds(value: Any) -> str:
    """0.042 -> "42 ms", 3.2 -> "3.2 s", 250 -> "4m 10s", 7300 -> "2h 1m"."""
    if not isinstance(value, (int, float)):
        return "-"
    if value < 1:
        return f"{value * 1000:.0f} ms"
    if value < 60:
        return f"{value:.1f} s"
    minutes, rest = divmod(round(value), 60)
    if minutes < 60:
        return f"{minutes}m {rest}s" if rest else f"{minutes}m"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours}h {minutes}m" if minutes else f"{hours}h"
    return f"{hours // 24} days"


def until(epoch_s: Any, now: float | None = None) -> str:
    """When an idle model leaves."""
    if not isinstance(epoch_s, (int, float)):
        return "-"
    left = epoch_s - (time.time() if now is None else now)
    if left <= 0:
        return "now"
    if left < 90:
        return f"in {left:.0f} seconds"
    if left < 5400:
        return f"in {left / 60:.0f} minutes"
    return f"in {seconds(left)}"


def plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def context(tokens: Any) -> str:
    return str(tokens) if tokens else "-"


_VERIFIED = {
    "yes": "verified: the memory is back",
    "no": "NOT verified: memory is still held",
    "unknown": "not verifiable: other work moved the numbers meanwhile",
}


def receipt(given: Mapping[str, Any]) -> str:
    """`smollm2: freed 180.2 MiB on ram in 12 ms, 2 processes ended, verified: ...`"""
    ended = len(given.get("pids") or [])
    parts = [f"freed {on_devices(given.get('freed'))} in {given.get('ms', 0):.0f} ms"]
    if ended:
        parts.append(f"{ended} process{'es' if ended > 1 else ''} ended")
    parts.append(_VERIFIED.get(str(given.get("verified")), _VERIFIED["unknown"]))
    return f"{given.get('model') or given.get('worker')}: {', '.join(parts)}"


def plan(verb: str, given: Mapping[str, Any]) -> list[str]:
    """What a load or swap would do: lines."""
    victims = given.get("victims") or []
    model, fits, reason = given.get("model"), given.get("fits"), given.get("reason")
    if fits and reason == f"{model} is loaded":
        return [f"{verb} {model}: nothing to do, it is loaded"]
    if not fits:
        lines = [f"{verb} {model}: does not fit"]
    elif victims:
        lines = [f"{verb} {model}: fits after unloading {plural(len(victims), 'model')}"]
    else:
        lines = [f"{verb} {model}: fits, nothing has to go"]
    lines.append(f"  needs   {on_devices(given.get('need_bytes'))}")
    for victim in victims:
        busy = victim.get("busy")
        wait = f", after {plural(int(busy), 'running answer')}" if busy else ", idle"
        lines.append(f"  goes    {victim.get('model')}, frees {_held(victim.get('bytes'))}{wait}")
    load_s = given.get("load_s")
    took = f"about {seconds(load_s)}, as the last time" if load_s else "not loaded before"
    lines.append(f"  takes   {took}")
    if given.get("place"):
        lines.append(f"  place   {given['place']}")
    if given.get("chosen"):
        lines.append(f"  chosen  {given['chosen']}")
    if reason:
        lines.append(f"  {'counted' if fits else 'because'} {reason}")
    return lines


def _held(held: Any) -> str:
    return on_devices(held) if isinstance(held, Mapping) else size(held)
