"""Changed files end in a result or in one line, never in a traceback, a signal, a wait or half an output.

The same with 10,000 of them: benchmarks/mutants/run.py.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_models.mutant_trials import SUBJECTS, Subject, clear, run_all_unchanged, try_mutant, write_base

EACH = 12


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_base(tmp_path_factory.mktemp("base"))
    run_all_unchanged(folder, tmp_path_factory.mktemp("unchanged"))
    return folder


@pytest.mark.skipif(not hasattr(os, "fork"), reason="commands run in forked children")
@pytest.mark.parametrize("subject", SUBJECTS, ids=lambda subject: subject.name)
def test_mutants_end_well(subject: Subject, base: Path, tmp_path: Path) -> None:
    ended = []
    for seed in range(EACH):
        ended.append(try_mutant(base, subject, seed, tmp_path))
        clear(tmp_path)
    assert [trial for trial in ended if not trial.well] == []
    assert len(ended) == EACH
