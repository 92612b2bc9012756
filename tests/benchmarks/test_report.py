"""What is written up of records: pairs within a round, the newest commit, bars met or not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import records, report
from tests.benchmarks.bars import BARS, NP8, TITLES, Bar, verdicts
from tests.benchmarks.records import Record


def record(server: str, number: int, speed: float, **more: object) -> Record:
    case = {"section": "streams", "case": "4 streams", "run": "r", "commit": "c1"} | more
    return Record(server=server, round=number, figures={"tokens_per_s": speed}, **case)  # type: ignore[arg-type]


def test_figures_are_paired_within_a_round_of_a_run() -> None:
    found = [
        record("uml", 0, 10.0),
        record(NP8, 0, 5.0),
        record("uml", 1, 40.0),  # the other one was not measured in this round
        record("uml", 0, 8.0, run="later"),
        record(NP8, 0, 8.0, run="later"),
    ]
    assert records.paired(found, "uml", NP8, "tokens_per_s") == ([8.0, 10.0], [8.0, 5.0])


def test_only_the_newest_commit_of_a_section_counts() -> None:
    found = [
        record("uml", 0, 1.0, at=1.0),
        record("uml", 0, 2.0, commit="c2", at=2.0),
        record("uml", 0, 3.0, section="crowd", at=1.5),
    ]
    assert [r.figures["tokens_per_s"] for r in records.newest(found)] == [2.0, 3.0]


def test_bar_is_met_when_its_interval_reaches_it() -> None:
    bar = Bar("streams", "4 streams", "tokens_per_s", NP8, at_least=1.0)
    slower = [record("uml", n, 9.0) for n in range(5)] + [record(NP8, n, 10.0) for n in range(5)]
    mixed = [record("uml", n, 9.0 + n) for n in range(5)] + slower[5:]
    low, high = bar.found(slower), bar.found(mixed)
    assert low and high
    assert not bar.met(low) and low.median == 0.9
    assert bar.met(high)


@pytest.mark.leaks("fd")  # matplotlib keeps its fonts open
def test_results_are_written_between_the_marks_and_only_there(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    for number in range(3):
        records.append(results, record("uml", number, 90.0))
        records.append(results, record(NP8, number, 60.0))
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf-8")
    report.write(results, tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text.startswith("before\n") and text.endswith("after\n") and "old" not in text
    assert "1.50x [1.50, 1.50]" in text and "| met |" in text


def test_page_without_marks_is_left_alone(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    records.append(results, record("uml", 0, 1.0))
    (tmp_path / "benchmarks.md").write_text("prose", encoding="utf-8")
    with pytest.raises(SystemExit, match="no place"):
        report.write(results, tmp_path)
    assert (tmp_path / "benchmarks.md").read_text(encoding="utf-8") == "prose"


def test_every_figure_has_a_title_and_unmeasured_bars_are_no_verdict() -> None:
    assert {b.figure for b in BARS} | {f for s in report.SHOWN.values() for f in s} <= TITLES.keys()
    assert verdicts([]) == []
