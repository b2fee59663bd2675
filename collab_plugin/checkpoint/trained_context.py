"""Whether a window is longer than what a model was trained for."""

from __future__ import annotations

from collab_plugin.checkpoint.checkpoint import Checkpoint


def window_note(checkpoint: Checkpoint, ctx: int) -> str | None:
    """A sentence where windows of ``ctx`` tokens are longer than the model's context; None where they are not, or the
    metadata does not say."""
    found = checkpoint.metadata.get(f"{checkpoint.architecture}.context_length")
    trained = found.value if found is not None else None
    if not isinstance(trained, int) or trained < 1 or ctx <= trained:
        return None
    return (
        f"`ctx` {ctx:,} is more than the {trained:,} tokens that {checkpoint.address} was trained for (context_length)"
        ": what it does after them says little of it; take shorter windows"
    )
