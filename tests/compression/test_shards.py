"""A GGUF in several files, named and marked as llama-gguf-split does: llama.cpp loads them, and runs resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from gguf import GGUFReader
from small_models.hand_made_plans import pruned
from small_models.llama_cpp_calls import logits

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.cli.main import main
from collab_plugin.compression.gguf_file import compress
from collab_plugin.errors import CollabError
from collab_plugin.plans.copy_plan import copy_plan
from collab_plugin.plans.plan_file import write_plan
from collab_plugin.progress import untold

MOST = 1_500_000


@pytest.fixture
def plan_path(qwen3moe: Path, tmp_path: Path) -> Path:
    checkpoint = open_gguf(qwen3moe)
    write_plan(tmp_path / "plan.json", pruned(checkpoint, copy_plan(checkpoint), (0, 2, 3)))
    return tmp_path / "plan.json"


def run(model: Path, plan: Path, out: Path, *more: str) -> dict[str, object]:
    arguments = ["compress", str(model), "--plan", str(plan), "-o", str(out), "--json", *more]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    written: dict[str, object] = json.loads(done.stdout)
    return written


def test_files_are_no_larger_than_asked_and_hold_the_same(qwen3moe: Path, plan_path: Path, tmp_path: Path) -> None:
    whole = run(qwen3moe, plan_path, tmp_path / "whole.gguf")
    written = run(qwen3moe, plan_path, tmp_path / "out.gguf", "--split", str(MOST))
    files = sorted(tmp_path.glob("out*"))
    assert [file.name for file in files] == [f"out-{i:05d}-of-{len(files):05d}.gguf" for i in range(1, len(files) + 1)]
    assert len(files) == written["files"] > 3
    assert all(file.stat().st_size <= MOST for file in files)
    assert (written["path"], written["bytes"]) == (str(files[0]), sum(file.stat().st_size for file in files))
    one, parts = open_gguf(tmp_path / "whole.gguf"), open_gguf(files[-1])
    assert dict(parts.metadata) == dict(one.metadata)
    assert list(parts.tensors) == list(one.tensors)
    for name in one.tensors:
        np.testing.assert_array_equal(parts.read_raw(name), one.read_raw(name))
    for number, file in enumerate(files):
        keys = {f.name: f.contents() for f in GGUFReader(file).fields.values() if f.name.startswith("split.")}
        assert keys == {"split.no": number, "split.count": len(files), "split.tensors.count": len(one.tensors)}
    assert whole["files"] == 1


@pytest.mark.native
def test_llama_cpp_computes_the_same(qwen3moe: Path, plan_path: Path, tmp_path: Path) -> None:
    run(qwen3moe, plan_path, tmp_path / "whole.gguf")
    first = run(qwen3moe, plan_path, tmp_path / "out.gguf", "--split", str(MOST))["path"]
    np.testing.assert_array_equal(logits(Path(str(first))), logits(tmp_path / "whole.gguf"))


def test_what_fits_is_one_file(qwen3moe: Path, plan_path: Path, tmp_path: Path) -> None:
    assert run(qwen3moe, plan_path, tmp_path / "out.gguf", "--split", "1GB")["path"] == str(tmp_path / "out.gguf")


def test_an_interrupted_run_goes_on(qwen3moe: Path, tmp_path: Path) -> None:
    checkpoint, out = open_gguf(qwen3moe), tmp_path / "out.gguf"
    plan, calls = copy_plan(checkpoint), 0

    def stop(done: float, total: float | None = None) -> None:
        nonlocal calls
        calls += 1
        if calls > 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compress(checkpoint, plan, None, out, kernels=None, threads=1, report=stop, split=MOST)
    assert not list(tmp_path.glob("out-*.gguf"))
    written = compress(checkpoint, plan, None, out, kernels=None, threads=1, report=untold, split=MOST)
    assert 0 < written.resumed_tiles < written.tiles
    compress(checkpoint, plan, None, tmp_path / "again.gguf", kernels=None, threads=1, report=untold, split=MOST)
    for file in sorted(tmp_path.glob("out-*.gguf")):
        assert file.read_bytes() == file.with_name(file.name.replace("out", "again")).read_bytes()
    assert len(list(tmp_path.glob("out*"))) == written.files


def test_a_tensor_that_is_larger_alone(qwen3moe: Path, plan_path: Path, tmp_path: Path) -> None:
    checkpoint = open_gguf(qwen3moe)
    with pytest.raises(CollabError, match=r"`split` 9,000 bytes: .* alone takes [\d,]+; take a larger size"):
        compress(
            checkpoint,
            copy_plan(checkpoint),
            None,
            tmp_path / "o.gguf",
            kernels=None,
            threads=1,
            report=untold,
            split=9000,
        )
    done = CliRunner().invoke(
        main, ["compress", str(qwen3moe), "--plan", str(plan_path), "-o", str(tmp_path / "o"), "--split", "much"]
    )
    assert done.exit_code == 2
    assert "--split" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["plan.json"]
