"""JUnit XML: the shape that CI systems read, and counts that add up."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import replace

import pytest
from collab_conformance.report.junit import junit_text
from hand_reports import ABSENT, ALL, DIED, FAILED, GOOD, PASSED, SKIPPED, XFAILED, report

# Of Jenkins' junit-10.xsd: element -> attributes that it must have, and may have, and its children in order.
SHAPE = {
    "testsuites": ({"name", "time", "tests", "failures", "errors", "skipped"}, set(), ("testsuite",)),
    "testsuite": (
        {"name", "tests"},
        {"failures", "errors", "skipped", "time", "timestamp", "hostname", "id", "package"},
        ("properties", "testcase", "system-out", "system-err"),
    ),
    "properties": (set(), set(), ("property",)),
    "property": ({"name", "value"}, set(), ()),
    "testcase": ({"name", "classname"}, {"time", "status"}, ("skipped", "error", "failure", "system-out")),
    "skipped": ({"message"}, {"type"}, ()),
    "error": ({"message", "type"}, set(), ()),
    "failure": ({"message", "type"}, set(), ()),
    "system-out": (set(), set(), ()),
}


def check_shape(element: ET.Element) -> None:
    must, may, children = SHAPE[element.tag]
    assert must <= set(element.attrib) <= must | may, element.tag
    places = [children.index(child.tag) for child in element]
    assert places == sorted(places), f"{element.tag}: {[child.tag for child in element]}"
    for child in element:
        check_shape(child)


def parsed(*targets: object) -> ET.Element:
    root = ET.fromstring(junit_text(report(*targets)))  # type: ignore[arg-type]
    check_shape(root)
    return root


def test_counts_add_up() -> None:
    root = ET.fromstring(junit_text(ALL))
    check_shape(root)
    assert [suite.get("name") for suite in root] == [target.name for target in ALL.targets]
    for parent in (root, *root):
        cases = list(parent.iter("testcase"))
        assert parent.get("tests") == str(len(cases))
        for kind, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert parent.get(kind) == str(sum(case.find(tag) is not None for case in cases)), kind


def test_a_failure_says_figure_limit_and_source() -> None:
    (failure,) = parsed(FAILED).iter("failure")
    assert failure.get("message") == "0.7, at most 0.002: 0.7 is above the limit"
    assert failure.text == "whole toy graphs of llama.cpp's test-backend-ops"


@pytest.mark.parametrize(("target", "message"), [(ABSENT, "no CUDA device"), (SKIPPED, SKIPPED.reason)])
def test_what_was_not_run_is_skipped(target: object, message: str) -> None:
    (suite,) = parsed(target)
    (skipped,) = suite.iter("skipped")
    assert skipped.get("message") == message
    assert (suite.get("tests"), suite.get("skipped")) == ("1", "1")


def test_an_expected_failure_is_skipped_with_its_reason() -> None:
    messages = [element.get("message", "") for element in parsed(XFAILED).iter("skipped")]
    assert any("driver bug 1234" in message for message in messages)
    assert not list(parsed(XFAILED).iter("failure"))


def test_a_target_that_died_is_an_error() -> None:
    (error,) = parsed(DIED).iter("error")
    assert error.get("message") == DIED.reason


def test_texts_of_anyone_make_no_broken_xml() -> None:
    evil = "\x00\x1b[31m<&\"']]>\ud800\ufffe\n"
    check = replace(GOOD[0], name=evil, verdict="fail", reason=evil, value=None, artifact=evil)
    target = replace(PASSED, name=evil, checks=(check,), reason=evil, verdict="fail", versions={evil: evil})
    assert len(list(parsed(target).iter("failure"))) == 1
