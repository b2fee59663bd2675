"""Thousands of changed files, read by the commands: how each ended.

    python -m benchmarks.mutants.run --count 10000 --native 200

Mutants are made of seeds, so that any can be made again (tests/small_models/mutants.py). Each is read by one command in
a forked child with limits on time and memory. A run that is ended early (Ctrl-C) tells of what it tried, and `--start`
goes on with other seeds.
"""

from __future__ import annotations

import argparse
import csv
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "tests"))

if TYPE_CHECKING:
    from small_models.mutant_trials import Subject, Trial

COLUMNS = ("file", "command", "read", "refused", "else", "longest_seconds")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000, help="mutants read by our own readers")
    parser.add_argument("--native", type=int, default=200, help="mutants run by llama.cpp in its child process")
    parser.add_argument("--start", type=int, default=0, help="seed of the first")
    parser.add_argument("--only", default="", help="files whose name has this in it")
    parser.add_argument("--out", type=Path, default=RESULTS / "mutants.csv")
    args = parser.parse_args()
    begun = time.monotonic()
    tally: dict[tuple[str, str], list[Trial]] = {}
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for number, trial in enumerate(_trials(args.start, args.count, args.native, args.only), 1):
            tally.setdefault((trial.subject, trial.command), []).append(trial)
            if not trial.well:
                print(f"{trial.subject}, seed {trial.seed}: {trial.verdict}: {trial.command}\n{trial.said}", flush=True)
            if number % 500 == 0:
                print(f"{number} in {time.monotonic() - begun:.0f} s", flush=True)
    except KeyboardInterrupt:
        print("ended early; what was tried until now:")
    rows = [_row(subject, command, trials) for (subject, command), trials in sorted(tally.items())]
    with args.out.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(rows)
    print(table(rows))


def _trials(start: int, count: int, native: int, only: str) -> Iterator[Trial]:
    from small_models.mutant_trials import SUBJECTS, clear, native_subject, run_all_unchanged, try_mutant, write_base

    with tempfile.TemporaryDirectory(prefix="collab-mutants-") as folder:
        base, work = Path(folder) / "base", Path(folder) / "work"
        base.mkdir()
        work.mkdir()
        write_base(base)
        run_all_unchanged(base, work)
        subjects = [subject for subject in SUBJECTS if only in subject.name]
        todo: list[tuple[Subject, int]] = [(subjects[i % len(subjects)], start + i) for i in range(count)]
        if native:
            subject = native_subject(base)
            todo += [(subject, start + i) for i in range(native)]
        for subject, seed in todo:
            yield try_mutant(base, subject, seed // (len(subjects) if subject in subjects else 1), work)
            clear(work)


def _row(subject: str, command: str, trials: list[Trial]) -> tuple[str, str, int, int, int, str]:
    read, refused = (sum(t.verdict == verdict for t in trials) for verdict in ("read", "refused"))
    longest = f"{max(t.seconds for t in trials):.1f}"
    return subject, command, read, refused, len(trials) - read - refused, longest


def table(rows: list[tuple[str, str, int, int, int, str]]) -> str:
    """A Markdown table: by file, how many were read, refused in a line, or ended otherwise."""
    lines = ["| file | mutants | read | refused | else |", "|---|---|---|---|---|"]
    for subject in sorted({row[0] for row in rows}):
        own = [row for row in rows if row[0] == subject]
        read, refused, other = (sum(int(row[i]) for row in own) for i in (2, 3, 4))
        lines.append(f"| {subject} | {read + refused + other} | {read} | {refused} | {other} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
