"""Kernels level: single products on the device against the float64 product of the dequantized weights.

For every type that the backend claims: matrix-vector, matrix-matrix, and the expert-indexed mul_mat_id, whose
figures are NMSE, and "scale": how far from 1 the factor is that fits all three products best to the expected
ones. Rounding averages out of that factor, so that a scale off by a percent shows where the NMSE hides it.

The short form takes one type of each family (`SHORT`) and fewer rows.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np

from collab_conformance.levels.operands import Operands, operands
from collab_conformance.levels.planned import Planned
from collab_conformance.measures import nmse
from collab_conformance.run.job import Job
from collab_plugin.engines.target import F32, KernelBench

SHORT = ("Q4_K", "Q8_0", "IQ2_XXS", "IQ3_S", "F16")


def checks(bench: KernelBench, job: Job) -> list[Planned]:
    """Four checks a type."""
    return [
        check for name in bench.types() if not job.short or name in SHORT for check in _of_type(bench, name, job)
    ]  # fmt: skip


def _of_type(bench: KernelBench, type_name: str, job: Job) -> list[Planned]:
    @cache
    def data() -> Operands:
        return operands(type_name, job.seed, Path(job.scratch), short=job.short)

    @cache
    def found(product: str) -> F32:
        return PRODUCTS[product](bench, type_name, data())

    def error(product: str) -> float:
        result, expected = found(product), data().expected[product]
        return nmse(expected, _shaped(result, expected.shape))

    def scale() -> float:
        pairs = [(data().expected[p].ravel(), _shaped(found(p), data().expected[p].shape).ravel()) for p in PRODUCTS]
        expected, result = (np.concatenate(side).astype(np.float64) for side in zip(*pairs, strict=True))
        return abs(float(expected @ result) / float(expected @ expected) - 1.0)

    by_product = [
        Planned("kernels", f"kernels.{product}.{type_name}", "", partial(error, product)) for product in PRODUCTS
    ]
    return [*by_product, Planned("kernels", f"kernels.scale.{type_name}", "", scale)]


def _shaped(result: F32, shape: tuple[int, ...]) -> F32:
    if result.shape != shape:
        raise ValueError(f"the engine gave a product of shape {result.shape}, not {shape}")
    return result


def _vector(bench: KernelBench, type_name: str, data: Operands) -> F32:
    return bench.mul_mat(type_name, data.weights[0], data.x[:1])


def _matrix(bench: KernelBench, type_name: str, data: Operands) -> F32:
    return bench.mul_mat(type_name, data.weights[0], data.x)


def _experts(bench: KernelBench, type_name: str, data: Operands) -> F32:
    return bench.mul_mat_id(type_name, data.weights, data.x, data.ids)


PRODUCTS: dict[str, Callable[[KernelBench, str, Operands], F32]] = {
    "mul_mat_vec": _vector,
    "mul_mat": _matrix,
    "mul_mat_id": _experts,
}
