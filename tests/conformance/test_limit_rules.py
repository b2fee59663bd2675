"""Limits, skips and expected failures as files, and the verdict on a figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from collab_conformance.judge.limits import LIMITS_FILE, LimitRule, limit_of, read_limits
from collab_conformance.judge.skips import Rule, for_target, read_rules
from collab_conformance.judge.verdicts import judge
from collab_conformance.run.job import MeasuredFigure, named

from collab_plugin.errors import CollabError

ONE = {"check": "logits.nmse", "target": "*", "bound": "at-most", "value": 0.002, "source": "a toy graph"}
RULES = (
    LimitRule("tiny-f32/logits.nmse", "*", "at-most", 1e-8, "measured"),
    LimitRule("logits.nmse", "vulkan:*", "at-most", 1e-3, "half precision"),
    LimitRule("logits.*", "*", "at-least", 0.5, "the rest"),
)


def written(tmp_path: Path, **members: object) -> Path:
    path = tmp_path / "limits.json"
    path.write_text(json.dumps({"format": LIMITS_FILE.name, "version": 1, "limits": [ONE], **members}))
    return path


def test_the_shipped_limits_are_read_and_each_has_a_source() -> None:
    rules = read_limits()
    assert len(rules) > 10
    assert all(len(rule.source) > 10 and "provisional" not in rule.source for rule in rules)


def test_every_check_of_a_run_has_a_limit_or_is_told_not_to_have_one() -> None:
    rules = read_limits()
    for name in ("routing.different", "logits.nmse", "text.broken", "behaviour.batch_64", "kernels.mul_mat_id.IQ2_XXS"):
        assert limit_of(rules, "any:target", "any", name) is not None


def test_limits_are_read(tmp_path: Path) -> None:
    assert read_limits(written(tmp_path)) == (LimitRule(**ONE),)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"format": "collab-plugin plan"}, "is not a limits file"),
        ({"version": 2}, "limits version 2; this collab-plugin reads 1"),
        ({"version": True}, "limits version True"),
        ({"limits": [{**ONE, "bound": "below"}]}, r"\$.limits\[0\].bound is 'below'"),
        ({"limits": [{**ONE, "value": "much"}]}, r"\$.limits\[0\].value is 'much'"),
        ({"limits": [{**ONE, "source": " "}]}, r"\$.limits\[0\].source is empty"),
        ({"limits": [{**ONE, "note": ""}]}, "unknown member 'note'"),
        ({"more": 1}, "unknown member 'more'"),
        ({"limits": [{k: v for k, v in ONE.items() if k != "source"}]}, "no member 'source'"),
    ],
)
def test_a_mistake_in_a_limits_file_is_named(tmp_path: Path, members: dict[str, object], words: str) -> None:
    with pytest.raises(CollabError, match=words):
        read_limits(written(tmp_path, **members))


@pytest.mark.parametrize("text", ["{", "", '{"limits": [' + "[" * 100_000])
def test_what_is_not_json_is_no_limits_file(tmp_path: Path, text: str) -> None:
    (tmp_path / "limits.json").write_text(text)
    with pytest.raises(CollabError, match="is not JSON"):
        read_limits(tmp_path / "limits.json")


def test_a_limit_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path)
    path.write_text(path.read_text().replace("0.002", "NaN"))
    with pytest.raises(CollabError, match="is not finite"):
        read_limits(path)


def test_no_file_is_told(tmp_path: Path) -> None:
    for read in (read_limits, read_rules):
        with pytest.raises(CollabError, match="cannot read"):
            read(tmp_path / "none")


def test_the_first_rule_that_matches_holds() -> None:
    def value(target: str, artifact: str, name: str) -> float | None:
        limit = limit_of(RULES, target, artifact, name)
        return limit.value if limit else None

    assert value("vulkan:0", "tiny-f32", "logits.nmse") == 1e-8
    assert value("vulkan:0", "tiny-q4", "logits.nmse") == 1e-3
    assert value("cpu", "tiny-q4", "logits.nmse") == 0.5
    assert value("cpu", "tiny-q4", "text.broken") is None


def test_globs_mean_the_name_or_the_title() -> None:
    assert named("logits.*", "tiny", "logits.nmse") and named("tiny/logits.*", "tiny", "logits.nmse")
    assert named("kernels.*", "", "kernels.mul_mat.Q4_K")
    assert not named("tiny/*", "big", "logits.nmse") and not named("nmse", "tiny", "logits.nmse")


def measured(value: float | None, reason: str = "", skipped: bool = False) -> MeasuredFigure:
    return MeasuredFigure("logits", "logits.nmse", "tiny-f32", value, reason, skipped)


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        (measured(1e-8), "pass", ""),
        (measured(2e-8), "fail", "2e-08 is above the limit of 1e-08 (measured)"),
        (measured(None, "the engine refused"), "fail", "the engine refused"),
        (measured(None, "no logits", skipped=True), "skipped", "no logits"),
    ],
)
def test_verdicts(found: MeasuredFigure, verdict: str, words: str) -> None:
    check = judge(found, "cpu", RULES, ())
    assert (check.verdict, check.reason) == (verdict, words)


def test_a_lower_bound_is_a_lower_bound() -> None:
    low = MeasuredFigure("logits", "logits.same_top1", "x", 0.4, "", False)
    assert judge(low, "cpu", RULES, ()).reason == "0.4 is below the limit of 0.5 (the rest)"


def test_a_figure_without_a_limit_does_not_pass() -> None:
    check = judge(measured(0.0), "cpu", (), ())
    assert (check.verdict, check.reason, check.value) == ("skipped", "held to no limit", 0.0)


def test_expected_failures() -> None:
    expected = (Rule("*", "tiny-*/logits.*", "bug 7"),)
    failed, passed = judge(measured(1.0), "cpu", RULES, expected), judge(measured(0.0), "cpu", RULES, expected)
    assert (failed.verdict, failed.expected) == ("fail", "bug 7")
    assert (passed.verdict, passed.expected) == ("fail", None) and "bug 7" in passed.reason
    skipped = judge(measured(None, "no logits", skipped=True), "cpu", RULES, expected)
    assert skipped.verdict == "skipped", "what is not offered cannot fail as expected"


def test_rules_are_read(tmp_path: Path) -> None:
    path = tmp_path / "skips"
    path.write_text("# ours\n\nllamacpp:vulkan:* kernels.*.IQ1_M  # mesa#1 # twice\n  *\tlogits.nmse #x\n")
    rules = read_rules(path)
    assert rules == (Rule("llamacpp:vulkan:*", "kernels.*.IQ1_M", "mesa#1 # twice"), Rule("*", "logits.nmse", "x"))
    assert for_target(rules, "llamacpp:cpu") == rules[1:]
    assert for_target(rules, "llamacpp:vulkan:0") == rules


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("llamacpp:* # one glob", ":2: expected TARGET-GLOB CHECK-GLOB"),
        ("a b c # three", ":2: expected TARGET-GLOB CHECK-GLOB"),
        ("a b", ":2: a reason is needed"),
        ("a b #  ", ":2: a reason is needed"),
    ],
)
def test_a_rule_without_globs_or_reason_is_refused(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "skips"
    path.write_text(f"# head\n{line}\n")
    with pytest.raises(CollabError, match=words):
        read_rules(path)
