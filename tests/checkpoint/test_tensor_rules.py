"""What rules make of stored tensors, on values that tell where they come from."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from small_models.held_bytes import held

from collab_plugin import TensorRule, fused_experts, rotary_pairs, vector
from collab_plugin.checkpoint.families.tensors import Take, ordered, squeezed
from collab_plugin.checkpoint.storage.stored_matrix import Plain
from collab_plugin.checkpoint.tensor_sources import TensorSource
from collab_plugin.errors import CollabError

F32 = NDArray[np.float32]
SIZES = {"heads": 2, "head": 6, "hidden": 4, "experts": 3}


def source(values: F32, take: Take) -> TensorSource:
    stored = held("tensor", "F32", values.shape, np.frombuffer(values.astype("<f4").tobytes(), np.uint8))
    return take([Plain(stored)], False, SIZES)


def numbered(*shape: int) -> F32:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


STORED = numbered(3, 8, 5)  # three experts, gate and up of four rows each, or two times two
FUSED: dict[str, tuple[Take, Callable[[F32], F32]]] = {
    "whole": (fused_experts(), lambda v: v),
    "gate": (fused_experts(0, 2), lambda v: v[:, :4]),
    "up": (fused_experts(1, 2), lambda v: v[:, 4:]),
    "gate in turn": (fused_experts(0, 2, interleaved=True), lambda v: v[:, 0::2]),
    "up in turn": (fused_experts(1, 2, interleaved=True), lambda v: v[:, 1::2]),
    "whole transposed": (fused_experts(transposed=True), lambda v: v.swapaxes(1, 2)),
}


@pytest.mark.parametrize("case", FUSED)
def test_fused_experts(case: str) -> None:
    take, expected = FUSED[case]
    made, wanted = source(STORED, take), expected(STORED)
    assert made.shape == wanted.shape
    np.testing.assert_array_equal(made.values(None, None), wanted)
    np.testing.assert_array_equal(made.values(2, None), wanted[2])
    np.testing.assert_array_equal(made.values(1, slice(1, 3)), wanted[1, 1:3])


def test_fused_gate_and_up_transposed() -> None:
    """[experts, in, 2 x out], as Llama-4 stores them."""
    stored = numbered(3, 5, 8)
    for part, columns in ((0, slice(0, 4)), (1, slice(4, 8))):
        made = source(stored, fused_experts(part, 2, transposed=True))
        np.testing.assert_array_equal(made.values(None, None), stored[:, :, columns].swapaxes(1, 2))


def test_fused_biases() -> None:
    """[experts, 2 x out], gate and up in turn, as gpt-oss stores them."""
    stored = numbered(3, 8)
    made = source(stored, fused_experts(1, 2, interleaved=True))
    np.testing.assert_array_equal(made.values(None, None), stored[:, 1::2])
    np.testing.assert_array_equal(made.values(None, slice(1, 3)), stored[1:3, 1::2])
    np.testing.assert_array_equal(made.values(2, None), stored[2, 1::2])


def test_rows_and_columns_in_another_order() -> None:
    stored = numbered(6, 1, 4)
    rows, columns = np.array([4, 0, 5]), np.array([1, 3])
    made = source(stored, ordered(lambda sizes: rows, lambda sizes: columns, np.negative))
    np.testing.assert_array_equal(made.values(None, None), -stored[rows, 0][:, columns])
    np.testing.assert_array_equal(made.values(None, slice(1, 3)), -stored[rows[1:3], 0][:, columns])
    squeezed_source = source(stored, squeezed)
    assert squeezed_source.shape == (6, 4)
    np.testing.assert_array_equal(squeezed_source.values(None, slice(2, 4)), stored[2:4, 0])
    vector_of_two = source(numbered(2), ordered(lambda sizes: np.array([1, 0])))
    np.testing.assert_array_equal(vector_of_two.values(None, None), [1, 0])


def test_fused_rows_that_do_not_divide() -> None:
    with pytest.raises(CollabError, match="8 rows an expert, which 3 parts do not divide"):
        source(STORED, fused_experts(0, 3))


def test_halves_of_a_head_become_pairs() -> None:
    stored = numbered(12, 4)
    made = source(stored, rotary_pairs("heads"))
    order = [0, 3, 1, 4, 2, 5, 6, 9, 7, 10, 8, 11]
    np.testing.assert_array_equal(made.values(None, None), stored[order])
    for rows in (slice(0, 2), slice(5, 8), slice(7, 12), slice(3, 4)):
        np.testing.assert_array_equal(made.values(None, rows), stored[order][rows])
    with pytest.raises(CollabError, match="9 rows, which 2 heads do not divide into pairs"):
        source(numbered(9, 4), rotary_pairs("heads"))


def test_matrix_of_one_row_becomes_a_vector() -> None:
    made = source(numbered(1, 4), vector)
    assert made.shape == (4,)
    np.testing.assert_array_equal(made.values(None, None), numbered(1, 4)[0])


def test_names_and_shapes_of_a_rule() -> None:
    rule = TensorRule("m.{layer}.e.{expert}.w", "blk.{layer}.w", "heads*head 2*hidden")
    assert list(rule.names(5, 2)) == ["m.5.e.0.w", "m.5.e.1.w"]
    assert rule.wanted(SIZES) == (12, 8)
    assert list(TensorRule("m.{layer}.w", "blk.{layer}.w", "hidden").names(5, 2)) == ["m.5.w"]
