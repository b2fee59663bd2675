"""Reports written by hand: what a machine with a CPU, a GPU that fails, and absent hardware would report."""

from __future__ import annotations

from dataclasses import replace

from collab_conformance.report.verify_report import (
    ArtifactId,
    Check,
    Fidelity,
    Limit,
    Report,
    TargetReport,
)

from collab_plugin.engines.target import Device

NMSE = Limit("at-most", 2e-3, "whole toy graphs of llama.cpp's test-backend-ops")
MATMUL = Limit("at-most", 5e-4, "mul_mat of llama.cpp's test-backend-ops")
TOP1 = Limit("at-least", 0.95, "twice the distance of CPU and Metal on one file")
KLD = Limit("at-most", 0.01, "twice the divergence of CPU and Metal on one file")
ARTIFACT = ArtifactId(
    "tiny-q4.gguf", "ab" * 32, 12_345_678, "qwen3moe", "sha256:" + "cd" * 32, "ef" * 32, "reference, float64"
)

GOOD = (
    Check("kernels", "kernels.mul_mat.Q4_K", "", "pass", "", 4.1e-5, MATMUL, None),
    Check("kernels", "kernels.mul_mat_id.IQ2_XXS", "", "pass", "", 9.2e-5, MATMUL, None),
    Check("routing", "routing.different", "tiny-q4.gguf", "pass", "", 0.0009, NMSE, None),
    Check("logits", "logits.nmse", "tiny-q4.gguf", "pass", "", 3.3e-5, NMSE, None),
    Check("logits", "logits.mean_kld", "tiny-q4.gguf", "pass", "", 2.5e-4, KLD, None),
    Check("logits", "logits.same_top1", "tiny-q4.gguf", "pass", "", 0.9961, TOP1, None),
    Check("behaviour", "behaviour.kv_q8_0", "tiny-q4.gguf", "skipped", "no such cache", None, None, None),
)
BAD = replace(GOOD[3], verdict="fail", value=0.7, reason="0.7 is above the limit")
EXPECTED = replace(
    GOOD[1], verdict="fail", value=0.02, reason="0.02 is above the limit", expected="driver bug 1234 of the maker"
)


def target(name: str, checks: tuple[Check, ...], verdict: str, reason: str = "", **changes: object) -> TargetReport:
    """A target of llama.cpp on a CPU; ``changes`` are other members."""
    titles = [f"{c.artifact}/{c.name}" if c.artifact else c.name for c in checks]
    whole = TargetReport(
        name=name,
        verdict=verdict,  # type: ignore[arg-type]
        reason=reason,
        engine="llamacpp",
        build="b11434",
        device=Device("Some CPU", "cpu", "", 32 * 10**9, None),
        versions={"llama-cpp-python": "0.3.36"},
        plan_fingerprint={"tiny-q4.gguf": "sha256:" + "cd" * 32} if checks else {},
        figures={t: c.value for t, c in zip(titles, checks, strict=True) if c.value is not None},
        limits={t: c.limit for t, c in zip(titles, checks, strict=True) if c.limit is not None},
        checks=checks,
        seconds=12.5 if checks else 0.0,
    )
    return replace(whole, **changes)  # type: ignore[arg-type]


METAL = Device("Apple M2", "igpu", "Metal 3", 16 * 10**9, True)
PASSED = target("llamacpp:cpu", GOOD, "pass")
FAILED = target("llamacpp:metal:0", (*GOOD[:3], BAD, *GOOD[4:]), "fail", "tiny-q4.gguf/logits.nmse", device=METAL)
XFAILED = target("llamacpp:vulkan:0", (GOOD[0], EXPECTED, *GOOD[2:]), "pass")
DIED = target("llamacpp:sycl:0", GOOD[:2], "fail", "in kernels.mul_mat.Q8_0: ended by SIGABRT")
ABSENT = target("llamacpp:cuda:0", (), "not-run", "no CUDA device", device=None)
SKIPPED = target("ollama", (), "skipped", "left out by the maintainer's file")
FIDELITY = Fidelity("tiny-q4.gguf", 4.61, 0.0312, 0.0008, 0.41, 0.931, 1.0123, 8192, "like Q4_K_M")


def report(*targets: TargetReport, machine: str = "box, Linux-6.1, x86_64", short: bool = False) -> Report:
    return Report(
        machine,
        "2026-11-24T16:00:00+00:00",
        short,
        {"collab-plugin": "0.1.0", "python": "3.11.9", "numpy": "2.3.0"},
        (ARTIFACT,),
        targets,
        (),
    )


ALL = report(PASSED, FAILED, XFAILED, DIED, ABSENT, SKIPPED)
