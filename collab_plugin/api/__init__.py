"""The verbs of the Python interface, one module each: what the command line calls. Their address is `collab_plugin`.

Everywhere ``model`` is the path of a GGUF file or Hugging Face folder, an address (``hf://organization/name``) as text,
or a `Checkpoint` that `open_checkpoint` gave;
``stats``, a ``plan`` or a ``sensitivity`` are the object or the path of its file. ``engine`` is the name of the engine
that runs models, or the `Engine`. ``threads`` None: all cores; no result depends on it. ``progress`` gets events
(`print` will do). A mistake raises CollabError: one line that names the parameter in backticks. Units: bytes, tokens,
nats. Page: docs/python.md.
"""
