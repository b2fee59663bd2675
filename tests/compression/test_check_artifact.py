"""`inspect --check`: what differs from the plan and the source is told, and what is right is left alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from small_models.hand_made_plans import pruned, typed_plan
from small_models.random_moe import imagined_stats
from small_models.random_moe import write_qwen3moe as write_random_qwen3moe

import collab_plugin as cp
from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.cli.main import main
from collab_plugin.compression.gguf_file import compress
from collab_plugin.formats.tensor_names import Role
from collab_plugin.plans.artifact import artifact_layout
from collab_plugin.plans.plan import Plan, TensorPlan
from collab_plugin.plans.plan_file import write_plan
from collab_plugin.progress import untold

pytestmark = pytest.mark.native
DOWN = "blk.1.ffn_down_exps.weight"


@dataclasses.dataclass(frozen=True)
class Made:
    """A pruned model of Q4_K and Q8_0 with its plan, in one file and in several."""

    source: Path
    plan: Plan
    plan_path: Path
    out: Path
    split: Path


@pytest.fixture(scope="module", params=["qwen3moe", "deepseek2"])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    source, folder = request.getfixturevalue(request.param), tmp_path_factory.mktemp("checked")
    checkpoint, kernels = open_gguf(source), GgmlKernels()
    plan = typed_plan(checkpoint, lambda info: "Q4_K" if info.role == Role.EXPERT else "Q8_0")
    plan = pruned(checkpoint, plan, (3, 0, 2))
    write_plan(folder / "plan.json", plan)
    for name, split in (("out.gguf", None), ("split.gguf", 1_000_000)):
        compress(checkpoint, plan, None, folder / name, kernels=kernels, threads=1, report=untold, split=split)
    first = next(folder.glob("split-00001-of-*.gguf"))
    return Made(source, plan, folder / "plan.json", folder / "out.gguf", first)


@pytest.mark.parametrize("file", ["out", "split"])
@pytest.mark.parametrize("pieces", [5, "all"])
def test_what_compress_wrote_is_right(file: str, pieces: int, made: Made) -> None:
    found = cp.check(getattr(made, file), made.plan_path, made.source, pieces=pieces, threads=1)  # type: ignore[arg-type]
    assert found.problems == ()
    assert found.compared == (found.tiles if pieces == "all" else 5)


@pytest.mark.parametrize("where", ["an expert", "the header", "padding"])
def test_a_flipped_bit_is_found(where: str, made: Made, tmp_path: Path) -> None:
    layout = artifact_layout(open_gguf(made.source), made.plan)
    first = min(layout.offsets.values())
    # The last expert of the file: expert 2 of the source.
    at = {"an expert": layout.offsets[DOWN] + layout.sizes[DOWN] - 9, "padding": first - 1}.get(where)
    data = bytearray(made.out.read_bytes())
    name = data.index(b"collab.experts_used.original") if at is None else 0
    data[name + 32 if at is None else at] ^= 1
    damaged = tmp_path / "damaged.gguf"
    damaged.write_bytes(data)
    if where == "padding" and first == len(layout.header) and layout.header[-1]:
        pytest.skip("this header has no padding")
    (problem,) = cp.check(damaged, made.plan, made.source, pieces="all", threads=1).problems
    told = {
        "an expert": f"{DOWN}, expert 2 of the source, rows 0 to 255: other bytes than Q4_K of the source",
        "the header": "collab.experts_used.original is not what the plan makes of the source",
        "padding": "its header, or what lies between tensors, is not what the plan makes of the source",
    }
    assert problem == told[where]


def test_some_pieces_find_what_lies_in_them(made: Made, tmp_path: Path) -> None:
    """A tensor that was made without the stats, or by other kernels, differs in every piece."""
    layout = artifact_layout(open_gguf(made.source), made.plan)
    data = bytearray(made.out.read_bytes())
    at, size = layout.offsets[DOWN], layout.sizes[DOWN]
    data[at : at + size] = bytes(byte ^ 1 for byte in data[at : at + size])
    (tmp_path / "other.gguf").write_bytes(data)
    found = cp.check(tmp_path / "other.gguf", made.plan, made.source, pieces=1000, threads=1)
    assert len(found.problems) == 3  # an expert each
    assert all(problem.startswith(f"{DOWN}, expert ") for problem in found.problems)


def test_the_plan_alone_tells_types_experts_and_bytes(made: Made) -> None:
    assert cp.check(made.out, made.plan).problems == ()
    other = dataclasses.replace(
        made.plan,
        tensors={
            **made.plan.tensors,
            DOWN: TensorPlan("Q5_K", 1, None),
            "blk.9.gone.weight": TensorPlan("F32", 4, 0.0),
        },
        pruning=dataclasses.replace(
            made.plan.pruning, kept=dict.fromkeys(made.plan.pruning.kept, (0, 1)), expert_count=2
        ),
        bytes=made.plan.bytes + 32,
    )
    found = cp.check(made.out, other).problems
    assert found[0] == "it was made by another plan"
    assert "it names other kept experts than the plan" in found
    assert "1 tensors are missing: blk.9.gone.weight" in found
    assert f"{DOWN} is Q4_K, the plan says Q5_K" in found
    assert f"{DOWN} has 3 experts, the plan keeps 2" in found
    assert f"it has {made.plan.bytes:,} bytes, the plan says {made.plan.bytes + 32:,}" in found


def test_the_command_line(made: Made, tmp_path: Path) -> None:
    arguments = ["inspect", "--check", str(made.out), "--plan", str(made.plan_path)]
    right = CliRunner().invoke(main, [*arguments, str(made.source), "--pieces", "9", "--threads", "1"])
    assert right.exit_code == 0, right.output
    assert "is as the plan says" in right.stdout
    assert "; 9 pieces of " in right.stdout
    wrong = tmp_path / "other.json"
    write_plan(wrong, dataclasses.replace(made.plan, metadata={**made.plan.metadata, "x.y": 7}))
    different = CliRunner().invoke(main, [*arguments[:-1], str(wrong), "--json"])
    assert different.exit_code == 1, different.output
    assert json.loads(different.stdout)["problems"] == [
        "it was made by another plan",
        "x.y is missing, the plan says 7",
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "MODEL is missing"),
        (("--check", "OUT"), "--plan is missing"),
        (("MODEL", "--plan", "PLAN"), "--plan is of use only together with --check"),
        (("--check", "OUT", "--plan", "PLAN", "--pieces", "some"), "--pieces some is neither all nor a number"),
        (("--check", "OUT", "--plan", "PLAN", "--pieces", "0"), "--pieces 0 is less than 1"),
        (("--check", "OUT", "--plan", "PLAN", "--stats", "S"), "--stats and --samples are of no use without MODEL"),
        (("--check", "OUT", "--plan", "PLAN", "OUT"), "the plan was made for another checkpoint"),
    ],
)
def test_mistakes_are_one_line(arguments: tuple[str, ...], words: str, made: Made) -> None:
    paths = {"OUT": str(made.out), "PLAN": str(made.plan_path), "MODEL": str(made.source)}
    done = CliRunner().invoke(main, ["inspect", *(paths.get(a, a) for a in arguments)])
    assert done.exit_code == 2
    assert words in done.stderr
    assert [line for line in done.stderr.splitlines() if line != "checking ..."][1:] == []


def test_stats_are_needed_when_the_plan_used_some(tmp_path: Path) -> None:
    source, stats, out = write_random_qwen3moe(tmp_path / "model.gguf"), tmp_path / "stats.gguf", tmp_path / "out.gguf"
    cp.write_stats(stats, imagined_stats(open_gguf(source)))
    plan = cp.plan(source, stats=stats, budget="4bpw", keep=8, types=["Q4_K", "Q8_0"], threads=1)
    cp.compress(source, plan, out, stats=stats, threads=1)
    with pytest.raises(cp.CollabError, match="give them as `stats`"):
        cp.check(out, plan, source)
    assert cp.check(out, plan, source, stats=stats, pieces="all", threads=1).problems == ()
