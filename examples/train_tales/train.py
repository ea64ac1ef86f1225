"""Train a small GPT-2 and its tokenizer from scratch on a folder of books, and pack it as rushlight's embedded model.

    python train.py BOOKS OUT

Needs torch, transformers, tokenizers and safetensors. README.md lists the books and the results.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
from books import read_books
from pack import pack
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

END_OF_TEXT = "<|endoftext|>"
HEAD_DIM = 64
WARMUP_STEPS = 100
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("books", type=Path, help="folder of .md and .txt files")
    add("out", type=Path, help="folder to write; OUT/packed is what rushlight ships")
    add("--only", default="", help="regular expression: read only files whose lower-case path matches")
    add("--skip", default="(?!)", help="regular expression: leave out files whose lower-case path matches")
    add("--minutes", type=float, default=90, help="training time")
    add("--max-steps", type=int, help="stop after this many steps, even if time remains")
    add("--n-layer", type=int, default=6, help="blocks")
    add("--n-embd", type=int, default=192, help=f"channels, a multiple of {HEAD_DIM}")
    add("--n-positions", type=int, default=512, help="the longest context")
    add("--vocab-size", type=int, default=4096, help="tokens, at most")
    add("--batch-size", type=int, default=12, help="sequences per step")
    add("--block-size", type=int, help="tokens per sequence, by default n-positions; later positions stay untrained")
    add("--learning-rate", type=float, default=3e-3, help="peak learning rate")
    add("--held-out", type=int, default=200_000, help="tokens to hold out, at most a tenth of all")
    add("--seed", type=int, default=0)
    add("--compile", action=argparse.BooleanOptionalAction, default=True, help="use torch.compile")
    arguments = parser.parse_args()
    if arguments.n_embd % HEAD_DIM:
        parser.error(f"--n-embd {arguments.n_embd} is not a multiple of {HEAD_DIM}")
    arguments.block_size = arguments.block_size or arguments.n_positions
    return arguments


def train_tokenizer(books: list[str], vocab_size: int) -> Tokenizer:
    """Trains a byte-level BPE, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(books, trainer)
    return tokenizer


def encode_books(tokenizer: Tokenizer, books: list[str]) -> Tensor:
    """All books in one sequence of token ids, each after an end-of-text token. (T,), int64"""
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    return torch.tensor([i for book in tokenizer.encode_batch(books) for i in (end_of_text, *book.ids)])


def new_model(arguments: argparse.Namespace, tokenizer: Tokenizer) -> GPT2LMHeadModel:
    end_of_text = tokenizer.token_to_id(END_OF_TEXT)
    config = GPT2Config(
        vocab_size=tokenizer.get_vocab_size(),
        n_positions=arguments.n_positions,
        n_embd=arguments.n_embd,
        n_layer=arguments.n_layer,
        n_head=arguments.n_embd // HEAD_DIM,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )
    return GPT2LMHeadModel(config).to(DEVICE)


def new_optimizer(model: GPT2LMHeadModel) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only, not on biases and norms."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=True)


def learning_rate(peak: float, step: int, progress: float) -> float:
    """Warm-up, constant, then cosine decay to a fiftieth of the peak; `progress` runs from 0 to 1."""
    warmup = min(1, (step + 1) / WARMUP_STEPS)
    if progress < 0.1:
        return peak * warmup
    cosine = 0.5 * (1 + math.cos(math.pi * (progress - 0.1) / 0.9))
    return peak * warmup * (0.02 + 0.98 * cosine)


def random_batch(tokens: Tensor, batch_size: int, block_size: int) -> tuple[Tensor, Tensor]:
    """Random sequences of `tokens`, and the same shifted by one token: (batch_size, block_size) each."""
    starts = torch.randint(len(tokens) - block_size, (batch_size,))
    sequences = torch.stack([tokens[start : start + block_size + 1] for start in starts]).to(DEVICE)
    return sequences[:, :-1], sequences[:, 1:]


def mean_loss(model: GPT2LMHeadModel, inputs: Tensor, targets: Tensor) -> Tensor:
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        logits = model(inputs, use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), targets.flatten())


def train(model: GPT2LMHeadModel, tokens: Tensor, arguments: argparse.Namespace) -> None:
    """Trains until the time is over or `max_steps` are done."""
    loss_of = torch.compile(mean_loss) if arguments.compile else mean_loss
    optimizer = new_optimizer(model)
    step, progress, start_s = 0, 0.0, 0.0
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(arguments.learning_rate, step, progress)
        loss = loss_of(model, *random_batch(tokens, arguments.batch_size, arguments.block_size))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if step == 1:
            start_s = time.perf_counter()  # the first step compiles
        progress = (time.perf_counter() - start_s) / (60 * arguments.minutes)
        if arguments.max_steps:
            progress = max(progress, step / arguments.max_steps)
        if step % 100 == 0 or progress >= 1:
            n_tokens = step * arguments.batch_size * arguments.block_size
            print(f"step {step}: loss {loss.item():.3f}, {n_tokens / 1e6:.1f} M tokens, {progress:.0%}", flush=True)


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, tokens: Tensor, arguments: argparse.Namespace, n_batches: int = 30) -> float:
    batches = (random_batch(tokens, arguments.batch_size, arguments.block_size) for _ in range(n_batches))
    return sum(mean_loss(model, *batch).item() for batch in batches) / n_batches


def main() -> None:
    arguments = parse_arguments()
    random.seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)

    books = list(read_books(arguments.books, arguments.only, arguments.skip))
    print(f"{len(books)} books, {sum(map(len, books)) / 1e6:.1f} M characters", flush=True)
    tokenizer = train_tokenizer(books, arguments.vocab_size)
    tokenizer.save(str(arguments.out / "tokenizer.json"))
    random.shuffle(books)
    tokens = encode_books(tokenizer, books)
    n_held_out = min(arguments.held_out, len(tokens) // 10)
    train_tokens, held_out = tokens[:-n_held_out], tokens[-n_held_out:]
    heldout_text = tokenizer.decode(held_out.tolist(), skip_special_tokens=False)
    (arguments.out / "heldout.txt").write_text(heldout_text, encoding="utf-8")

    model = new_model(arguments, tokenizer)
    print(f"{model.num_parameters() / 1e6:.2f} M parameters, {len(train_tokens) / 1e6:.1f} M tokens", flush=True)
    train(model, train_tokens, arguments)
    loss = held_out_loss(model, held_out, arguments)
    print(f"held-out loss {loss:.3f}, perplexity {math.exp(loss):.1f}", flush=True)
    model.save_pretrained(arguments.out)
    pack(arguments.out, arguments.out / "packed")


if __name__ == "__main__":
    main()
