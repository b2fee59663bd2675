"""The report as JUnit XML, for CI systems: one test suite a target, one test case a check.

Shape: the common ground of Jenkins' junit-10.xsd and pytest's xunit2: counts are attributes, skipped,
failed and broken cases carry one element with a message. A target that was not run has one skipped case.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from collab_conformance.report.summary import figure_and_limit, shown_verdict
from collab_conformance.report.verify_report import Check, Report, TargetReport
from collab_conformance.report.verify_terminal import device_words
from collab_plugin.reports.number_words import clean


def junit_text(report: Report) -> bytes:
    """The XML document, UTF-8."""
    root = ET.Element("testsuites", name="collab-plugin verify")
    for target in report.targets:
        root.append(_suite(target, report))
    for name in ("tests", "failures", "errors", "skipped"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    root.set("time", f"{sum(target.seconds for target in report.targets):.3f}")
    ET.indent(root)
    data: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return data + b"\n"


def _suite(target: TargetReport, report: Report) -> ET.Element:
    cases = [_case(check, target) for check in target.checks]
    cases += _whole(target)
    suite = ET.Element(
        "testsuite",
        name=clean(target.name),
        tests=str(len(cases)),
        failures=str(sum(case.find("failure") is not None for case in cases)),
        errors=str(sum(case.find("error") is not None for case in cases)),
        skipped=str(sum(case.find("skipped") is not None for case in cases)),
        time=f"{target.seconds:.3f}",
        timestamp=clean(report.created),
        hostname=clean(report.machine),
    )
    properties = ET.SubElement(suite, "properties")
    known = {"verdict": target.verdict, "engine": f"{target.engine} {target.build}".strip()}
    known |= {"device": device_words(target.device)}
    known |= {f"version.{name}": version for name, version in target.versions.items()}
    for name, value in known.items():
        ET.SubElement(properties, "property", name=clean(name), value=clean(value))
    suite.extend(cases)
    return suite


def _case(check: Check, target: TargetReport) -> ET.Element:
    place = ".".join(part for part in (target.name, check.artifact) if part)
    case = ET.Element("testcase", classname=clean(place), name=clean(check.name), time="0")
    shown, text = shown_verdict(check), clean(figure_and_limit(check))
    reason = clean(check.reason)
    if shown == "fail":
        found = ET.SubElement(case, "failure", message=f"{text}{f': {reason}' if reason else ''}", type=check.level)
        found.text = clean(check.limit.source) if check.limit else reason
    elif shown == "xfail":
        expected = clean(check.expected or "")
        ET.SubElement(case, "skipped", message=f"expected failure: {expected} ({text})", type="xfail")
    elif shown != "pass":
        ET.SubElement(case, "skipped", message=reason or shown, type=shown)
    else:
        ET.SubElement(case, "system-out").text = text
    return case


def _whole(target: TargetReport) -> list[ET.Element]:
    """A case for what no check says: that a target was not run, skipped as a whole, or died."""
    broken = target.verdict == "fail" and not any(shown_verdict(check) == "fail" for check in target.checks)
    if target.checks and not broken:
        return []
    case = ET.Element("testcase", classname=clean(target.name), name="target", time=f"{target.seconds:.3f}")
    reason = clean(target.reason) or target.verdict
    if target.verdict == "fail":
        ET.SubElement(case, "error", message=reason, type="target")
    else:
        ET.SubElement(case, "skipped", message=reason, type=target.verdict)
    return [case]
