"""Evaluations and rivals from files, and their mistakes in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from collab_plugin.errors import CollabError
from collab_plugin.reports.measured import Measured, Rival, read_evaluation, read_rivals, spearman

EVALUATION = (
    '{"ppl": 8.5, "ppl_original": 5.25, "mean_kld": 0.5, "mean_kld_stderr": 0.01, "same_top1": 0.75, '
    '"tokens": 1000, "kld_p50": 0.2, "text_overlap": null}'
)


def written(folder: Path, text: str | bytes) -> Path:
    path = folder / "given"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_evaluation(tmp_path: Path) -> None:
    found = read_evaluation(written(tmp_path, EVALUATION))
    assert found == Measured("given", 0.5, 0.01, 8.5, 5.25, 0.75, 1000)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing", "is not JSON"),
        ("[1]", "is no evaluation"),
        (EVALUATION.replace("0.5,", '"half",'), "mean_kld = 'half'"),
        (EVALUATION.replace('"tokens": 1000, ', ""), "tokens = 'None'"),
        (EVALUATION.replace("8.5", "NaN"), "ppl = 'nan'"),
        ("[" * 100_000, "is not JSON"),
        (b"\xff\xfe", "is not UTF-8"),
    ],
)
def test_broken_evaluation(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(CollabError, match=words):
        read_evaluation(written(tmp_path, text))


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(CollabError, match="cannot read the evaluation"):
        read_evaluation(tmp_path / "none.json")
    with pytest.raises(CollabError, match="cannot read the rivals"):
        read_rivals(tmp_path / "none.csv", "m")


def test_rivals_ascend_in_bytes(tmp_path: Path) -> None:
    text = 'rival,bytes,mean_kld\r\nB,"2,000",0.5\r\nA,1000,1.5\r\n'
    assert read_rivals(written(tmp_path, text), "m") == (Rival("A", 1000, 1.5), Rival("B", 2000, 0.5))


def test_rivals_of_this_model_alone(tmp_path: Path) -> None:
    """The CSV that `demo` writes: several models, the name in `variant`."""
    text = "model,variant,bytes,bpw,ppl,mean_kld\nm,ours,1000,2,3,1.5\nother,ours,5000,2,3,0.1\n"
    assert read_rivals(written(tmp_path, text), "m") == (Rival("ours", 1000, 1.5),)
    with pytest.raises(CollabError, match="has no row of 'n'"):
        read_rivals(written(tmp_path, text), "n")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("rival,mean_kld\na,1\n", "no column bytes"),
        ("who,bytes,mean_kld\na,1,1\n", "no column rival"),
        ("", "no column bytes, mean_kld"),
        ("rival,bytes,mean_kld\na,much,1\n", ":2: bytes 'much'"),
        ("rival,bytes,mean_kld\na,1,nan\n", ":2: bytes 1 or mean_kld nan is impossible"),
        ("rival,bytes,mean_kld\na,1\n", "mean_kld None is no number"),
        ("rival,bytes,mean_kld\n", "has no row"),
    ],
)
def test_broken_rivals(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(CollabError, match=words):
        read_rivals(written(tmp_path, text), "m")


def test_rank_correlation() -> None:
    assert spearman([(1, 10), (2, 20), (3, 30)]) == pytest.approx(1)
    assert spearman([(1, 30), (2, 20), (3, 10)]) == pytest.approx(-1)
    assert spearman([(1, 1), (2, 2)]) is None
    assert spearman([(1, 1), (1, 2), (1, 3)]) is None
