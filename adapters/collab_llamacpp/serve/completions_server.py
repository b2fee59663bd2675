"""The served model: `python -m collab_llamacpp.serve.completions_server FOLDER` serves a ServeJob on loopback.

A subset of the completions interface, exact where lm-evaluation-harness needs it: with ``echo`` and
``logprobs`` each prompt token's log-probability stands at that token's own index. (The server of
llama-cpp-python 0.3.36 takes no token ids, and pairs a prompt's tokens with the logits that follow them
when no BOS begins it.) One request at a time.
"""

from __future__ import annotations

import hmac
import math
from pathlib import Path
from typing import Any

import llama_cpp as llama
from aiohttp import web

from collab_llamacpp.calibrate.job_types import ServeJob
from collab_llamacpp.native.model import LoadedModel
from collab_llamacpp.native.sampling import piece
from collab_llamacpp.serve.scorer import Scored, Scorer
from collab_plugin.engines.child_main import Parent, run_child
from collab_plugin.errors import CollabError

_KNOWN = {"model", "prompt", "max_tokens", "temperature", "seed", "stop", "echo", "logprobs"}
# Where the likeliest token is taken, these change nothing.
_SAMPLING = {"top_p", "top_k", "min_p"}
MOST_BYTES = 64 << 20


class Completions:
    """Answers requests from one model."""

    def __init__(self, session: LoadedModel, ctx: int) -> None:
        self.session = session
        self.scorer = Scorer(session, ctx)
        self.bos = int(llama.llama_vocab_bos(session.vocab))
        self.adds_bos = bool(llama.llama_vocab_get_add_bos(session.vocab))

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer one request body; CollabError for what is asked wrongly or not known here."""
        known = _KNOWN if request.get("temperature") else _KNOWN | _SAMPLING
        unknown = sorted(set(request) - known)
        if unknown:
            raise CollabError(f"{', '.join(unknown)} not supported by this server")
        choices = [self._choice(i, p, request) for i, p in enumerate(self._prompts(request.get("prompt")))]
        return {"object": "text_completion", "model": str(request.get("model", "")), "choices": choices}

    def _prompts(self, prompt: Any) -> list[list[int]]:
        if isinstance(prompt, str):
            prompt = [prompt]
        if not isinstance(prompt, list) or not prompt:
            raise CollabError("prompt must be text, token ids, or a list of either")
        if all(isinstance(token, int) for token in prompt):
            prompt = [prompt]
        return [self.tokens(p) for p in prompt]

    def tokens(self, prompt: Any) -> list[int]:
        if isinstance(prompt, str):
            return [int(token) for token in self.session.tokenize(prompt, special=True, add=False)]
        ok = isinstance(prompt, list) and all(isinstance(t, int) and 0 <= t < self.session.n_vocab for t in prompt)
        if not ok:
            raise CollabError(f"token ids must be integers from 0 to {self.session.n_vocab - 1}")
        return list(prompt)

    def _choice(self, index: int, tokens: list[int], request: dict[str, Any]) -> dict[str, Any]:
        echo, wanted = bool(request.get("echo")), request.get("logprobs")
        # A BOS that the vocabulary asks for is given to the model and not told: indices are the prompt's.
        hidden = int(self.adds_bos and tokens[:1] != [self.bos])
        whole = [self.bos] * hidden + tokens
        if not echo:
            if wanted is not None:
                raise CollabError("logprobs without echo is not supported by this server")
            text, reason = self._generate(whole, request)
            return {"index": index, "text": text, "finish_reason": reason, "logprobs": None}
        if wanted not in (None, 1) or request.get("max_tokens", 16) not in (0, 1):
            raise CollabError("with echo this server gives logprobs 1 and max_tokens 0 or 1")
        scored = self.scorer.score(whole)
        ids = tokens
        if request.get("max_tokens", 16) == 1:
            following, logprob = self.scorer.likeliest_next()
            ids, scored = [*tokens, following], scored.then_likeliest(following, logprob)
        told = self._logprobs(ids, scored.after(hidden)) if wanted else None
        return {"index": index, "text": self.text(ids), "finish_reason": "length", "logprobs": told}

    def _generate(self, tokens: list[int], request: dict[str, Any]) -> tuple[str, str]:
        stop = request.get("stop") or []
        stop = [stop] if isinstance(stop, str) else stop
        count, warmth, seed = (request.get(k, d) for k, d in (("max_tokens", 16), ("temperature", 0), ("seed", 0)))
        numbers = isinstance(count, int) and isinstance(warmth, (int, float)) and isinstance(seed, int)
        if not numbers or count < 1 or warmth < 0:
            raise CollabError("max_tokens and seed must be integers, temperature a number, none negative")
        if not isinstance(stop, list) or not all(isinstance(s, str) for s in stop):
            raise CollabError("stop must be text or a list of texts")
        return self.scorer.generate(tokens, max_tokens=count, temperature=warmth, seed=seed % 2**32, stop=stop)

    def text(self, tokens: list[int]) -> str:
        return b"".join(piece(self.session, t) for t in tokens).decode("utf-8", "replace")

    def _name(self, token: int) -> str:
        """A token's text, as bytes where it is none by itself: names of two tokens are never the same."""
        raw = piece(self.session, token)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)

    def _logprobs(self, tokens: list[int], scored: Scored) -> dict[str, Any]:
        names = [self._name(t) for t in tokens]
        logprobs = [None if math.isnan(x) else x for x in scored.logprob.tolist()]
        tops = [
            None if x is None else {name: x} | {self._name(top): best}
            for name, x, top, best in zip(
                names, logprobs, scored.top.tolist(), scored.top_logprob.tolist(), strict=True
            )
        ]
        return {"tokens": names, "token_logprobs": logprobs, "top_logprobs": tops}


def application(completions: Completions, token: str) -> web.Application:
    """The routes: completions, and the tokenizer as vLLM serves it, which lm-evaluation-harness reads."""
    session = completions.session

    async def complete(request: web.Request) -> web.Response:
        return web.json_response(completions.answer(await _body(request)))

    async def tokenize(request: web.Request) -> web.Response:
        body = await _body(request)
        prompt, add = body.get("prompt"), bool(body.get("add_special_tokens", True))
        if not isinstance(prompt, str):
            raise CollabError("prompt must be text")
        ids = session.tokenize(prompt, special=True, add=add).tolist()
        return web.json_response({"tokens": ids, "count": len(ids)})

    async def detokenize(request: web.Request) -> web.Response:
        ids = completions.tokens((await _body(request)).get("tokens"))
        return web.json_response({"prompt": completions.text(ids)})

    async def tokenizer_info(request: web.Request) -> web.Response:
        eos = int(llama.llama_vocab_eos(session.vocab))
        names = {"bos_token": completions.bos, "eos_token": eos}
        return web.json_response({key: completions.text([i]) if i >= 0 else None for key, i in names.items()})

    app = web.Application(client_max_size=MOST_BYTES, middlewares=[_guard(token)])
    app.router.add_post("/v1/completions", complete)
    app.router.add_post("/tokenize", tokenize)
    app.router.add_post("/detokenize", detokenize)
    app.router.add_get("/tokenizer_info", tokenizer_info)
    return app


async def _body(request: web.Request) -> dict[str, Any]:
    try:
        body = await request.json()
    except ValueError:
        raise CollabError("the request is not JSON") from None
    if not isinstance(body, dict):
        raise CollabError("the request is not a JSON object")
    return body


def _guard(token: str) -> Any:
    """Refuse whoever does not know the token (loopback is open to all users of the machine), and tell a
    mistake in a request as such."""

    @web.middleware
    async def guard(request: web.Request, handler: Any) -> web.StreamResponse:
        given = request.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            return web.json_response({"error": "no or wrong token"}, status=401)
        try:
            return await handler(request)  # type: ignore[no-any-return]  # aiohttp types handlers as Any
        except CollabError as error:
            return web.json_response({"error": str(error)}, status=400)

    return guard


def _serve(job: ServeJob, parent: Parent) -> None:
    """Serve on a free port, told as a line ``{"port": ...}``, until the parent ends us."""
    import socket

    with LoadedModel(Path(job.model), ctx=job.ctx, threads=job.threads) as session:
        app = application(Completions(session, job.ctx), job.token)
        listener = socket.create_server(("127.0.0.1", 0))
        parent.say(port=listener.getsockname()[1])
        web.run_app(app, sock=listener, print=None, access_log=None, handle_signals=False)


def main() -> None:
    run_child({ServeJob: _serve})


if __name__ == "__main__":
    main()
