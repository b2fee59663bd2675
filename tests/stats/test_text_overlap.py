"""Calibration text that leaked into evaluation text is found; other text is not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from collab_plugin.errors import CollabError
from collab_plugin.stats.text_overlap import SIZE, N, decode_sketch, encode_sketch, ngram_hashes, overlap, sketch

VOCABULARY = 32_000


def _text(seed: int, tokens: int = 20_000) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(0, VOCABULARY, tokens)


def test_identical() -> None:
    assert overlap(sketch(_text(1)), _text(1)) == 1.0


def test_disjoint() -> None:
    assert overlap(sketch(_text(1)), _text(2)) == 0.0


def test_half_shared() -> None:
    calibration = np.concatenate([_text(1), _text(2)])
    evaluation = np.concatenate([_text(3), _text(2)])
    # 256 draws at one half: a standard error of 0.03.
    assert overlap(sketch(calibration), evaluation) == pytest.approx(0.5, abs=0.12)


def test_calibration_text_inside_longer_text() -> None:
    evaluation = np.concatenate([_text(2, 777), _text(1), _text(3, 50_000)])
    assert overlap(sketch(_text(1)), evaluation) == 1.0


def test_a_changed_token_touches_its_neighbourhood_alone() -> None:
    evaluation = _text(1).copy()
    evaluation[::200] += 1  # one token in 200: 12 of 200 n-grams
    assert overlap(sketch(_text(1)), evaluation) == pytest.approx(1 - N / 200, abs=0.06)


def test_order_of_tokens_matters() -> None:
    assert overlap(sketch(_text(1)), _text(1)[::-1]) == 0.0


def test_common_words_are_no_leak() -> None:
    """Text over ten tokens repeats every 4-gram, but hardly a 12-gram."""
    a, b = (np.random.default_rng(seed).integers(0, 10, 20_000) for seed in (1, 2))
    assert overlap(sketch(a), b) == 0.0


def test_repeated_text_counts_once() -> None:
    hashes = ngram_hashes(np.tile(_text(1, 100), 50))
    assert len(hashes) == 100
    assert (np.diff(hashes) > 0).all()


@pytest.mark.parametrize("tokens", [0, 1, N - 1])
def test_text_shorter_than_an_ngram(tokens: int) -> None:
    assert len(ngram_hashes(_text(1, tokens))) == 0
    assert overlap(sketch(_text(1, tokens)), _text(1)) == 0.0
    assert overlap(sketch(_text(1)), _text(1, tokens)) == 0.0


def test_text_of_one_ngram() -> None:
    assert len(ngram_hashes(_text(1, N))) == 1
    assert overlap(sketch(_text(1, N)), _text(1)) == 1.0


def test_the_sketch_is_a_fair_sample() -> None:
    """The smallest hashes come from all over the text, not from a part of it."""
    text = _text(1, 100_000)
    small = set(sketch(text).tolist())
    assert len(small) == SIZE
    quarters = [
        len(small & set(ngram_hashes(text[i : i + 25_000 + N - 1]).tolist())) for i in range(0, 100_000, 25_000)
    ]
    # A quarter of SIZE expected in each, standard deviation 14 at 1024.
    assert all(abs(n - SIZE // 4) <= 60 for n in quarters)
    assert sum(quarters) == SIZE


@given(hnp.arrays(np.uint64, st.integers(1, 256)))
def test_sketch_as_text(values: np.ndarray[tuple[int], np.dtype[np.uint64]]) -> None:
    text = encode_sketch(values)
    assert text.isascii()
    np.testing.assert_array_equal(decode_sketch(text), values)


def test_empty_sketch_as_text() -> None:
    assert encode_sketch(np.empty(0, np.uint64)) == ""
    assert len(decode_sketch("")) == 0


@pytest.mark.parametrize("text", ["AAAA", "not base64!", "AAAAAAAAAA", "ü" * 8])
def test_damaged_sketch(text: str) -> None:
    with pytest.raises(CollabError, match=r"collab\.calibration\.ngrams is damaged"):
        decode_sketch(text)
