"""What every section is given: how long, against whom, and where the figures go."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.benchmarks import records
from tests.benchmarks.records import Foreign, Record
from uml.supervisor.bench import Figures


@dataclass
class Run:
    """llama_server: its binary, if there is one. results: where records are appended."""

    rounds: int
    llama_server: Path | None
    results: Path
    tokens: int = 64
    section: str = ""
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    commit: str = field(default_factory=records.commit)

    async def measure(
        self, case: str, server: str, number: int, figures: Awaitable[Figures]
    ) -> Figures:
        """Await `figures` and record them for `server`, in round `number` of `case`."""
        foreign = Foreign()
        found = await figures
        self.note(case, server, number, found, foreign.cores())
        return found

    def note(
        self, case: str, server: str, number: int, figures: Figures, foreign_cores: float = 0.0
    ) -> None:
        record = Record(
            section=self.section,
            case=case,
            server=server,
            run=self.id,
            round=number,
            figures=figures,
            foreign_cores=round(foreign_cores, 2),
            commit=self.commit,
        )
        records.append(self.results, record)
        shown = " ".join(f"{k}={v:.4g}" for k, v in figures.items())
        others = f" (others used {foreign_cores:.2f} cores)" if foreign_cores > 0.15 else ""
        print(f"{self.section} {case} {number + 1} {server}: {shown}{others}", flush=True)


#: A section measures one thing, with all the servers it starts itself.
Section = Callable[[Run], Awaitable[None]]
