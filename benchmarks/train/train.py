"""Train one tiny model until a wall-clock time; warm-up, constant, then linear decay to zero.

python -m benchmarks.train.train tiny-qwen3moe --tokens ENC --out RUN --until 11:20 --seed 0
"""

from __future__ import annotations

import argparse
import datetime as dt
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as fn
from safetensors.torch import load_file

from benchmarks.train.model import Decoder
from benchmarks.train.shapes import SHAPES, Shape


def parse() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument("shape", choices=tuple(SHAPES))
    p.add_argument("--tokens", type=Path, required=True, help="folder of encode.py")
    p.add_argument("--out", type=Path, required=True)
    p.add_argument("--until", required=True, help="HH:MM of today, when the decay reaches zero")
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--windows", type=int, default=1, help="windows of each domain in a step")
    p.add_argument("--lr", type=float, default=3e-3)
    p.add_argument("--warm-up", type=int, default=60, help="steps until the learning rate is reached")
    p.add_argument("--balance-steps", type=int, default=100, help="steps with load balancing at the start")
    p.add_argument(
        "--balance",
        type=float,
        default=0.003,
        help="weight of the balance loss after the start; it sees a batch of all domains, so that experts "
        "stay alive over the whole mix while each domain keeps its own",
    )
    p.add_argument("--shared-dropout", type=float, default=0.0, help="share of tokens without the shared expert")
    p.add_argument(
        "--float32", action="store_true", help="no bfloat16 products (they are 4 times faster where a CPU has AMX)"
    )
    p.add_argument(
        "--embeddings",
        type=Path,
        help="folder of a trained model of the same tokenizer and width, whose embedding and output weights to start "
        "from: saves a short training its first hundreds of steps",
    )
    p.add_argument("--resume", action="store_true", help="start from OUT/model.pt, without optimizer state")
    p.add_argument("--max-steps", type=int, default=10**9)
    p.add_argument("--threads", type=int, default=1)
    return p.parse_args()


def batch(data: dict[str, np.ndarray], rng: np.random.Generator, shape: Shape, windows: int) -> torch.Tensor:
    """Windows of each domain: i64[domains * windows, window + 1]."""
    rows = []
    for ids in [ids for ids in data.values() for _ in range(windows)]:
        start = int(rng.integers(0, len(ids) - shape.window - 1))
        row = ids[start : start + shape.window + 1].astype(np.int64)
        if shape.bos is not None:
            row = np.concatenate(([shape.bos], row[:-1]))
        rows.append(row)
    return torch.from_numpy(np.stack(rows))


def optimizer(model: Decoder, lr: float) -> torch.optim.Optimizer:
    matrices = [p for n, p in model.named_parameters() if p.ndim >= 2 and "embed" not in n]
    rest = [p for n, p in model.named_parameters() if p.ndim < 2 or "embed" in n]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), fused=True)


def main() -> None:
    a = parse()
    torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    shape = SHAPES[a.shape]
    model = Decoder(shape)
    if a.embeddings:
        known = {n: v for path in a.embeddings.glob("model*.safetensors") for n, v in load_file(path).items()}
        model.embed_tokens.data = known["model.embed_tokens.weight"].float()
        model.lm_head.data = known["lm_head.weight"].float()
    a.out.mkdir(parents=True, exist_ok=True)
    data = {p.stem: np.load(p) for p in sorted(a.tokens.glob("*.npy"))}
    for m in model.expert_layers():
        m.shared_dropout = a.shared_dropout
        m.precision = torch.float32 if a.float32 else torch.bfloat16
    opt = optimizer(model, a.lr)
    hour, minute = map(int, a.until.split(":"))
    start, end = time.time(), dt.datetime.now().replace(hour=hour, minute=minute, second=0).timestamp()
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    step = tokens = 0
    if a.resume:
        state = torch.load(a.out / "model.pt", weights_only=True)
        model.load_state_dict(state["model"])
        step, tokens = state["step"], state["tokens"]
    first = step
    rng = np.random.default_rng((a.seed, step))  # a resumed run draws new windows
    saved = time.time()
    while (now := time.time()) < end and step < a.max_steps:
        done = (now - start) / (end - start)
        lr = a.lr * min(1.0, (step - first + 1) / a.warm_up) * min(1.0, max(0.02, (1 - done) / 0.5))
        for group in opt.param_groups:
            group["lr"] = lr
        ids = batch(data, rng, shape, a.windows)
        with torch.autocast("cpu", torch.bfloat16, enabled=not a.float32):
            logits = model(ids[:, :-1])
        losses = fn.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
        loss = losses.mean()
        weight = 0.02 if step < a.balance_steps else a.balance
        loss = loss + weight * sum(m.balance for m in model.expert_layers())
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        if shape.family == "deepseek" and step < a.balance_steps:
            for m in model.expert_layers():
                m.bias += 0.002 * torch.sign(1 / m.s.experts - m.load)
        step += 1
        tokens += ids[:, 1:].numel()
        if step % 20 == 0:
            by = losses.detach().view(len(data), -1).mean(1).tolist()
            low = [float(m.load.sort().values[: shape.experts // 4].sum()) for m in model.expert_layers()]
            speed = (step - first) * ids[:, 1:].numel() / (time.time() - start)
            parts = " ".join(f"{d}={v:.2f}" for d, v in zip(data, by, strict=True))
            print(
                f"{step} {tokens / 1e6:.2f}M {speed:.0f} tok/s lr {lr:.1e} {parts} low quarter "
                + " ".join(f"{v:.3f}" for v in low),
                flush=True,
            )
        if time.time() - saved > 240 or step == 100:
            saved = time.time()
            save(model, a, step, tokens)
    save(model, a, step, tokens)
    print("done", step, tokens, time.time() - start, flush=True)


def save(model: Decoder, a: argparse.Namespace, step: int, tokens: int) -> None:
    path = a.out / "model.pt"
    torch.save(
        {"model": model.state_dict(), "shape": a.shape, "seed": a.seed, "step": step, "tokens": tokens},
        path.with_suffix(".tmp"),
    )
    path.with_suffix(".tmp").replace(path)


if __name__ == "__main__":
    main()
