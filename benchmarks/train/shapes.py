"""The models that are trained here, by the name of the folder that each is kept in."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """Sizes of a model; ``family`` is "qwen3", "qwen2", "olmoe", "mixtral" or "deepseek"; ``window``: tokens it is
    trained on at once, ``positions``: what its config.json allows."""

    family: str
    vocabulary: int = 3072
    width: int = 256
    window: int = 512
    positions: int = 2048
    layers: int = 3
    dense: int = 0
    heads: int = 4
    kv_heads: int = 2
    head: int = 64
    rope: int = 32
    experts: int = 32
    used: int = 4
    groups: int = 1
    groups_used: int = 1
    expert_width: int = 256
    dense_width: int = 512
    shared_width: int = 0
    scale: float = 1.0
    theta: float = 10000.0

    @property
    def bos(self) -> int | None:
        """The token that every window begins with."""
        return self.vocabulary - 4 if self.family == "deepseek" else None

    @property
    def renormalises(self) -> bool:
        """Whether router weights are divided by their sum over the chosen experts."""
        return self.family not in ("qwen2", "olmoe")


# tiny-qwen3moe-seed1 is another seed of the first.
SHAPES = {
    "tiny-qwen3moe": Shape("qwen3"),
    "tiny-deepseek-v3": Shape("deepseek", layers=4, dense=1, groups=4, groups_used=2, shared_width=256, scale=2.0),
    "deep-qwen3moe": Shape("qwen3", window=256, positions=256, layers=8, experts=64, used=4),
    "skewed-qwen2moe": Shape("qwen2", layers=4, kv_heads=4, window=192, positions=192, shared_width=512),
    "unseen-deepseek-v3": Shape(
        "deepseek", layers=4, dense=1, groups=4, groups_used=2, shared_width=256, scale=2.5, window=192, positions=192
    ),
    "unseen-olmoe": Shape("olmoe", layers=3, kv_heads=4, experts=64, used=8, window=256, positions=256),
    "unseen-deep-olmoe": Shape(
        "olmoe", vocabulary=2048, layers=8, kv_heads=4, experts=64, used=8, window=256, positions=256
    ),
    "unseen-mixtral": Shape("mixtral", layers=4, experts=8, used=2, expert_width=512, window=384, positions=384),
}
