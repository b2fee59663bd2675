"""The measured error of a type, against numpy and gguf-py's own dequantization."""

from __future__ import annotations

import numpy as np
import pytest
from collab_llamacpp.kernels import GgmlKernels
from gguf import GGMLQuantizationType, quants
from model_bench import Bench
from numpy.typing import NDArray

from collab_plugin.checkpoint.base import Checkpoint
from collab_plugin.quant.cost import harm
from collab_plugin.quant.error import Sample, Sampling, measure_errors, relative_error, sample_rows

EXPERT = "blk.1.ffn_down_exps.weight"
DENSE = "blk.1.attn_output.weight"


def _quiet(done: float, total: float | None = None) -> None: ...


class Watched(Checkpoint):
    """A checkpoint that records which (tensor, expert, rows) were read."""

    def __init__(self, inner: Checkpoint) -> None:
        self.inner = inner
        self.path, self.format, self.notes = inner.path, inner.format, inner.notes
        self.metadata, self.tensors = inner.metadata, inner.tensors
        self.reads: list[tuple[str, int | None, int]] = []

    def read(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> NDArray[np.float32]:
        values = self.inner.read(name, expert=expert, rows=rows)
        self.reads.append((name, expert, len(values)))
        return values

    def read_raw(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> NDArray[np.uint8]:
        return self.inner.read_raw(name, expert=expert, rows=rows)


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0"])
@pytest.mark.parametrize("name", [EXPERT, DENSE])
def test_formula(kind: str, name: str, softmax: Bench) -> None:
    """Σ w (x − q(x))² / Σ w x², w the mean squared activation of each column."""
    checkpoint, stats, kernels = softmax.checkpoint, softmax.source.stats, softmax.kernels
    info = checkpoint.tensors[name]
    lost = total = 0.0
    samples = []
    for expert in (3, 11) if len(info.shape) == 3 else (None,):
        x = checkpoint.read(name, expert=expert)[:32]
        samples.append(Sample(expert, x))
        entry = stats.imatrix[name]
        row = expert if expert is not None else 0
        w = (entry.sum2[row] / entry.count[row]).astype(np.float64)
        back = quants.dequantize(kernels.quantize(x, kind, w.astype(np.float32)), GGMLQuantizationType[kind])
        lost += float((w * (x - back).astype(np.float64) ** 2).sum())
        total += float((w * x.astype(np.float64) ** 2).sum())
    assert relative_error(samples, info, kind, stats, kernels) == pytest.approx(lost / total, rel=1e-5)


def test_without_statistics_all_columns_count_alike(softmax: Bench) -> None:
    info = softmax.checkpoint.tensors[DENSE]
    x = softmax.checkpoint.read(DENSE)[:16]
    back = quants.dequantize(softmax.kernels.quantize(x, "Q4_K"), GGMLQuantizationType.Q4_K)
    expected = ((x - back) ** 2).sum() / (x**2).sum()
    assert relative_error([Sample(None, x)], info, "Q4_K", None, softmax.kernels) == pytest.approx(expected, rel=1e-5)


def test_what_is_copied_has_no_error(softmax: Bench) -> None:
    info = softmax.checkpoint.tensors[DENSE]
    sample = [Sample(None, softmax.checkpoint.read(DENSE)[:4])]
    for kind in (info.type.name, "F32"):
        assert relative_error(sample, info, kind, softmax.source.stats, softmax.kernels) == 0


def test_zeros_have_no_error(softmax: Bench) -> None:
    info = softmax.checkpoint.tensors[DENSE]
    zeros = [Sample(None, np.zeros((4, 256), np.float32))]
    assert relative_error(zeros, info, "Q4_K", softmax.source.stats, softmax.kernels) == 0


def test_error_does_not_depend_on_the_scale(softmax: Bench) -> None:
    info, x = softmax.checkpoint.tensors[DENSE], softmax.checkpoint.read(DENSE)[:16]
    small, large = (
        relative_error([Sample(None, (x * factor).astype(np.float32))], info, "Q8_0", None, softmax.kernels)
        for factor in (1, 4)
    )
    assert large == pytest.approx(small, rel=0.01)


# -- sampling


def test_only_kept_experts_are_read(softmax: Bench) -> None:
    watched = Watched(softmax.checkpoint)
    kept = (1, 2, 5, 6, 7, 8, 9, 12, 13, 15)
    sampling = Sampling(values=2**14, per_tensor=2**13, slices=4)
    measure_errors(watched, {EXPERT: ("Q8_0",)}, {1: kept}, None, softmax.kernels, 1, _quiet, sampling)
    experts = {expert for _, expert, _ in watched.reads}
    assert experts == {1, 6, 9, 15}  # evenly spaced among the kept
    assert sum(rows for *_, rows in watched.reads) * 256 <= 2**13


@pytest.mark.parametrize("values", [256, 1000, 4096, 2**16, 2**30])
def test_sample_sizes(values: int, softmax: Bench) -> None:
    for name in (EXPERT, DENSE):
        info = softmax.checkpoint.tensors[name]
        samples = sample_rows(softmax.checkpoint, info, None, values, 8)
        taken = sum(s.rows.size for s in samples)
        smallest = 256 * len(samples)  # a row of each slice at least
        assert min(values, info.n_elements // 2) // 4 <= taken <= max(values, smallest)
        assert all(s.rows.shape[1] == 256 for s in samples)


def test_all_rows_where_there_are_few(softmax: Bench) -> None:
    info = softmax.checkpoint.tensors[DENSE]
    (sample,) = sample_rows(softmax.checkpoint, info, None, 2**20, 8)
    np.testing.assert_array_equal(sample.rows, softmax.checkpoint.read(DENSE))


def test_rows_are_spread(softmax: Bench) -> None:
    """The first and the last rows are in it: layers of a matrix are not alike from top to bottom."""
    info = softmax.checkpoint.tensors[DENSE]
    (sample,) = sample_rows(softmax.checkpoint, info, None, 16 * 256, 8)
    whole = softmax.checkpoint.read(DENSE)
    np.testing.assert_array_equal(sample.rows[:2], whole[:2])
    np.testing.assert_array_equal(sample.rows[-2:], whole[-2:])
    assert len(sample.rows) == 16


def test_threads_change_nothing(grouped: Bench) -> None:
    candidates = {
        n: ("Q4_K", "Q8_0") for n in grouped.checkpoint.tensors if n.startswith("blk.1.ffn") and "weight" in n
    }
    candidates = {n: k for n, k in candidates.items() if "norm" not in n and "inp" not in n}
    small = Sampling(values=2**16, per_tensor=2**13)
    one, three = (
        measure_errors(grouped.checkpoint, candidates, {}, grouped.source.stats, GgmlKernels(), n, _quiet, small)
        for n in (1, 3)
    )
    assert one == three
    assert list(one) == list(candidates)


def test_progress_counts_tensors(softmax: Bench) -> None:
    seen: list[tuple[float, float | None]] = []
    candidates = {DENSE: ("Q8_0",), "output.weight": ("Q8_0",)}
    measure_errors(softmax.checkpoint, candidates, {}, None, softmax.kernels, 1, lambda d, t=None: seen.append((d, t)))
    assert seen == [(1, 2), (2, 2)]


# -- cost


def test_harm_grows_with_the_error(softmax: Bench, grouped: Bench) -> None:
    for info in (*softmax.checkpoint.tensors.values(), *grouped.checkpoint.tensors.values()):
        costs = [harm(info, error) for error in (0, 1e-6, 1e-3, 0.1, 0.9)]
        assert costs[0] == 0
        assert costs == sorted(set(costs))
