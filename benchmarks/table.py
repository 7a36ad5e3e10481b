"""Rows as text: the table on the terminal, the Markdown summary, the CSV."""

import csv
import io
import itertools
from collections.abc import Sequence

from rich.table import Table

from benchmarks.comparison import LIMIT, OURS, Row
from benchmarks.environment import Origin
from benchmarks.timing import Spread

NOTES = (
    "A ratio is a peer's time over fastssl's, the median of the rounds (quartiles in brackets): above 1, fastssl is "
    "faster. The share compares useful work per second with the machine's own rate for such work (a product, a copy or "
    "a reading of as many bytes), measured in the same rounds. Padding, unlabelled rows and random numbers are not "
    "useful work."
)


def table_cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the lines of the table of one suite's rows."""
    peers = list(dict.fromkeys(peer for row in rows for peer in row.peers))
    header, lines = ["case", OURS], [[row.case, format_seconds(row.time(OURS).median)] for row in rows]
    if any(row.unit for row in rows):
        header.append("useful work")
        for row, line in zip(rows, lines, strict=True):
            line.append(_format_rate(row))
    if any(row.limit_work for row in rows):
        header.append("share of machine")
        for row, line in zip(rows, lines, strict=True):
            line.append(_format_share(row))
    for peer in peers:
        header.append(f"x {peer}")
        for row, line in zip(rows, lines, strict=True):
            line.append(_format_ratio(row.speedup(peer)) if peer in row.peers else "")
    if any(row.memory_bytes for row in rows):
        header.append("peak memory, MB")
        for row, line in zip(rows, lines, strict=True):
            line.append(", ".join(f"{name} {value / 1e6:.0f}" for name, value in row.memory_bytes.items()))
    return header, lines


def rich_tables(rows: Sequence[Row]) -> list[Table]:
    """Return one table per suite."""
    tables = []
    for suite, of_suite in by_suite(rows):
        header, lines = table_cells(of_suite)
        table = Table(title=suite, title_justify="left", title_style="bold", header_style="bold")
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
        for line in lines:
            table.add_row(*line)
        tables.append(table)
    return tables


def markdown(rows: Sequence[Row], environment: Origin) -> str:
    """Return the summary: machine, versions, commit, date, and one table per suite."""
    versions = ", ".join(f"{name} {version}" for name, version in environment.versions.items())
    lines = [
        f"# {environment.title}",
        "",
        f"Commit {environment.commit}, {environment.date}. {environment.system}; {versions}.",
        environment.ceilings,
        "",
        NOTES,
    ]
    for suite, of_suite in by_suite(rows):
        header, cells = table_cells(of_suite)
        lines += ["", f"## {suite}", "", _markdown_line(header)]
        lines.append(_markdown_line([":--", *["--:"] * (len(header) - 1)]))
        lines += [_markdown_line(line) for line in cells]
        lines += [f"\n{row.case}: {row.remark}" for row in of_suite if row.remark]
    return "\n".join(lines) + "\n"


CSV_FIELDS = (
    *("suite", "case", "contender", "rounds", "median_ms", "low_ms", "high_ms"),
    *("work", "unit", "rate_per_second", "share_of_machine", "speedup", "speedup_low", "speedup_high"),
    *("peak_memory_bytes", "machine", "commit", "date"),
)


def csv_text(rows: Sequence[Row], environment: Origin) -> str:
    """Return one line per row and contender, the machine's own rate (contender "limit") included."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_FIELDS, lineterminator="\n")
    writer.writeheader()
    origin = {"machine": environment.machine, "commit": environment.commit, "date": environment.date}
    for row in rows:
        for contender in row.seconds:
            writer.writerow(csv_fields(row, contender) | origin)
    return out.getvalue()


def csv_fields(row: Row, contender: str) -> dict[str, object]:
    """Return what there is to say of one contender of a row, by the names of `CSV_FIELDS`."""
    time, speedup = row.time(contender), row.speedup(contender)
    limited = contender == LIMIT
    rate = row.limit_work / time.median if limited else row.rate(contender)
    return {
        "suite": row.suite,
        "case": row.case,
        "contender": contender,
        "rounds": len(row.seconds[contender]),
        "median_ms": f"{time.median * 1e3:.6g}",
        "low_ms": f"{time.low * 1e3:.6g}",
        "high_ms": f"{time.high * 1e3:.6g}",
        "work": f"{row.limit_work if limited else row.work:.6g}" if row.unit else "",
        "unit": row.unit,
        "rate_per_second": "" if rate is None else f"{rate:.6g}",
        "share_of_machine": "" if limited or row.share(contender) is None else f"{row.share(contender):.4f}",
        "speedup": "" if limited else f"{speedup.median:.4f}",
        "speedup_low": "" if limited else f"{speedup.low:.4f}",
        "speedup_high": "" if limited else f"{speedup.high:.4f}",
        "peak_memory_bytes": row.memory_bytes.get(contender, ""),
    }


def by_suite(rows: Sequence[Row]) -> list[tuple[str, list[Row]]]:
    """Return the rows of each suite, in the order in which they were measured."""
    return [(suite, list(group)) for suite, group in itertools.groupby(rows, key=lambda row: row.suite)]


def summary_line(row: Row) -> str:
    """Return one row in one line, to be shown as soon as it is measured."""
    parts = [f"{row.suite} {row.case}: {format_seconds(row.time(OURS).median)}"]
    parts += [text for text in (_format_rate(row), _format_share(row)) if text]
    parts += [f"{_format_ratio(row.speedup(peer))} {peer}" for peer in row.peers]
    return "; ".join([*parts, row.remark] if row.remark else parts)


def format_seconds(seconds: float) -> str:
    """Return a time with three significant digits and a unit that a reader likes: "4.27 ms"."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= scale or unit == "us":
            return f"{seconds / scale:.3g} {unit}" if seconds < 1000 * scale else f"{seconds / scale:.0f} {unit}"
    raise AssertionError("unreachable")


def _format_rate(row: Row) -> str:
    rate = row.rate(OURS)
    if rate is None:
        return ""
    return f"{rate / 1e6:.3g} M{row.unit}/s" if row.unit == "token" else f"{rate / 1e9:.3g} G{row.unit}/s"


def _format_share(row: Row) -> str:
    share, name = row.share(OURS), row.limit_name or ("sgemm" if row.unit == "FLOP" else "copy")
    return "" if share is None else f"{share:.0%} of {name}"


def _format_ratio(ratio: Spread) -> str:
    return f"{ratio.median:.2f} [{ratio.low:.2f}-{ratio.high:.2f}]"


def _markdown_line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
