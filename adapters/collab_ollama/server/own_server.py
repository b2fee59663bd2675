"""A server of our own on a free port, with a models folder of its own and one model in it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path

from collab_ollama.create.over_http import create
from collab_ollama.create.store import Store
from collab_ollama.model.default_settings import PLAIN_TEMPLATE, default_parameters
from collab_ollama.model.gguf_for_ollama import open_artifact
from collab_ollama.model.model_name import parse_name
from collab_ollama.model.modelfile import Modelfile
from collab_ollama.ollama_program import find_ollama
from collab_ollama.server.client import Client
from collab_ollama.server.server_process import Server, free_url, serving


@contextmanager
def own_server(folder: Path, variables: Mapping[str, str]) -> Iterator[tuple[Server, Client]]:
    """`ollama serve` with models and log in ``folder``, which is kept. ``variables`` are set for it beside the
    user's; the model stays loaded, and nothing is asked of Ollama's cloud."""
    models, log = folder / "models", folder / "ollama.log"
    models.mkdir(exist_ok=True)
    log.unlink(missing_ok=True)
    ours = {"OLLAMA_NUM_PARALLEL": "1", "OLLAMA_KEEP_ALIVE": "-1", "OLLAMA_NO_CLOUD": "1"}
    url = free_url()
    with serving(find_ollama(), url, models, {**ours, **variables}, log) as server, closing(Client(url)) as client:
        yield server, client


def create_model(artifact: Path, name: str, client: Client, folder: Path) -> None:
    """Create the model ``name`` on the server whose models are in ``folder``, as `collab-plugin ollama create` does
    with its defaults, in the place of one before. Hard-linked where it can be."""
    opened = open_artifact(artifact)
    template = PLAIN_TEMPLATE if opened.chat_template is None else None
    parameters = default_parameters(opened, None, None, {}).parameters
    modelfile = Modelfile(tuple(path.resolve() for path in opened.files), parameters, template)
    create(opened, modelfile, parse_name(name), client, Store(folder / "models"), replace=True)
