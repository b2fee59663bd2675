"""``GET /collab/stats``: what live traffic routed, while the server goes on.

vLLM loads it when asked to: ``VLLM_PLUGINS=collab vllm serve ...``.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Any

from fastapi import FastAPI, HTTPException, Request, Response
from vllm.engine.protocol import EngineClient

from collab_plugin.stats.stats import Stats
from collab_plugin.stats.stats_file import write_stats
from collab_vllm.live_stats.original_model import OriginalModel, original_of
from collab_vllm.live_stats.routed_stats import merged, original_numbers, stats_of
from collab_vllm.selection.loader_options import LOAD_FORMAT

PATH = "/collab/stats"


class StatsEndpoint:
    """See the module's docstring; the methods are vLLM's protocol for plugins with routes."""

    name = "collab"
    required_tasks = ("generate",)
    _client: EngineClient | None
    _original: OriginalModel | None

    def attach_router(self, app: FastAPI) -> None:
        app.get(PATH)(self.as_json)
        app.get(f"{PATH}.gguf")(self.as_file)

    async def init_state(self, engine_client: EngineClient | None, state: Any, args: Namespace) -> None:
        self._client, self._original = engine_client, None

    async def as_json(self, request: Request) -> dict[str, Any]:
        """Tokens, selections and sums of router weights by layer and expert."""
        stats = await self._stats()
        return {
            "engine": stats.engine,
            "model_id": stats.model_id,
            "tokens": stats.tokens,
            "layers": {
                str(layer): {
                    "tokens": one.tokens,
                    "count": one.count.tolist(),
                    "weight_sum": [] if one.weight_sum is None else one.weight_sum.tolist(),
                }
                for layer, one in sorted(stats.routing.items())
            },
        }

    async def as_file(self, request: Request) -> Response:
        """The same as the stats file that `plan` takes."""
        stats = await self._stats()
        with tempfile.TemporaryDirectory(prefix="collab-") as folder:
            path = Path(folder) / "stats.gguf"
            write_stats(path, stats)
            content = path.read_bytes()
        name = {"Content-Disposition": 'attachment; filename="stats.gguf"'}
        return Response(content, media_type="application/octet-stream", headers=name)

    async def _stats(self) -> Stats:
        client = self._client
        if client is None or client.vllm_config.load_config.load_format != LOAD_FORMAT:
            raise HTTPException(404, "this server was not started with --load-format collab")
        config = client.vllm_config
        if not config.load_config.model_loader_extra_config.get("stats"):
            raise HTTPException(404, 'start the server with "stats": true in --model-loader-extra-config')
        routing = merged(await client.collective_rpc("collab_routing"))
        if self._original is None:
            self._original = original_of(config)
        original = self._original
        return stats_of(original_numbers(routing, original.kept, original.experts), original.model_id)
