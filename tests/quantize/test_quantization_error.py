"""The measured error of a type, against numpy and gguf-py's own dequantization."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from collab_llamacpp.native.ggml_kernels import GgmlKernels
from gguf import GGMLQuantizationType, quants
from numpy.typing import NDArray
from small_models.model_bench import Bench

from collab_plugin.checkpoint.checkpoint import Checkpoint, TensorInfo
from collab_plugin.quantize.error import ErrorTable, Sample, Sampling, relative_error, sample_values
from collab_plugin.stats.importance_matrix import ImportanceMatrix
from collab_plugin.stats.stats import ImatrixEntry

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


class Wide(Watched):
    """A checkpoint with one made-up matrix of 96 long rows; their scale grows slowly to the right and down."""

    NAME = "blk.1.attn_output.weight"

    def __init__(self, inner: Checkpoint, columns: int) -> None:
        super().__init__(inner)
        rng = np.random.default_rng(5)
        down, right = np.linspace(1, 1.5, 96)[:, None], np.linspace(1, 1.5, columns)
        self.values = (rng.standard_normal((96, columns)) * down * right).astype(np.float32)
        info = dataclasses.replace(inner.tensors[self.NAME], shape=self.values.shape)
        self.tensors = {**inner.tensors, self.NAME: info}

    def read(self, name: str, *, expert: int | None = None, rows: slice | None = None) -> NDArray[np.float32]:
        found = self.values[rows or slice(None)]
        self.reads.append((name, expert, len(found)))
        return found


@pytest.mark.parametrize("kind", ["Q4_K", "Q6_K", "Q8_0"])
@pytest.mark.parametrize("name", [EXPERT, DENSE])
@pytest.mark.parametrize("column", [0, 256])
def test_formula(kind: str, name: str, column: int, softmax: Bench) -> None:
    """Σ w (x − q(x))² / Σ w x², w the mean squared activation of each column, also of a window of columns."""
    checkpoint, stats, kernels = softmax.checkpoint, softmax.source.stats, softmax.kernels
    info = checkpoint.tensors[name]
    if column:  # rows of two blocks, of which the second is sampled
        info = dataclasses.replace(info, shape=(*info.shape[:-1], 512))
        entry = stats.imatrix[name]
        doubled = np.concatenate([entry.sum2[:, ::-1], entry.sum2], axis=1)
        stats = dataclasses.replace(stats, imatrix={name: ImatrixEntry(doubled, entry.count)})
    lost = total = 0.0
    samples = []
    for expert in (3, 11) if len(info.shape) == 3 else (None,):
        x = checkpoint.read(name, expert=expert)[:32]
        samples.append(Sample(expert, column, x))
        row = expert if expert is not None else 0
        w = softmax.source.stats.imatrix[name].vector(row, 256).astype(np.float64)
        back = quants.dequantize(kernels.quantize(x, kind, w.astype(np.float32)), GGMLQuantizationType[kind])
        lost += float((w * (x - back).astype(np.float64) ** 2).sum())
        total += float((w * x.astype(np.float64) ** 2).sum())
    assert relative_error(samples, info, kind, ImportanceMatrix.of(stats, 0.0), kernels) == pytest.approx(
        lost / total, rel=1e-5
    )


def test_without_statistics_all_columns_count_alike(softmax: Bench) -> None:
    info = softmax.checkpoint.tensors[DENSE]
    x = softmax.checkpoint.read(DENSE)[:16]
    back = quants.dequantize(softmax.kernels.quantize(x, "Q4_K"), GGMLQuantizationType.Q4_K)
    expected = ((x - back) ** 2).sum() / (x**2).sum()
    found = relative_error([Sample(None, 0, x)], info, "Q4_K", None, softmax.kernels)
    assert found == pytest.approx(expected, rel=1e-5)


def test_what_is_copied_has_no_error(softmax: Bench) -> None:
    info = softmax.checkpoint.tensors[DENSE]
    sample = [Sample(None, 0, softmax.checkpoint.read(DENSE)[:4])]
    for kind in (info.type.name, "F32"):
        assert relative_error(sample, info, kind, ImportanceMatrix.of(softmax.source.stats, 0.0), softmax.kernels) == 0


def test_zeros_have_no_error(softmax: Bench) -> None:
    info = softmax.checkpoint.tensors[DENSE]
    zeros = [Sample(None, 0, np.zeros((4, 256), np.float32))]
    assert relative_error(zeros, info, "Q4_K", ImportanceMatrix.of(softmax.source.stats, 0.0), softmax.kernels) == 0


def test_error_does_not_depend_on_the_scale(softmax: Bench) -> None:
    info, x = softmax.checkpoint.tensors[DENSE], softmax.checkpoint.read(DENSE)[:16]
    small, large = (
        relative_error([Sample(None, 0, (x * factor).astype(np.float32))], info, "Q8_0", None, softmax.kernels)
        for factor in (1, 4)
    )
    assert large == pytest.approx(small, rel=0.01)


# -- sampling


def test_only_kept_experts_are_read(softmax: Bench) -> None:
    watched = Watched(softmax.checkpoint)
    kept = (1, 2, 5, 6, 7, 8, 9, 12, 13, 15)
    sampling = Sampling(values=2**14, per_tensor=2**13, slices=4)
    ErrorTable(watched, {1: kept}, None, softmax.kernels, 1, _quiet, sampling).measure({EXPERT: ("Q8_0",)})
    experts = {expert for _, expert, _ in watched.reads}
    assert experts == {1, 6, 9, 15}  # evenly spaced among the kept
    assert sum(rows for *_, rows in watched.reads) * 256 <= 2**13


@pytest.mark.parametrize("values", [256, 1000, 4096, 2**16, 2**30])
def test_sample_sizes(values: int, softmax: Bench) -> None:
    for name in (EXPERT, DENSE):
        info = softmax.checkpoint.tensors[name]
        samples = sample_values(softmax.checkpoint, info, None, values, 8)
        taken = sum(s.values.size for s in samples)
        smallest = 256 * len(samples)  # a block of each slice at least
        assert min(values, info.n_elements // 2) // 4 <= taken <= max(values, smallest)
        assert all(s.values.shape[1] == 256 and s.column == 0 for s in samples)


def test_all_rows_where_there_are_few(softmax: Bench) -> None:
    info = softmax.checkpoint.tensors[DENSE]
    (sample,) = sample_values(softmax.checkpoint, info, None, 2**20, 8)
    np.testing.assert_array_equal(sample.values, softmax.checkpoint.read(DENSE))


def test_rows_are_spread(softmax: Bench) -> None:
    """The first and the last rows are in it: layers of a matrix are not alike from top to bottom."""
    info = softmax.checkpoint.tensors[DENSE]
    (sample,) = sample_values(softmax.checkpoint, info, None, 16 * 256, 8)
    whole = softmax.checkpoint.read(DENSE)
    np.testing.assert_array_equal(sample.values[:2], whole[:2])
    np.testing.assert_array_equal(sample.values[-2:], whole[-2:])
    assert len(sample.values) == 16


# -- rows too wide for the budget: some of their blocks


@pytest.mark.parametrize(("columns", "values", "width"), [(1024, 1023, 768), (1024, 300, 256), (2048, 1, 256)])
def test_windows_of_columns(columns: int, values: int, width: int, softmax: Bench) -> None:
    wide = Wide(softmax.checkpoint, columns)
    (sample,) = sample_values(wide, wide.tensors[DENSE], None, values, 8)
    assert sample.values.shape == (1, width)
    assert sample.column % 256 == 0
    np.testing.assert_array_equal(sample.values[0], wide.values[0, sample.column : sample.column + width])


def test_windows_are_spread_over_rows_and_columns(softmax: Bench) -> None:
    """Of several experts not the same corner each: weights differ along both axes."""
    info = dataclasses.replace(softmax.checkpoint.tensors[EXPERT], shape=(16, 96, 2048))
    wide = Wide(softmax.checkpoint, 2048)
    samples = sample_values(wide, info, None, 8 * 256, 8)
    columns = [s.column for s in samples]
    assert columns == sorted(columns)
    assert len(set(columns)) >= 6
    assert columns[0] == 0
    assert columns[-1] >= 1024
    assert len({wide.values.tobytes().find(s.values.tobytes()) // (4 * 2048) for s in samples}) == 8  # other rows


def test_rows_that_blocks_do_not_divide_are_taken_whole(softmax: Bench) -> None:
    """Types with blocks of 32 are measured on whole rows there: no window fits all types."""
    wide = Wide(softmax.checkpoint, 608)
    (sample,) = sample_values(wide, wide.tensors[DENSE], None, 300, 8)
    assert sample.values.shape == (1, 608)


@pytest.mark.parametrize("kind", ["Q2_K", "Q4_K", "Q6_K"])
def test_windows_agree_with_all_values(kind: str, softmax: Bench) -> None:
    """Windows of 16 experts' rows, a hundredth of their values, tell the error of all to 5 %."""
    wide = Wide(softmax.checkpoint, 4096)
    info = wide.tensors[DENSE]
    whole = relative_error([Sample(None, 0, wide.values)], info, kind, None, softmax.kernels)
    experts: TensorInfo = dataclasses.replace(info, shape=(16, *info.shape))
    samples = sample_values(wide, experts, None, 16 * 1024, 16)
    assert {s.values.shape for s in samples} == {(1, 1024)}
    sampled = relative_error([dataclasses.replace(s, index=None) for s in samples], info, kind, None, softmax.kernels)
    assert sampled == pytest.approx(whole, rel=0.05)


# -- the table


def test_threads_change_nothing(grouped: Bench) -> None:
    candidates = {
        n: ("Q4_K", "Q8_0") for n in grouped.checkpoint.tensors if n.startswith("blk.1.ffn") and "weight" in n
    }
    candidates = {n: k for n, k in candidates.items() if "norm" not in n and "inp" not in n}
    small = Sampling(values=2**16, per_tensor=2**13)
    one, three = (
        ErrorTable(
            grouped.checkpoint, {}, ImportanceMatrix.of(grouped.source.stats, 0.0), GgmlKernels(), n, _quiet, small
        ).measure(candidates)
        for n in (1, 3)
    )
    assert one == three
    assert {n: set(errors) for n, errors in one.items()} == {n: set(kinds) for n, kinds in candidates.items()}


def test_progress_counts_errors(softmax: Bench) -> None:
    seen: list[tuple[float, float | None]] = []
    table = ErrorTable(softmax.checkpoint, {}, None, softmax.kernels, 1, lambda d, t=None: seen.append((d, t)))
    table.measure({DENSE: ("Q8_0", "Q6_K"), "output.weight": ("Q8_0",)})
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_nothing_is_measured_twice(softmax: Bench) -> None:
    watched = Watched(softmax.checkpoint)
    table = ErrorTable(watched, {}, None, softmax.kernels, 1, _quiet)
    first = table.measure({DENSE: ("Q8_0",)})[DENSE]["Q8_0"]
    reads = len(watched.reads)
    assert table.measure({DENSE: ("Q8_0",)})[DENSE] == {"Q8_0": first}
    assert len(watched.reads) == reads
    more = table.measure({DENSE: ("Q6_K", "Q8_0")})[DENSE]
    assert more["Q8_0"] == first
    assert more["Q6_K"] > first
    assert len(watched.reads) == 2 * reads
