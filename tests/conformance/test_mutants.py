"""The mutants are wrong in the way they say and in no other, and `verify` fails them."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from collab_conformance.judge.limits import read_limits
from collab_conformance.mutants.change import Change, Data, write_changed
from collab_conformance.mutants.make_mutant import make_mutants
from collab_conformance.mutants.mutants import MUTANTS, Mutant, NotApplicableError, usage
from collab_conformance.mutants.scale import scalable, scaled
from collab_conformance.pack.pack_document import Pack
from collab_conformance.pack.pack_file import read_pack
from collab_conformance.run.job import Job, Subject
from collab_conformance.run.run_target import run_target
from collab_conformance.suite.suite_subjects import suite_subjects
from gguf import GGMLQuantizationType
from gguf.quants import dequantize

from collab_plugin.checkpoint.gguf import GgufCheckpoint, open_gguf
from collab_plugin.formats.ggml_types import TYPES
from collab_plugin.plugins.manager import first_kernels, registry

SUITE = {subject.name: subject for subject in suite_subjects()}
GROUPS, K = "deepseek-groups", "qwen3moe-k"
BY_NAME = {mutant.name: mutant for mutant in MUTANTS}


@cache
def right(name: str) -> tuple[GgufCheckpoint, Pack]:
    return open_gguf(Path(SUITE[name].artifact)), read_pack(Path(SUITE[name].pack))


@pytest.fixture
def mutate(tmp_path: Path):
    def mutate(name: str, mutant: str) -> GgufCheckpoint:
        checkpoint, pack = right(name)
        path = tmp_path / f"{mutant}.gguf"
        write_changed(checkpoint, BY_NAME[mutant].make(checkpoint, pack), path)
        return open_gguf(path)

    return mutate


def apart(a: GgufCheckpoint, b: GgufCheckpoint) -> tuple[set[str], set[str]]:
    """Keys with other values, and tensors with other types or bytes."""
    assert set(a.tensors) == set(b.tensors)
    x, y = ({key: meta.value for key, meta in c.metadata.items()} for c in (a, b))
    keys = {key for key in {*x, *y} if x.get(key) != y.get(key)}
    tensors = {
        n for n in a.tensors
        if a.tensors[n].type != b.tensors[n].type or not np.array_equal(a.read_raw(n), b.read_raw(n))
    }  # fmt: skip
    return keys, tensors


@pytest.mark.parametrize("name", SUITE)
def test_a_change_of_nothing_is_the_file(name: str, tmp_path: Path) -> None:
    checkpoint, _ = right(name)
    write_changed(checkpoint, Change(), tmp_path / "same.gguf")
    assert (tmp_path / "same.gguf").read_bytes() == Path(SUITE[name].artifact).read_bytes()


def test_bytes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    checkpoint, _ = right(K)
    change = Change(tensors={"output.weight": Data(GGMLQuantizationType.F32, np.zeros(4, np.uint8))})
    with pytest.raises(ValueError, match=r"output.weight: 4 bytes for"):
        write_changed(checkpoint, change, tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("mutant", "keys", "tensors"),
    [
        ("k-plus-one", {"deepseek2.expert_used_count"}, set()),
        ("k-minus-one", {"deepseek2.expert_used_count"}, set()),
        ("router-bias-dropped", set(), {f"blk.{n}.exp_probs_b.bias" for n in (1, 2, 3)}),
        ("groups-dropped", {"deepseek2.expert_group_count", "deepseek2.expert_group_used_count"}, set()),
        ("scale-experts", set(), {"blk.2.ffn_down_exps.weight"}),
        ("scale-attention", set(), {"blk.2.attn_output.weight"}),
        ("block-corrupted", set(), {"blk.2.attn_output.weight"}),
        ("rope-base", {"deepseek2.rope.freq_base"}, set()),
    ],
)
def test_a_mutant_changes_what_it_says(mutate, mutant: str, keys: set[str], tensors: set[str]) -> None:
    assert apart(right(GROUPS)[0], mutate(GROUPS, mutant)) == (keys, tensors)


def test_used_experts_are_swapped_whole(mutate) -> None:
    checkpoint, pack = right(GROUPS)
    wrong = mutate(GROUPS, "experts-swapped")
    _, tensors = apart(checkpoint, wrong)
    assert tensors == {f"blk.2.ffn_{part}_exps.weight" for part in ("gate", "up", "down")}
    first, second = np.argsort(-usage(checkpoint, pack, 2), kind="stable")[:2]
    for name in tensors:
        assert np.array_equal(wrong.read_raw(name, expert=first), checkpoint.read_raw(name, expert=second))
        assert np.array_equal(wrong.read_raw(name, expert=second), checkpoint.read_raw(name, expert=first))
    assert usage(checkpoint, pack, 2).sum() == sum(r.routes.ids[1].size for r in pack.recordings if r.routes)


def test_shifted_groups_move_experts_with_their_routers(mutate) -> None:
    """So that without groups it would be the same model."""
    checkpoint, _ = right(GROUPS)
    wrong = mutate(GROUPS, "groups-shifted")
    keys, tensors = apart(checkpoint, wrong)
    assert not keys and tensors == {name for name, info in checkpoint.tensors.items() if info.by_expert}
    for name in tensors:
        a, b = (c.read_raw(name).reshape(8, -1) for c in (checkpoint, wrong))
        assert np.array_equal(b, np.roll(a, 1, axis=0)), "groups are of two experts"


def test_exchanged_types_leave_the_bytes(mutate) -> None:
    name = next(n for n in SUITE if applicable(n, "types-exchanged"))
    checkpoint = right(name)[0]
    wrong = mutate(name, "types-exchanged")
    _, tensors = apart(checkpoint, wrong)
    first, second = sorted(tensors)
    assert (wrong.tensors[first].type, wrong.tensors[second].type) == (
        checkpoint.tensors[second].type,
        checkpoint.tensors[first].type,
    )
    before, after = (np.concatenate([c.read_raw(n).ravel() for n in (first, second)]) for c in (checkpoint, wrong))
    assert np.array_equal(before, after)


def applicable(name: str, mutant: str) -> bool:
    try:
        BY_NAME[mutant].make(*right(name))
    except NotApplicableError:
        return False
    return True


@pytest.mark.parametrize("mutant", BY_NAME)
def test_every_mutant_has_an_artifact_of_the_suite(mutant: str) -> None:
    assert any(applicable(name, mutant) for name in SUITE)


@pytest.mark.parametrize(
    ("name", "mutant", "words"),
    [
        (K, "router-bias-dropped", "no bias"),
        (K, "groups-shifted", "not in groups"),
        (K, "groups-dropped", "not in groups"),
        (GROUPS, "k-plus-two", "cannot be used"),
    ],
)
def test_a_mutant_that_cannot_be_says_why(name: str, mutant: str, words: str) -> None:
    from collab_conformance.mutants.mutants import _used

    made = BY_NAME.get(mutant) or Mutant(mutant, "", _used(2))
    with pytest.raises(NotApplicableError, match=words):
        made.make(*right(name))


@pytest.mark.parametrize("name", [name for name in TYPES if scalable(GGMLQuantizationType[name])])
def test_a_scaled_tensor_is_the_tensor_scaled(name: str) -> None:
    """To half a unit of the half-precision scale; what the block says of its values stays."""
    values = np.random.default_rng(1).standard_normal((4, 256)).astype(np.float32)
    # Of the suite where there is such a tensor: the tables of IQ1 and IQ2 take seconds to build.
    kind = GGMLQuantizationType[name]
    data, n = of_the_suite(kind)
    if data is None:
        n, data = 256, first_kernels().quantize(values, name)
    before, after = (dequantize(x, kind).astype(np.float64) for x in (data, scaled(data, kind, 1.01)))
    slope = (before * after).sum() / np.square(before).sum()
    assert before.shape[-1] == n and slope == pytest.approx(1.01, abs=5e-4)
    assert np.abs(after - 1.01 * before).max() <= 2e-3 * np.abs(before).max()


def of_the_suite(kind: GGMLQuantizationType) -> tuple[np.ndarray | None, int]:
    for name in SUITE:
        checkpoint = right(name)[0]
        for info in checkpoint.tensors.values():
            if info.type == kind and len(info.shape) == 2:
                return np.array(checkpoint.read_raw(info.name)[:8]), info.shape[-1]
    return None, 0


def test_types_without_a_plain_scale_are_told() -> None:
    assert [name for name in TYPES if not scalable(GGMLQuantizationType[name])] == ["IQ1_M", "BF16"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [K, GROUPS])
def test_every_mutant_fails_on_the_cpu_and_the_right_file_passes(name: str, tmp_path: Path) -> None:
    """On every target: conformance/measure_mutants.py."""
    subject = SUITE[name]
    made = make_mutants(subject, tmp_path)
    wrong = [m.subject for m in made if m.subject is not None]
    assert len(wrong) >= 8
    provider = registry().targets["llamacpp"]
    info = next(i for i in provider.find() if i.name == "llamacpp:cpu")
    subjects: tuple[Subject, ...] = (subject, *wrong)
    job = Job(info.name, subjects, ("routing", "logits", "text"), False, 1, 0, str(tmp_path), ())
    report = run_target(info, provider, job, limits=read_limits(), time_limit=500, progress=lambda *_: None)
    failed = {check.artifact for check in report.checks if check.verdict == "fail"}
    assert failed == {each.name for each in wrong}
