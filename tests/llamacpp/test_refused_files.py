"""Files whose header is sound but which llama.cpp refuses or aborts on: one line that says why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from engine_calls import generate
from gguf import GGUFValueType
from small_models.gguf_copies import write_copy

from collab_plugin.cli.main import main
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue


def u32(value: int) -> MetaValue:
    return MetaValue(value, GGUFValueType.UINT32)


Break = Callable[[Path, Path], Path]


def setting(key: str, value: MetaValue | None) -> Break:
    return lambda source, path: write_copy(source, path, keys={key: value})


BROKEN: dict[str, tuple[Break, str]] = {
    "groups do not divide": (setting("deepseek2.expert_group_count", u32(3)), "n_expert_groups == 0"),
    "more groups used": (setting("deepseek2.expert_group_used_count", u32(9)), "n_group_used"),
    "more experts used": (setting("deepseek2.expert_used_count", u32(100)), "n_expert_used"),
    "too many blocks": (setting("deepseek2.block_count", u32(7)), "blk.2.attn_norm.weight"),
    "no heads": (setting("deepseek2.attention.head_count", u32(0)), "error loading model"),
    "no width": (setting("deepseek2.embedding_length", None), "deepseek2.embedding_length"),
    "no router": (
        lambda source, path: write_copy(source, path, without=["blk.1.ffn_gate_inp.weight"]),
        "blk.1.ffn_gate_inp.weight",
    ),
    "unknown pre-tokenizer": (
        setting("tokenizer.ggml.pre", MetaValue("nobody's", GGUFValueType.STRING)),
        "unknown pre-tokenizer type",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_a_file_that_llama_cpp_cannot_take(what: str, grouped: Path, tmp_path: Path) -> None:
    make, says = BROKEN[what]
    path = make(grouped, tmp_path / "broken.gguf")
    with pytest.raises(CollabError) as error:
        generate(path, "the fox", tokens=2)
    message = str(error.value)
    assert message.startswith("llama.cpp")
    assert str(path) in message
    assert says in message
    assert "\n" not in message
    result = CliRunner().invoke(main, ["run", str(path), "-p", "the fox", "-n", "2", "--threads", "1"])
    assert result.exit_code == 2
    assert isinstance(result.exception, SystemExit)
    assert len(result.stderr.splitlines()) == 1, result.stderr
