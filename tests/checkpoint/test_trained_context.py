"""Windows longer than what a model was trained for are told of, wherever text is run."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_models.model_bench import Bench

import collab_plugin as cp
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.checkpoint.trained_context import window_note
from collab_plugin.cli.main import main

TOLD = "1,024 is more than the 512 tokens that {} was trained for (context_length): what it does after them says little"


@pytest.mark.parametrize(("ctx", "told"), [(512, False), (513, True)])
def test_only_longer_windows(ctx: int, told: bool, qwen3moe: Path) -> None:
    assert (window_note(open_gguf(qwen3moe), ctx) is not None) is told


def test_a_model_that_does_not_say(qwen3moe: Path) -> None:
    checkpoint = open_gguf(qwen3moe)
    checkpoint.metadata = {k: v for k, v in checkpoint.metadata.items() if "context_length" not in k}
    assert window_note(checkpoint, 10**6) is None


@pytest.mark.native
def test_calibrate_and_evaluate_tell(qwen3moe: Path, text: Path, tmp_path: Path) -> None:
    """The text fills one window; the figures are as ever."""
    told: list[str] = []
    cp.calibrate(qwen3moe, texts=[text], ctx=1024, threads=1, warn=told.append)
    cp.evaluate(qwen3moe, against=qwen3moe, texts=[text], ctx=1024, threads=1, warn=told.append)
    cp.reference(qwen3moe, tmp_path / "original.npy", texts=[text], ctx=1024, threads=1, warn=told.append)
    cp.evaluate(
        qwen3moe, against=tmp_path / "original.npy", texts=[text], ctx=1024, threads=1, warn=told.append
    )  # fmt: skip
    assert len(told) == 4
    assert all(sentence.startswith(f"`ctx` {TOLD.format(qwen3moe)}") for sentence in told)


@pytest.mark.native
def test_the_command_names_its_option(qwen3moe: Path, text: Path, tmp_path: Path) -> None:
    arguments = ["calibrate", str(qwen3moe), "--text", str(text), "--ctx", "1024", "-o", str(tmp_path / "s.gguf")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert f"warning: --ctx {TOLD.format(qwen3moe)}" in done.stderr


class ToldError(Exception):
    """Ends a command at its first warning."""


def stop(sentence: str) -> None:
    raise ToldError(sentence)


def test_probe_tells_before_it_measures(runnable: Bench, text: Path, tmp_path: Path) -> None:
    told = TOLD.format(runnable.path)
    with pytest.raises(ToldError, match=re.escape(told)):
        cp.probe(runnable.path, stats=runnable.stats_path, texts=[text], ctx=1024, out=tmp_path / "s.json", warn=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_confirmed_plan_tells(runnable: Bench, text: Path) -> None:
    plan = cp.plan(
        runnable.path,
        stats=runnable.stats_path,
        budget="5bpw",
        keep="100%",
        types="Q4_K",
        confirm=1,
        texts=[text],
        ctx=1024,
        threads=1,
    )
    assert [note for note in plan.notes if TOLD.format(runnable.path) in note]
