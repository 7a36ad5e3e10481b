"""A miniature of GLUE: each task in its official layout, with sentences whose one telling word says the label."""

from pathlib import Path

import numpy as np

from tests.tasks.test_finetuning import BAD, GOOD, NEUTRAL

NLI = ("entailment", "neutral", "contradiction")


def sentence(random, label: int) -> str:
    words = [*random.choice(NEUTRAL, 3), random.choice(GOOD if label else BAD)]
    return " ".join(random.permutation(words))


def rows_of(task: str, split: str, count: int, seed: int) -> list[str]:
    """Return the lines of a file, its header first where the official file has one."""
    random, test = np.random.default_rng(seed), split.startswith("test")
    lines = []
    for i in range(count):
        label = i % 2
        one, two = sentence(random, 1), sentence(random, label)
        entails = ("not_entailment", "entailment")[label]
        match task:
            case "CoLA" if test:
                lines.append(f"{i}\t{two}")
            case "CoLA":
                lines.append(f"gj04\t{label}\t{'' if label else '*'}\t{two}")
            case "SST-2":
                lines.append(f"{i}\t{two}" if test else f"{two} \t{label}")
            case "MRPC":
                lines.append(f"{i if test else label}\t70{i}\t71{i}\t{one}\t{two}")
            case "STS-B":
                score = "" if test else f"\t{(4.0 if label else 1.0) + random.integers(0, 4) / 4:.3f}"
                lines.append(f"{i}\tmain-news\tMSRvid\t2012test\t{i:04}\tnone\tnone\t{one}\t{two}{score}")
            case "QQP":
                lines.append(f"{i}\t{one}\t{two}" if test else f"{i}\t{2 * i}\t{2 * i + 1}\t{one}\t{two}\t{label}")
            case "MNLI":
                parse = "\t".join(["( x )"] * 4)
                gold = "" if test else "\tneutral" * (5 if split.startswith("dev") else 1) + f"\t{NLI[i % 3]}"
                lines.append(f"{i}\t{i}n\t{i}e\tfiction\t{parse}\t{one}\t{two}{gold}")
            case "QNLI" | "RTE":
                lines.append(f"{i}\t{one}\t{two}" + ("" if test else f"\t{entails}"))
            case "WNLI":
                lines.append(f"{i}\t{one}\t{two}" + ("" if test else f"\t{label}"))
    return header_of(task, split) + lines


def header_of(task: str, split: str) -> list[str]:
    test = split.startswith("test")
    parses = "sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse sentence1 sentence2".split()
    names = {
        "CoLA": ["index", "sentence"] if test else [],
        "SST-2": ["index", "sentence"] if test else ["sentence", "label"],
        "MRPC": ["index" if test else "Quality", "#1 ID", "#2 ID", "#1 String", "#2 String"],
        "STS-B": "index genre filename year old_index source1 source2 sentence1 sentence2".split()
        + ([] if test else ["score"]),
        "QQP": ["id", "question1", "question2"]
        if test
        else ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"],
        "MNLI": ["index", "promptID", "pairID", "genre", *parses],
        "QNLI": ["index", "question", "sentence"] + ([] if test else ["label"]),
        "RTE": ["index", "sentence1", "sentence2"] + ([] if test else ["label"]),
        "WNLI": ["index", "sentence1", "sentence2"] + ([] if test else ["label"]),
    }[task]
    if task == "MNLI" and not test:
        names += [f"label{i}" for i in range(1, 6 if split.startswith("dev") else 2)] + ["gold_label"]
    return ["\t".join(names)] if names else []


def write_task(folder: Path, task: str, *, name: str | None = None, train: int = 64, tests: bool = False) -> Path:
    """Write the files of one task and return its folder."""
    own = folder / (name or task)
    own.mkdir(parents=True)
    endings = ("_matched", "_mismatched") if task == "MNLI" else ("",)
    splits = ["train", *(f"dev{e}" for e in endings), *(f"test{e}" for e in endings if tests)]
    for seed, split in enumerate(splits):
        lines = rows_of(task, split, train if split == "train" else 24, seed)
        # The files of MRPC begin with a byte order mark.
        mark = "\ufeff" if task == "MRPC" else ""
        (own / f"{split}.tsv").write_text(mark + "\n".join(lines) + "\n", encoding="utf-8")
    return own
