"""Small stats, and stats with a key as a broken tool might write it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from gguf import GGUFValueType

from collab_plugin.stats.stats import ImatrixEntry, InputRounding, LayerRouting, Stats, Stream
from collab_plugin.stats.stats_file import write_stats

LAYERS = (1, 2)
EXPERTS = 8


def small_stats(seed: int = 0) -> Stats:
    rng = np.random.default_rng(seed)
    imatrix = {}
    routing = {}
    for layer in LAYERS:
        count = rng.integers(0, 10_000, EXPERTS)
        count[3] = 0
        routing[layer] = LayerRouting(
            int(count.sum()) // 2, count, rng.gamma(2, 100, EXPERTS) * (count > 0), rng.gamma(2, 1e5, EXPERTS)
        )
        for part in ("gate", "up", "down"):
            sums = (rng.gamma(1, 1, (EXPERTS, 64)) * count[:, None]).astype(np.float32)
            imatrix[f"blk.{layer}.ffn_{part}_exps.weight"] = ImatrixEntry(sums, count.astype(np.float32))
        for name, width in (("attn_q", 64), ("attn_k_b", 4 * 32)):  # MLA's 3-D tensor has a vector a head
            entry = ImatrixEntry(rng.gamma(1, 1, (1, width)).astype(np.float32), np.full(1, 512, np.float32))
            imatrix[f"blk.{layer}.{name}.weight"] = entry
    return Stats(
        routing=routing,
        imatrix=imatrix,
        tokens=20_480,
        chunk_size=512,
        datasets=("a.txt", "ü b.txt"),
        model_id="sha256:" + "ab" * 32,
        engine="llama-cpp-python 0.3.36",
        text_sketch=np.sort(rng.integers(0, 2**64, 256, dtype=np.uint64)),
        streams={layer: Stream(40.25 + layer, 1e5 + layer) for layer in (0, *LAYERS)},  # a dense layer has one, too
        shared_gates={2: 0.1},
        rounding={name: InputRounding(2**-11, 2**-13 if "k_b" in name else 0.0) for name in imatrix},
    )


def with_key(path: Path, key: str, value: object, kind: GGUFValueType) -> Path:
    """Our stats with one key of another value and type, as a broken tool might write it."""
    from collab_plugin.checkpoint.gguf import open_shard
    from collab_plugin.formats.gguf_layout import TensorSpec, layout
    from collab_plugin.formats.gguf_values import MetaValue

    write_stats(path, small_stats())
    header, file = open_shard(path)
    data = file.read(0, file.size)
    sub = GGUFValueType.STRING if kind == GGUFValueType.ARRAY else None
    meta = {**header.metadata, key: MetaValue(value, kind, sub)}
    plan = layout(meta, [TensorSpec(t.name, t.shape, t.type) for t in header.tensors.values()])
    out = bytearray(plan.total)
    out[: len(plan.header)] = plan.header
    for name, t in header.tensors.items():
        out[plan.offsets[name] : plan.offsets[name] + t.nbytes] = data[t.offset : t.offset + t.nbytes].tobytes()
    path.write_bytes(out)
    return path
