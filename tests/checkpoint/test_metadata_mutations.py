"""Metadata of another type or value than expected: `inspect` shows the model or says one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from gguf import GGMLQuantizationType, GGUFValueType
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collab_plugin.cli.main import main
from collab_plugin.formats.gguf_layout import TensorSpec, layout
from collab_plugin.formats.gguf_values import MetaValue

V = GGUFValueType
KEYS = {
    "general.architecture": MetaValue("deepseek2", V.STRING),
    "general.name": MetaValue("tiny", V.STRING),
    "deepseek2.block_count": MetaValue(1, V.UINT32),
    "deepseek2.embedding_length": MetaValue(8, V.UINT32),
    "deepseek2.context_length": MetaValue(64, V.UINT32),
    "deepseek2.expert_count": MetaValue(4, V.UINT32),
    "deepseek2.expert_used_count": MetaValue(2, V.UINT32),
    "deepseek2.expert_shared_count": MetaValue(1, V.UINT32),
    "deepseek2.expert_group_count": MetaValue(2, V.UINT32),
    "deepseek2.expert_group_used_count": MetaValue(1, V.UINT32),
    "deepseek2.expert_gating_func": MetaValue(2, V.UINT32),
    "deepseek2.expert_weights_norm": MetaValue(True, V.BOOL),
    "deepseek2.expert_weights_scale": MetaValue(2.5, V.FLOAT32),
}
TENSORS = [
    TensorSpec("blk.0.ffn_up_exps.weight", (4, 2, 8), GGMLQuantizationType.F32),
    TensorSpec("blk.0.ffn_gate_inp.weight", (4, 8), GGMLQuantizationType.F32),
]


def _inspect(path: Path, keys: dict[str, MetaValue]) -> int:
    plan = layout(keys, TENSORS)
    path.write_bytes(plan.header + bytes(plan.total - len(plan.header)))
    result = CliRunner().invoke(main, ["inspect", str(path), "--json"])
    if result.exit_code == 0:
        return 0
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    return 2


def test_unchanged(tmp_path: Path) -> None:
    assert _inspect(tmp_path / "model.gguf", KEYS) == 0


VALUES = (
    st.integers(0, 2**32 - 1).map(lambda v: MetaValue(v, V.UINT32))
    | st.integers(-(2**63), 2**63 - 1).map(lambda v: MetaValue(v, V.INT64))
    | st.booleans().map(lambda v: MetaValue(v, V.BOOL))
    | st.floats().map(lambda v: MetaValue(v, V.FLOAT64))
    | st.text(max_size=3).map(lambda v: MetaValue(v, V.STRING))
    | st.lists(st.integers(0, 4), max_size=3).map(lambda v: MetaValue(v, V.ARRAY, V.INT32))
    | st.lists(st.text(max_size=2), max_size=2).map(lambda v: MetaValue(v, V.ARRAY, V.STRING))
)


@pytest.mark.parametrize("key", KEYS)
@settings(max_examples=25, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=VALUES)
def test_any_value(key: str, value: Any, tmp_path: Path) -> None:
    _inspect(tmp_path / "model.gguf", {**KEYS, key: value})


@pytest.mark.parametrize("key", KEYS)
def test_missing(key: str, tmp_path: Path) -> None:
    _inspect(tmp_path / "model.gguf", {k: v for k, v in KEYS.items() if k != key})
