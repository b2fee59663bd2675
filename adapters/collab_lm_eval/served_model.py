"""lm-evaluation-harness' client for a completions server, with our progress and one-line errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import requests
from lm_eval.models.openai_completions import LocalCompletionsAPI

from collab_plugin.errors import CollabError
from collab_plugin.progress import Advance

# lm-evaluation-harness' own default when a task does not say how much it generates.
MOST_NEW_TOKENS = 256


class ServedModel(LocalCompletionsAPI):  # type: ignore[misc]  # ships no types
    """`local-completions` on a `Served` model: token ids go out, tokens are made by the server."""

    def __init__(self, url: str, token: str, ctx: int, *, request_limit: int, progress: Advance) -> None:
        super().__init__(
            model="served",
            base_url=f"{url}/v1/completions",
            tokenizer_backend="remote",
            auth_token=token,
            header={"Authorization": f"Bearer {token}"},
            max_length=ctx,
            max_gen_toks=MOST_NEW_TOKENS,
            max_retries=1,
            timeout=request_limit,
        )
        self.filled = 0
        self._progress = progress
        self._done = self._total = 0

    def loglikelihood(self, requests: Sequence[Any], **options: Any) -> Any:
        self._total += len(requests)
        return super().loglikelihood(requests, **options)

    def loglikelihood_rolling(self, requests: Sequence[Any], **options: Any) -> Any:
        self._total += len(requests)
        return super().loglikelihood_rolling(requests, **options)

    def generate_until(self, requests: Sequence[Any], **options: Any) -> Any:
        self._total += len(requests)
        for request in requests:
            most = int(request.args[1].get("max_gen_toks", MOST_NEW_TOKENS))
            if most >= self.max_length:
                raise CollabError(
                    f"task {request.task_name} generates up to {most} tokens, more than the context of "
                    f"{self.max_length + 1} holds: raise `ctx`"
                )
        return super().generate_until(requests, **options)

    def tok_encode(self, string: Any, *arguments: Any, **options: Any) -> Any:
        # All texts are made tokens before the first is scored: minutes for a large task, shown as such.
        self._progress(self._done, self._total)
        return super().tok_encode(string, *arguments, **options)

    def model_call(
        self, messages: Any, *, generate: bool = True, gen_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> Any:
        room = self.max_length - (gen_kwargs or {}).get("max_gen_toks", MOST_NEW_TOKENS) * generate
        self.filled += sum(len(prompt) >= room for prompt in messages)
        try:
            answer = super().model_call(messages, generate=generate, gen_kwargs=gen_kwargs, **options)
        except requests.HTTPError as error:
            if error.response is None or error.response.status_code != 400:
                raise
            raise CollabError(f"the served model refused a request: {error.response.json()['error']}") from error
        except requests.ConnectionError as error:
            raise CollabError("the served model ended before its tasks did") from error
        except requests.Timeout as error:
            raise CollabError(f"the served model did not answer within {self.timeout} seconds") from error
        # Windows of a rolling likelihood are calls of one request.
        self._done = min(self._done + len(messages), self._total)
        self._progress(self._done, self._total)
        return answer
