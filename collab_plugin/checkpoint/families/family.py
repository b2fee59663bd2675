"""A family of models: one object that reading Hugging Face folders, vLLM and the conformance reference share.

How to add one: docs/add-a-family.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from collab_plugin.checkpoint.checkpoint import F32
from collab_plugin.checkpoint.families.config import Config
from collab_plugin.checkpoint.families.gguf_keys import Key
from collab_plugin.checkpoint.families.routers import Router, router_of
from collab_plugin.checkpoint.families.tensors import Sizes, TensorRule
from collab_plugin.errors import CollabError
from collab_plugin.formats.gguf_values import MetaValue


@dataclass(frozen=True)
class Prediction:
    """Layers behind the decoder's that predict further tokens, stored under the next layer numbers.

    ``count``: key of config.json that tells how many there may be. ``marks``: ends of names that such a layer has and
    no other. They are left out of a GGUF with a note.
    """

    count: str
    marks: tuple[str, ...]


@dataclass(frozen=True)
class PassedOver:
    """Stored tensors whose names begin with ``prefix``: ``what`` they are. A GGUF goes without them, with a note.

    ``copied``: a pruned folder has them as they are stored; else it goes without them too.
    """

    prefix: str
    what: str
    copied: bool = False


@dataclass(frozen=True)
class Conversion:
    """How a Hugging Face folder becomes a GGUF.

    ``config_class``: transformers' class, whose ``defaults`` stand for keys that config.json leaves out.
    ``fixed``: keys that change the computation, with the only values that llama.cpp computes with. ``keys`` and
    ``more_keys(config)``: keys of the GGUF, without prefix. ``sizes(config)``: what shapes are told in.
    ``tensors(config)``: rules for every tensor; what no rule names is refused. ``dense(config, layer)``: whether a
    block has no experts. ``renormalises``: the key that says whether router weights are divided by their sum over the
    chosen experts; None where the family always does what its architecture does. ``ignored``: further keys without
    effect on what is computed.

    ``nested``: the key of config.json that may hold the decoder's own keys, as in models that see pictures.
    ``renames``: beginnings of stored names, each with what the rules have in its place. ``passed_over``: tensors that
    are no part of the decoder. ``layer_sets``: further sets of blocks that rules may name. ``constants(config)``:
    tensors of the GGUF that are stored nowhere. ``notes(config)``: what llama.cpp computes a little otherwise.
    ``aliases``: other names of keys of config.json, to those that are asked for here. ``settled(config)``: keys that
    follow from others, or in the form in which they are asked for.
    ``marked_spaces``: the tokenizer is Gemma-4's, which writes spaces as marks.
    ``special_tokens``: GGUF's kind of token ("eot" ends a turn) and its text, where the tokenizer's files tell no kind.
    """

    config_class: str
    defaults: Mapping[str, Any]
    sizes: Callable[[Config], Sizes]
    tensors: Callable[[Config], tuple[TensorRule, ...]]
    keys: tuple[Key, ...] = ()
    more_keys: Callable[[Config], dict[str, MetaValue]] = lambda config: {}
    fixed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    dense: Callable[[Config, int], bool] = lambda config, layer: False
    renormalises: str | None = None
    prediction: Prediction | None = None
    ignored: frozenset[str] = frozenset()
    nested: str | None = None
    renames: tuple[tuple[str, str], ...] = ()
    passed_over: tuple[PassedOver, ...] = ()
    layer_sets: Mapping[str, Callable[[Config, int], bool]] = field(default_factory=dict)
    constants: Callable[[Config], Mapping[str, F32]] = lambda config: {}
    notes: Callable[[Config], Sequence[str]] = lambda config: ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    settled: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda config: {}
    marked_spaces: bool = False
    special_tokens: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Decoder:
    """What the conformance reference computes for a GGUF of the family. Norms, biases, shared experts and their gate
    are used where the file has them.

    ``attention``: "grouped-query"; "latent" (DeepSeek's MLA); "sinks" (gpt-oss: a sink for each head, a window in every
    other layer, biases everywhere, experts with a gating of their own); or "delta-net" (Qwen3-Next: gated delta nets
    with gated attention between them). ``interleaved_rope``: the GGUF's rotary embedding turns neighbouring pairs of
    channels, not halves. ``scaled``: embedding, attention, blocks and logits have a factor each (Granite).
    """

    attention: Literal["grouped-query", "latent", "sinks", "delta-net"] = "grouped-query"
    interleaved_rope: bool = False
    scaled: bool = False


@dataclass(frozen=True)
class Family:
    """``name``: unique. ``classes``: names in config.json's ``architectures``. ``architecture``: the GGUF's.

    ``expert_counts``: keys of config.json that may hold the number of routed experts; the first is the usual one.
    ``blocks``: modules of a decoder layer that hold experts and router. ``router``: tensors of such a module with a row
    for each expert. ``interleaved_rope``: the checkpoint's rotary embedding turns neighbouring pairs, not halves.
    ``conversion``: None where folders are not turned into GGUF; ``decoder``: None where there is no reference.
    ``remark``: for the table of families in docs/checkpoints.md. ``vllm``: whether vLLM's load format `collab` prunes
    it; False where that was not tried.
    """

    name: str
    classes: tuple[str, ...]
    architecture: str
    expert_counts: tuple[str, ...]
    blocks: tuple[str, ...] = ("mlp",)
    router: tuple[str, ...] = ("gate.weight",)
    interleaved_rope: bool = False
    conversion: Conversion | None = None
    decoder: Decoder | None = None
    remark: str = ""
    vllm: bool = True

    @property
    def expert_count(self) -> str:
        """The usual key of the expert count, also an attribute of transformers' configuration objects."""
        return self.expert_counts[0]

    @property
    def routing(self) -> Router:
        """How llama.cpp routes in this architecture."""
        return router_of(self.architecture)

    def counts_in(self, config: Mapping[str, Any]) -> tuple[str, ...]:
        """Keys of config.json that hold the expert count: transformers 5 saves Qwen3-MoE's under another name."""
        return tuple(key for key in self.expert_counts if key in config) or self.expert_counts[:1]


def family_of(classes: object, families: Sequence[Family], model: str, else_say: str) -> Family:
    """The family of a config's ``architectures``; CollabError naming those that are known, and what ``else_say``
    says."""
    names = classes if isinstance(classes, (list, tuple)) else []
    for family in families:
        if set(map(str, names)) & set(family.classes):
            return family
    known = ", ".join(name for family in families for name in family.classes)
    shown = ", ".join(map(str, names)) or str(classes)
    raise CollabError(f"{model} is a {shown[:80]}; {else_say.format(known=known)}")
