"""A supervisor that does nothing costs nearly nothing."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from tests.integration.serving import serving

MB = 1 << 20


@pytest.mark.timeout(60)
def test_idle_supervisor_is_small_and_uses_no_cpu(tmp_path: Path) -> None:
    with serving(tmp_path) as s:
        s.client.status()
        me = psutil.Process(s.process.pid)
        assert me.memory_info().rss <= 60 * MB
        # What is measured is how much it works over a time, so time has to pass.
        me.cpu_percent()
        share = me.cpu_percent(interval=8)
        assert share < 0.5, f"{share} % of a core while idle"
