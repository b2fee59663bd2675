"""A file that is larger than memory: its weights stay where they are mapped, though llama.cpp would repack them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from collab_llamacpp.native import model as native
from collab_llamacpp.native.model import LoadedModel
from collab_llamacpp.native.page_hints import PageHints
from gguf import LlamaFileType
from small_models.llama_cpp_calls import llama_quantize
from small_models.tiny_moe import tokens_of

from collab_plugin.checkpoint.gguf import open_gguf
from collab_plugin.compression.as_gguf import as_gguf
from collab_plugin.plugins.open_checkpoint import open_checkpoint

MAPS = Path("/proc/self/maps")
MODEL = Path(__file__).parents[1] / "models" / "tiny-qwen3moe"


@pytest.fixture(scope="module")
def q4_0(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a type that llama.cpp repacks on nearly every processor."""
    out = tmp_path_factory.mktemp("repacked") / "q4_0.gguf"
    original = as_gguf(open_checkpoint(MODEL), 1)
    llama_quantize(original, out, "Q4_0", LlamaFileType.MOSTLY_Q4_0, open_gguf(original), None)
    return out


def run(model: Path) -> tuple[np.ndarray, float]:
    """Logits, and the share of the experts' tensors that lies in the mapping of the file."""
    hints = PageHints()
    with LoadedModel(model, ctx=64, threads=1, callback=hints.callback) as session:
        for at, token in enumerate(tokens_of("weights stay")):
            session.decode([int(token)], 0, at)
        logits = session.logits(1).copy()
        addresses = [address for layer in hints._experts.values() for address in layer]
        mapped = [in_file(address, model) for address in addresses]
    hints.finish()
    return logits, float(np.mean(mapped))


def in_file(address: int, file: Path) -> bool:
    for line in MAPS.read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= address < end:
            return line.endswith(str(file))
    return False


@pytest.mark.skipif(not MAPS.exists(), reason="not run: this system does not tell what is mapped")
def test_weights_stay_in_the_file_where_memory_does_not_hold_it(q4_0: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here, repacked = run(q4_0)
    if repacked == 1:
        pytest.skip("not run: llama.cpp repacks nothing on this processor")
    monkeypatch.setattr(native, "usable_memory", lambda: q4_0.stat().st_size - 1)
    larger, mapped = run(q4_0)
    assert mapped == 1
    assert np.abs(larger - here).max() < 0.1 * np.abs(here).max(), "the same weights, other kernels"


def test_what_does_not_exist_is_no_larger_than_memory(tmp_path: Path) -> None:
    assert not native.larger_than_memory(tmp_path / "none.gguf")
