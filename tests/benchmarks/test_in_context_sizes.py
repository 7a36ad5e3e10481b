"""The recipe of three models: its commands are ones that fastssl understands."""

from pathlib import Path

from benchmarks import in_context_sizes
from fastssl.cli.flags import parse_flags
from fastssl.cli.in_context import InContextFlags
from fastssl.cli.pretrain import GptFlags
from fastssl.data.in_context_corpus import INSTRUCTIONS


def test_commands_are_understood():
    for name, (layers, width, _) in in_context_sizes.SIZES.items():
        words = in_context_sizes.pretraining(name, Path("corpus"), Path("out"), 2500, 1)
        flags = parse_flags(GptFlags, words, program="fastssl pretrain")
        assert (flags.model.num_hidden_layers, flags.model.hidden_size) == (layers, width)
        assert flags.training.output_dir == str(Path("out") / name)
    asked = parse_flags(
        InContextFlags, in_context_sizes.asking(Path("corpus"), Path("out"), 1), program="fastssl in-context"
    )
    assert asked.demonstrations.shots == (0, 1, 5) and len(asked.model) == 3
    assert {path.stem for path in asked.task} == set(INSTRUCTIONS) == set(in_context_sizes.FAMILIES)
