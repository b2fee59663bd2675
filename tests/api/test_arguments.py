"""The Python interface: arguments in all their forms, and mistakes in one line that names the parameter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_models.model_bench import Bench
from small_models.random_moe import imagined_stats, write_qwen3moe

import collab_plugin as cp
from collab_plugin.checkpoint.identity import model_id
from collab_plugin.plans.plan_file import plan_fingerprint

EVALUATION = cp.Evaluation(9.0, 8.0, 0.5, 0.01, 0.1, 0.9, 1.0, 2.0, 3.0, 4.0, 0.7, 99, 512)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 experts, top-4."""
    return write_qwen3moe(tmp_path_factory.mktemp("model") / "model.gguf")


@pytest.fixture(scope="module")
def stats(model: Path) -> cp.Stats:
    return imagined_stats(cp.open_checkpoint(model))


def pruned(model: Path, stats: cp.Stats, **options: Any) -> cp.Plan:
    return cp.plan(model, stats=stats, keep_types=True, allow_few_tokens=True, **options)


def test_a_model_is_a_path_or_an_open_checkpoint(qwen3moe: Path) -> None:
    assert cp.inspect(qwen3moe) == cp.inspect(str(qwen3moe)) == cp.inspect(cp.open_checkpoint(str(qwen3moe)))


@pytest.mark.parametrize("keep", [8, "8", 0.5, "0.5", "50%"])
def test_keep_is_a_count_or_a_share(keep: str | float, model: Path, stats: cp.Stats) -> None:
    assert pruned(model, stats, keep=keep).pruning.expert_count == 8


def test_stats_in_memory_plan_as_those_of_a_file(softmax: Bench, tmp_path: Path) -> None:
    """The same plan but for the name of the file; `compress` takes these stats and no others."""
    options = {"budget": "3bpw", "types": "Q2_K,Q4_K", "keep": 12, "allow_few_tokens": True, "threads": 1}
    held = cp.read_stats(softmax.stats_path)
    named = cp.plan(softmax.path, stats=softmax.stats_path, **options)
    unnamed = cp.plan(softmax.path, stats=held, **options)
    assert named.calibration is not None and unnamed.calibration is not None
    assert (named.calibration.file, unnamed.calibration.file) == ("stats.gguf", "")
    assert unnamed.calibration.sha256 == named.calibration.sha256
    assert plan_fingerprint(unnamed) == plan_fingerprint(named)
    with pytest.raises(cp.CollabError, match="give them as `stats`"):
        cp.compress(softmax.path, unnamed, tmp_path / "out.gguf")
    with pytest.raises(cp.CollabError, match="`stats` are not those that the plan was made with"):
        cp.compress(softmax.path, unnamed, tmp_path / "out.gguf", stats=imagined_stats(softmax.checkpoint, seed=1))
    files = []
    for number, given in enumerate((held, softmax.stats_path)):
        files.append(tmp_path / f"{number}.gguf")
        made = cp.compress(softmax.path, unnamed, str(files[-1]), stats=given)
        assert made.bytes == files[-1].stat().st_size == unnamed.bytes
    assert files[0].read_bytes() == files[1].read_bytes()


def test_sensitivity_in_memory_plans_as_that_of_a_file(softmax: Bench, tmp_path: Path) -> None:
    probes = tuple(cp.GroupProbe((name,), 0.1, 0.2, 0.01) for name in ("output.weight", "blk.0.attn_q.weight"))
    found = cp.Sensitivity(
        model_id(softmax.checkpoint),
        softmax.source.sha256,
        ("a.txt",),
        "0",
        512,
        4,
        8,
        1020,
        86_016,
        "an engine",
        probes,
    )
    path = tmp_path / "sensitivity.json"
    cp.write_sensitivity(str(path), found)
    assert cp.read_sensitivity(path) == found
    options = {
        "stats": softmax.stats_path,
        "budget": "3bpw",
        "types": "Q2_K,Q4_K",
        "keep": 12,
        "allow_few_tokens": True,
    }
    plans = [cp.plan(softmax.path, sensitivity=given, threads=1, **options) for given in (found, path, str(path))]
    assert [p.sensitivity.file for p in plans if p.sensitivity] == ["", "sensitivity.json", "sensitivity.json"]
    assert len({p.sensitivity.sha256 for p in plans if p.sensitivity}) == 1
    assert len({(plan_fingerprint(p), p.prediction) for p in plans}) == 1
    assert plans[0].prediction.startswith("probed: 2 groups (2 of ")


def test_options_of_criteria_are_numbers_or_text(model: Path, stats: cp.Stats) -> None:
    for given in (0.25, "0.25"):
        plan = pruned(model, stats, keep=8, criterion_options={"alpha": given})
        assert plan.pruning.options == {"alpha": 0.25}


def test_a_plan_s_file_finds_the_stats_beside_it(softmax: Bench, tmp_path: Path) -> None:
    plan = softmax.stats_path.parent / "plan.json"
    cp.write_plan(str(plan), cp.plan(softmax.path, stats=softmax.stats_path, budget="5bpw", types=["Q4_K"]))
    assert cp.compress(softmax.path, plan, tmp_path / "out.gguf").bytes == cp.read_plan(str(plan)).bytes
    assert cp.report(plan).importance is not None
    assert any("give the statistics" in sentence for sentence in cp.report(cp.read_plan(plan)).left_out)


def test_a_report_of_objects(model: Path, stats: cp.Stats, tmp_path: Path) -> None:
    rivals = tmp_path / "rivals.csv"
    rivals.write_text("rival,bytes,mean_kld\nQ2_K,2000,0.7\n")
    plan = pruned(model, stats, keep=8)
    facts = cp.report(
        plan, stats=stats, model=model, evaluations=[EVALUATION], rivals=str(rivals), setup=cp.RunSetup(reserve=0)
    )
    assert facts.importance is not None and facts.importance.scores is not None
    assert facts.evaluations[0].mean_kld == EVALUATION.mean_kld
    assert [rival.name for rival in facts.rivals] == ["Q2_K"]
    assert not any("differs from the one" in sentence for sentence in facts.left_out)
    assert cp.write_report(facts) == []


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda m, t: cp.plan(m), "`budget` is missing"),
        (lambda m, t: cp.plan(m, budget=0), "'0' is zero"),
        (lambda m, t: cp.plan(m, budget="3bpw", criterion="wisdom"), "unknown criterion 'wisdom'"),
        (lambda m, t: cp.plan(m, keep_types=True, threads=-1), "`threads` -1 is less than 1"),
        (lambda m, t: cp.plan("nowhere.gguf", keep_types=True), "nowhere.gguf does not exist"),
        (lambda m, t: cp.compress(m, cp.plan(m, keep_types=True), t / "x", format="zip"), "`format` 'zip' is neither"),
        (lambda m, t: cp.compress(m, cp.plan(m, keep_types=True), t / "x", precision="plan"), "`precision` is for"),
        (lambda m, t: cp.calibrate(m, texts=[]), "`texts` is empty"),
        (lambda m, t: cp.calibrate(m, texts=t / "none.txt"), r"cannot read the text .*none\.txt: No such file"),
        (lambda m, t: cp.evaluate(m, against=m, texts=__file__, ctx=5), "`ctx` 5 is less than 16"),
        (lambda m, t: cp.evaluate(m, against=m, texts=__file__, chunks=0), "`chunks` 0 is less than 1"),
        (lambda m, t: cp.evaluate(m, against="none.npy", texts=__file__), r"the reference none\.npy does not exist"),
        (lambda m, t: cp.reference(m, t / "x.bin", texts=__file__), r"x\.bin does not end in \.npy"),
        (lambda m, t: cp.evaluate_tasks(m, " , "), "`tasks` is empty"),
        (lambda m, t: cp.run(m, "a", max_tokens=0), "`max_tokens` 0 is less than 1"),
        (lambda m, t: cp.run(m, "a", engine="steam"), "unknown engine 'steam'"),
        (lambda m, t: cp.write_report(cp.report(cp.plan(m, keep_types=True)), t / "no" / "x.html"), "make the folder"),
        (lambda m, t: cp.write_report(cp.report(cp.plan(m, keep_types=True)), plots=m), "`plots` .* is a file"),
    ],
)
def test_mistakes_name_the_parameter(
    call: Callable[[Path, Path], object], says: str, qwen3moe: Path, tmp_path: Path
) -> None:
    with pytest.raises(cp.CollabError, match=says) as caught:
        call(qwen3moe, tmp_path)
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
