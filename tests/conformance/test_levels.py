"""Levels on a session whose answers are known: the pack's own, or wrong in one way."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from collab_conformance.levels import artifact_level, behaviour, logits, routing, text
from collab_conformance.levels.planned import Planned
from collab_conformance.levels.running import Running
from collab_conformance.levels.scales_level import scale_errors
from collab_conformance.pack.make_pack import top_of
from collab_conformance.pack.pack_artifact import describe
from collab_conformance.pack.pack_document import Artifact, Pack, PackDocument, Prompt, Recorder, Recording, Routes
from collab_conformance.pack.pack_file import read_document
from collab_conformance.pack.scale_directions import Scales
from collab_conformance.run.job import Job, Subject
from collab_conformance.suite.suite_subjects import suite_subjects

from collab_plugin.engines.target import F32, LoadOptions, LogProbabilities, NotOfferedError, Routing, Session, Target
from collab_plugin.errors import CollabError

VOCABULARY, LAYERS, EXPERTS, USED = 50, (1, 3), 8, 2
LENGTHS = {"seven": 7, "some": 70, "long": 520}


def answers(length: int) -> F32:
    return np.random.default_rng(length).standard_normal((length, VOCABULARY)).astype(np.float32) * 3


def choices(length: int) -> np.ndarray:
    rng = np.random.default_rng(length)
    return np.argsort(rng.random((len(LAYERS), length, EXPERTS)), -1)[..., :USED].astype(np.int32)


def pack(routed: bool = True) -> Pack:
    artifact = Artifact("tiny", "0" * 64, 1, "toy", None, "0" * 64, VOCABULARY, LAYERS, EXPERTS, USED, {}, {})
    prompts, recordings = [], []
    for name, length in LENGTHS.items():
        positions = tuple(range(0, length, 3))
        steps = 4 if name == "some" else 0
        prompts.append(Prompt(name, tuple(i % VOCABULARY for i in range(length)), positions, steps))
        whole = answers(length)
        routes = Routes(choices(length), np.full((len(LAYERS), length), 0.5, np.float32)) if routed else None
        greedy = top_of(answers(steps), 5) if steps else None
        recordings.append(Recording(top_of(whole, 20), whole[list(positions)], routes, greedy))
    document = PackDocument(artifact, Recorder("engine", "toy", "cpu", {}), routed, tuple(prompts), "0" * 64, None)
    return Pack(document, tuple(recordings), None)


@dataclass
class Known(Session):
    """Gives the pack's answers, after ``change`` by the options it was loaded with."""

    options: LoadOptions
    change: Callable[[F32, LoadOptions, int | None], F32] = lambda x, options, batch: x
    reroute: Callable[[np.ndarray], np.ndarray] = lambda ids: ids
    regreedy: Callable[[LogProbabilities], LogProbabilities] = lambda greedy: greedy

    def logits(self, tokens: Sequence[int], *, batch: int | None = None) -> F32:
        return self.change(answers(len(tokens)), self.options, batch)

    def routing(self, tokens: Sequence[int]) -> tuple[Routing, ...]:
        ids = self.reroute(choices(len(tokens)))
        return tuple(Routing(layer, one) for layer, one in zip(LAYERS, ids, strict=True))

    def greedy(self, tokens: Sequence[int], n: int) -> LogProbabilities:
        return self.regreedy(top_of(answers(n), 5))


class TopOnly(Session):
    def top(self, tokens: Sequence[int], n: int) -> LogProbabilities:
        return top_of(answers(len(tokens)) * np.float32(1.1), n)


@dataclass
class KnownTarget(Target):
    make: Callable[[LoadOptions], Session]
    loads: list[LoadOptions] = field(default_factory=list)
    open: int = 0

    @contextmanager
    def load(self, artifact: Path, options: LoadOptions) -> Iterator[Session]:  # type: ignore[override]
        self.loads.append(options)
        self.open += 1
        assert self.open == 1, "two artifacts at once may not fit"
        yield self.make(options)
        self.open -= 1


def running(target: Target, short: bool = False, routed: bool = True, folder: Path = Path("none")) -> Running:
    job = Job("toy:cpu", (), (), short, 1, 0, "", ())
    return Running(target, Subject("tiny", "tiny.gguf", str(folder)), pack(routed), job)


def figures(checks: Sequence[Planned]) -> dict[str, float | str]:
    def one(check: Planned) -> float | str:
        try:
            return check.measure()
        except NotOfferedError as error:
            return str(error)

    return {check.name: one(check) for check in checks}


def known(**changes: Callable) -> KnownTarget:
    return KnownTarget(lambda options: Known(options, **changes))


def test_the_packs_own_answers_differ_in_nothing() -> None:
    target = known()
    under_test = running(target)
    found = figures([c for level in (routing, logits, text, behaviour) for c in level.checks(under_test)])
    assert found.pop("logits.same_top1") == 1.0
    assert found.pop("logits.tensor_scale") == "the pack has no scale directions: an engine recorded it"
    # KL divergence in float64 of equal logits is not 0 to the last bit.
    assert all(isinstance(value, float | int) and value < 1e-12 for value in found.values()), found
    under_test.close()
    assert target.open == 0
    kinds = [(o.ctx, o.kv_type) for o in target.loads]
    assert kinds == [(1024, "f32"), (1024, "f16"), (1024, "q8_0"), (70, "f32")], "loaded once for each use"


def test_only_targets_that_place_experts_are_given_a_placement() -> None:
    job = Job("toy:cpu", (), (), True, 1, 0, "", (), "/there/placement.json")
    target = known()
    subject = Subject("tiny", "tiny.gguf", "none")
    found = figures(
        [c for level in (routing, logits, text) for c in level.checks(Running(target, subject, pack(), job))]
    )
    assert set(found.values()) == {"this target takes no placement"}
    assert target.loads == []

    class Places(KnownTarget):
        places = True

    placing = Places(lambda options: Known(options))
    under_test = Running(placing, subject, pack(), job)
    assert figures(logits.checks(under_test))["logits.same_top1"] == 1.0
    under_test.close()
    assert [str(options.placement) for options in placing.loads] == ["/there/placement.json"]


def test_a_factor_is_found_in_scale_and_nmse() -> None:
    found = figures(logits.checks(running(known(change=lambda x, *_: x * np.float32(1.01)))))
    assert found["logits.scale"] == pytest.approx(0.01, rel=1e-3)
    assert found["logits.nmse"] == pytest.approx(1e-4, rel=1e-3)
    assert found["logits.nmse_p50"] == pytest.approx(1e-4, rel=1e-3)
    assert found["logits.same_top1"] == 1.0


def test_a_constant_at_each_position_is_no_difference() -> None:
    """Engines that tell log-probabilities of every token give logits but for that."""
    found = figures(logits.checks(running(known(change=lambda x, *_: x - x.max(-1, keepdims=True)))))
    assert found["logits.nmse"] < 1e-12 and found["logits.mean_kld"] < 1e-12  # type: ignore[operator]


def test_one_wrong_position_moves_the_mean_and_not_the_median() -> None:
    def change(x: F32, options: LoadOptions, batch: int | None) -> F32:
        x = x.copy()
        x[0] = x[0, ::-1]
        return x

    found = figures(logits.checks(running(known(change=change))))
    assert found["logits.nmse_p50"] == 0.0 and found["logits.nmse"] > 1e-3
    assert found["logits.same_top1"] < 1.0 and found["logits.mean_kld"] > 1e-2


def test_engines_that_give_only_tops_are_held_to_those() -> None:
    found = figures(logits.checks(running(KnownTarget(lambda options: TopOnly()))))
    assert found["logits.nmse"] == "the engine gives no logits"
    assert 1e-4 < found["logits.mean_kld"] < 0.1  # type: ignore[operator]
    assert found["logits.same_top1"] == 1.0


def test_logits_of_another_shape_are_no_logits() -> None:
    check = logits.checks(running(known(change=lambda x, *_: x[:, 1:])))[0]
    with pytest.raises(ValueError, match=r"logits of shape \(3, 49\), not \(3, 50\)"):
        check.measure()


def test_logits_that_are_not_finite_have_no_figure() -> None:
    found = figures(logits.checks(running(known(change=lambda x, *_: x * np.float32("nan")))))
    assert np.isnan(found["logits.nmse"]) and np.isnan(found["logits.mean_kld"])


def test_another_expert_is_found() -> None:
    def swap(ids: np.ndarray) -> np.ndarray:
        ids = ids.copy()
        ids[0, 0, 0] = next(e for e in range(EXPERTS) if e not in ids[0, 0])
        return ids

    found = figures(routing.checks(running(known(reroute=swap))))
    decisions = len(LAYERS) * sum(LENGTHS.values())
    assert found["routing.different"] == pytest.approx(len(LENGTHS) / decisions)
    assert found["routing.near_ties"] == 0.0


def test_experts_are_a_set() -> None:
    found = figures(routing.checks(running(known(reroute=lambda ids: ids[..., ::-1]))))
    assert set(found.values()) == {0.0}


def test_another_number_of_experts_fails() -> None:
    check = routing.checks(running(known(reroute=lambda ids: ids[..., :1])))[0]
    with pytest.raises(ValueError, match="used 1 experts a token, the pack 2"):
        check.measure()


def test_a_pack_without_routing_is_told() -> None:
    found = figures(routing.checks(running(known(), routed=False)))
    assert set(found.values()) == {"the pack has no routing: what recorded it does not show its own"}


def test_text_that_parts_for_a_far_token_is_broken() -> None:
    def far(greedy: LogProbabilities) -> LogProbabilities:
        ids = greedy.ids.copy()
        ids[2, 0] = next(t for t in range(VOCABULARY) if t not in greedy.ids[2])
        return LogProbabilities(ids, greedy.values)

    def near(greedy: LogProbabilities) -> LogProbabilities:
        ids = greedy.ids.copy()
        ids[2, [0, 1]] = ids[2, [1, 0]]
        return LogProbabilities(ids, greedy.values)

    assert figures(text.checks(running(known(regreedy=far)))) == {"text.broken": 1, "text.parted": 1}
    assert figures(text.checks(running(known(regreedy=near)))) == {"text.broken": 0, "text.parted": 1}


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("behaviour.batch_7", lambda options, batch: batch == 7),
        ("behaviour.batch_512", lambda options, batch: batch == 512),
        ("behaviour.kv_q8_0", lambda options, batch: options.kv_type == "q8_0"),
        ("behaviour.context_boundary", lambda options, batch: options.ctx == 70),
    ],
)
def test_what_changes_the_result_is_named(name: str, wrong: Callable[[LoadOptions, int | None], bool]) -> None:
    def change(x: F32, options: LoadOptions, batch: int | None) -> F32:
        return x + np.float32(0.5) * np.roll(x, 1, -1) if wrong(options, batch) else x

    found = figures(behaviour.checks(running(known(change=change))))
    assert {check for check, value in found.items() if value > 1e-12} == {name}  # type: ignore[operator]


def test_two_runs_of_other_bits_are_found() -> None:
    calls = iter(range(1000))

    def change(x: F32, options: LoadOptions, batch: int | None) -> F32:
        x = x.copy()
        x[0, 0] = np.nextafter(x[0, 0], np.float32(9), dtype=np.float32) if next(calls) % 2 else x[0, 0]
        return x

    repeat = next(c for c in behaviour.checks(running(known(change=change))) if c.name == "behaviour.repeat")
    assert repeat.measure() == 1


def test_the_short_form_leaves_long_prompts_out() -> None:
    assert [prompt.name for prompt, _ in running(known(), short=True).prompts] == ["seven", "some"]
    names = {check.name for check in behaviour.checks(running(known(), short=True))}
    assert "behaviour.batch_512" not in names and "behaviour.batch_7" in names


def test_an_artifact_that_does_not_load_fails_every_check_with_its_reason() -> None:
    class Refuses(Target):
        def load(self, artifact: Path, options: LoadOptions):  # type: ignore[no-untyped-def]
            raise CollabError("unknown architecture")

    for check in logits.checks(running(Refuses()))[:3]:
        with pytest.raises(CollabError, match="unknown architecture"):
            check.measure()


def directions(tokens: int = 400, columns: int = 40) -> Scales:
    rng = np.random.default_rng(5)
    made = {name: rng.standard_normal((tokens, columns)).astype(np.float16) for name in ("a.weight", "b.weight")}
    right = rng.standard_normal((tokens, columns)).astype(np.float32) * 5
    return Scales(0, np.arange(0, 2 * columns, 2, dtype=np.int32), right, made)


def spread(scales: Scales, values: np.ndarray) -> np.ndarray:
    """``values`` at the scales' columns of a vocabulary, more tokens than they have."""
    whole = np.zeros((len(values) + 3, 2 * values.shape[1]))
    whole[: len(values), scales.columns] = values
    return whole


def test_a_scale_off_by_a_percent_is_found_below_the_noise() -> None:
    scales = directions()
    rng = np.random.default_rng(6)
    noise = rng.standard_normal((40, 40)) @ rng.standard_normal((400, 40)).T * 0.02  # ten times the effect, correlated
    wrong = scales.logits + noise.T + 0.01 * scales.directions["a.weight"].astype(float)
    found = scale_errors(scales, spread(scales, wrong))
    assert found["a.weight"] == pytest.approx(0.01, abs=0.004) and abs(found["b.weight"]) < 0.003
    right = scale_errors(scales, spread(scales, scales.logits + noise.T))
    assert max(map(abs, right.values())) < 0.003


def test_a_constant_added_to_all_logits_is_no_scale() -> None:
    scales = directions()
    assert scale_errors(scales, spread(scales, scales.logits + 3.0)) == pytest.approx(
        {"a.weight": 0, "b.weight": 0}, abs=1e-6
    )


def test_the_artifact_level_says_what_differs() -> None:
    """The hash alone would do; the rest says what is wrong."""
    subject = suite_subjects()[0]
    expected = read_document(Path(subject.pack)).artifact
    found = describe(Path(subject.artifact))
    assert {m.value for m in artifact_level.measured("x", found, expected)} == {0.0}
    types = {**found.types, "output.weight": "F32", "blk.0.attn_q.weight": "F16"}
    other = dataclasses.replace(found, experts_used=3, types=types, sha256="f" * 64)
    figures = {m.name: (m.value, m.reason) for m in artifact_level.measured("x", other, expected) if m.value}
    assert {name: value for name, (value, _) in figures.items()} == {
        "artifact.sha256": 1.0,
        "artifact.experts_used": 1.0,
        "artifact.tensor_types": 2.0,
    }
    assert figures["artifact.experts_used"][1] == f"3, the pack says {expected.experts_used}"
