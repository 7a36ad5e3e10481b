"""What a section has found so far, in a file of its own: it outlives the process, and a later run of other sections."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from benchmarks.comparison import Row


@dataclass(kw_only=True)
class SectionState:
    """The results of one section. `save` after every change: a GPU's error can end the process at any moment."""

    name: str
    """Of the section."""
    rows: list[Row] = field(default_factory=list)
    """Measured cases."""
    failures: dict[str, str] = field(default_factory=dict)
    """Case -> why it has no row."""
    excluded: list[tuple[str, str, str]] = field(default_factory=list)
    """(case, contender, reason) of contenders that ended the process."""
    running: tuple[str, str] | None = None
    """The (case, contender) that is tried for the first time just now."""
    facts: dict[str, object] = field(default_factory=dict)
    """Results that are no rows: ceilings, counts of tests."""
    unreached: list[str] = field(default_factory=list)
    """Cases for which no time was left."""
    commit: str = ""
    """Commit that was measured."""
    date: str = ""
    """Day and minute, UTC."""

    def save(self, folder: Path) -> None:
        """Write the section's file, whole or not at all."""
        path = path_of(folder, self.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(asdict(self) | {"rows": [_rounded(row) for row in self.rows]}, indent=1)
        new = path.with_suffix(".new")
        new.write_text(text + "\n")
        new.replace(path)

    @classmethod
    def load(cls, folder: Path, name: str) -> "SectionState | None":
        """Return what a section has found; None where it has not begun."""
        path = path_of(folder, name)
        if not path.exists():
            return None
        read = json.loads(path.read_text())
        read["rows"] = [Row(**row) for row in read["rows"]]
        read["excluded"] = [tuple(entry) for entry in read["excluded"]]
        read["running"] = read["running"] and tuple(read["running"])
        return cls(**read)


def path_of(folder: Path, name: str) -> Path:
    """Return the file of a section."""
    return folder / "sections" / f"{name}.json"


def _rounded(row: Row) -> dict[str, object]:
    seconds = {name: [float(f"{value:.4g}") for value in values] for name, values in row.seconds.items()}
    return asdict(row) | {"seconds": seconds}
