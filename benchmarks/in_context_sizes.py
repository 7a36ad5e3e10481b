"""In-context learning against the size of the model: made-up tasks, three models, one figure; an hour.

    python -m benchmarks.in_context_sizes --output-dir DIR [--steps 12000] [--num-threads 1] [--precision bf16]

Everything is done by commands that a user would call, which are printed; models that are there already are kept.
"""

import argparse
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

SIZES = {"gpt-1x32": (1, 32, 5e-3), "gpt-2x64": (2, 64, 4e-3), "gpt-4x128": (4, 128, 3e-3)}
"""Name -> layers, width, learning rate."""
FAMILIES = ("translate", "look-up", "pick", "compute")
CORPUS = ["--num-documents", "150000", "--num-words", "24", "--max-lines", "16"]
SHOTS = ["0", "1", "5"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the corpus, pretrain the models, ask them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, required=True, help="gets corpus, models and results")
    parser.add_argument("--steps", type=int, default=12000, help="of each model, 2,048 tokens each")
    parser.add_argument("--num-threads", type=int, default=1)
    parser.add_argument("--precision", default="auto", help="bf16 pays on a processor with matrix units for it")
    options = parser.parse_args(arguments)
    corpus = options.output_dir / "made-up"
    run("data", "in-context-corpus", "--output-dir", str(corpus), *CORPUS)
    for name in SIZES:
        if not (options.output_dir / name / "model.safetensors").is_file():
            words = pretraining(name, corpus, options.output_dir, options.steps, options.num_threads, options.precision)
            run("pretrain", *words)
    run("in-context", *asking(corpus, options.output_dir, options.num_threads))
    return 0


def pretraining(
    name: str, corpus: Path, output_dir: Path, steps: int, num_threads: int, precision: str = "auto"
) -> list[str]:
    """Return the flags of a model's pretraining."""
    layers, width, learning_rate = SIZES[name]
    flags = {
        "arch": "gpt",
        "train-files": corpus / "corpus.jsonl",
        "vocab-size": 640,
        "num-hidden-layers": layers,
        "hidden-size": width,
        "num-attention-heads": 4,
        "dropout": 0,
        # With positions learnt one by one, attention takes far longer to find what stood two tokens back.
        "position-embedding": "rotary",
        # GPT-2's 0.02 is meant for its widths; a narrow model that starts so small loses a thousand steps.
        "initializer-range": 0.08,
        "max-seq-length": 128,
        "tokens-per-batch": 2048,
        "max-steps": steps,
        "warmup-steps": min(100, steps),
        "learning-rate": learning_rate,
        "eval-fraction": 0.01,
        "eval-steps": 1000,
        "precision": precision,
        "num-threads": num_threads,
        "output-dir": output_dir / name,
    }
    return [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]


def asking(corpus: Path, output_dir: Path, num_threads: int) -> list[str]:
    """Return the flags that ask all models."""
    models = [str(output_dir / name) for name in SIZES]
    tasks = [str(corpus / f"{family}.jsonl") for family in FAMILIES]
    kinds = ["--group-column", "operation", "--shots", *SHOTS]
    results = ["--output-dir", str(output_dir / "in-context"), "--num-threads", str(num_threads)]
    return ["--model", *models, "--task", *tasks, *kinds, *results]


def run(*words: str) -> None:
    """Run one command of fastssl in a process of its own, and tell how long it took."""
    print("\n$ " + shlex.join(["fastssl", *words]), flush=True)
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "fastssl", *words], check=True)
    print(f"# {time.perf_counter() - begin:.0f} s", flush=True)


if __name__ == "__main__":
    sys.exit(main())
