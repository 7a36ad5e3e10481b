"""Test and measure fastssl on this machine's CUDA GPU, section by section, and write benchmarks/results/MACHINE."""

import argparse
import difflib
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.comparison import Row
from benchmarks.environment import commit, now
from benchmarks.gpu import trial
from benchmarks.gpu.device_tests import run_sanitized, run_tests
from benchmarks.gpu.environment import GpuEnvironment, cuda_ops_loaded, describe
from benchmarks.gpu.state import SectionState, path_of
from benchmarks.gpu.within import run_within
from benchmarks.recording import write_results
from benchmarks.session import PARTIAL_RESULTS, RECORDED_RESULTS
from fastssl import extension

SHARES = {
    "tests": 130,
    "ceilings": 20,
    "attention": 160,
    "layer_norm": 70,
    "bias_gelu": 25,
    "linear_cross_entropy": 60,
    "training_step": 190,
    "sanitizer": 40,
}
"""Section -> its share of the time, in their order. What one leaves is shared by the later ones."""
TESTS = {"tests": run_tests, "sanitizer": run_sanitized}
GRACE_SECONDS = 15
"""Given to the case that is running when a section's time is up, before the process is ended."""
TIME_UP = "its time was up"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to run and where to leave it."""

    only: tuple[str, ...] = ()
    """Sections to run anew, such as attention; the results of the others stay as they are. All when left out."""
    seconds: float = 450.0
    """Time for everything, shared among the sections: with the build before it, ten minutes."""
    output_dir: Path | None = None
    """Where results go. Default: benchmarks/results/MACHINE."""
    rehearse: bool = False
    """Walk through everything on the CPU in tiny sizes, to check this program where there is no GPU."""


def main(arguments: list[str] | None = None) -> int:
    """Run the sections and return 0; 1 where a test failed or a section has no result; 2 where nothing can run."""
    began = time.monotonic()
    options = _options(arguments)
    if error := _obstacle(options):
        print(f"benchmarks.gpu: error: {error}", file=sys.stderr)
        return 2
    folder = _folder(options)
    print(_build_text(), flush=True)
    ends = began + options.seconds
    sections = [name for name in SHARES if not options.only or name in options.only]
    if not options.rehearse:
        # Once for all sections and all processes of the tests.
        os.environ[trial.VERDICT] = verdict = trial.why_not("hopper")
        print(verdict or "attention by 'hopper' ends well", flush=True)
    for number, name in enumerate(sections):
        share = SHARES[name] / sum(SHARES[later] for later in sections[number:])
        _run(name, folder, max((ends - time.monotonic()) * share, 1.0), options.rehearse)
        report(folder, options.rehearse)
    print(f"Results: {folder}")
    return 0 if all(_is_well(SectionState.load(folder, name)) for name in sections) else 1


def report(folder: Path, rehearse: bool) -> None:
    """Write CSV, figure and summary of all sections that the folder holds."""
    states = [state for name in SHARES if (state := SectionState.load(folder, name)) is not None]
    ceilings = next((state.facts for state in states if state.name == "ceilings"), {})
    rows: list[Row] = [row for state in states for row in state.rows]
    write_results(rows, describe(ceilings, rehearse), folder)
    with (folder / "summary.md").open("a") as summary:
        summary.write(_sections_text(states))


def _options(arguments: list[str] | None) -> Options:
    # argparse, since the Python that has a machine's PyTorch for CUDA often has little else.
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--only", nargs="*", default=[], metavar="SECTION", help=f"to run anew: {', '.join(SHARES)}")
    parser.add_argument("--seconds", type=float, default=Options.seconds, help="for everything (default: %(default)g)")
    parser.add_argument("--output-dir", type=Path, help="for results (default: benchmarks/results/MACHINE)")
    parser.add_argument("--rehearse", action="store_true", help="walk through on the CPU, in tiny sizes")
    given = vars(parser.parse_args(arguments))
    return Options(**given | {"only": tuple(given["only"])})


def _obstacle(options: Options) -> str:
    for name in options.only:
        if name not in SHARES:
            near = difflib.get_close_matches(name, SHARES, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            return f"--only: no section is called {name!r}; expected some of {list(SHARES)}{hint}"
    if options.seconds <= 0:
        return f"--seconds={options.seconds:g}; expected a number above zero"
    if not options.rehearse and not torch.cuda.is_available():
        return f"no CUDA GPU: torch {torch.__version__} finds none here (--rehearse walks through on the CPU)"
    return ""


def _folder(options: Options) -> Path:
    if options.output_dir is not None:
        return options.output_dir.resolve()
    environment: GpuEnvironment = describe({}, options.rehearse)
    return (PARTIAL_RESULTS if options.rehearse else RECORDED_RESULTS) / environment.machine


def _build_text() -> str:
    built = {"CPU operators": extension.cpu_ops_loaded(), "CUDA operators": cuda_ops_loaded()}
    built["Triton"] = extension.triton_installed()
    states = ", ".join(f"{name}: {'there' if there else 'missing'}" for name, there in built.items())
    return f"{states} (`make setup` builds what is missing)"


def _run(name: str, folder: Path, seconds: float, rehearse: bool) -> None:
    """Run a section anew."""
    print(f"\n== {name}, {seconds:.0f} s", flush=True)
    path_of(folder, name).unlink(missing_ok=True)
    if name in TESTS:
        facts = TESTS[name](folder, seconds, rehearse)
        SectionState(name=name, facts=facts, commit=commit(), date=now()).save(folder)
        print(_facts_text(facts), flush=True)
        return
    ends = time.monotonic() + seconds
    while (left := ends - time.monotonic()) > 0:
        reason = _process(name, folder, left, rehearse)
        if not reason:
            return
        state = SectionState.load(folder, name) or SectionState(name=name)
        print(f"{name}: the process ended: {reason}", flush=True)
        blamed = reason != TIME_UP and _blame(state, reason)
        if not blamed:
            _cut_short(state, reason)
        state.save(folder)
        if not blamed:
            return


def _process(name: str, folder: Path, seconds: float, rehearse: bool) -> str:
    """Let a section go on in a process of its own, and return how that ended if not well.

    An illegal access on a GPU ends a process's use of it, so what comes after needs a new one.
    """
    command = [sys.executable, "-m", "benchmarks.gpu.section", name, str(folder), str(seconds)]
    command.append("cpu" if rehearse else "cuda")
    status = run_within(command, seconds + GRACE_SECONDS)
    if status is None:
        return TIME_UP
    return "" if status == 0 else f"exit status {status}"


def _cut_short(state: SectionState, reason: str) -> None:
    """Take down that nothing more comes: not of the case that ran, and not of those behind it."""
    case = state.running[0] if state.running else "the section"
    state.failures[case] = reason
    state.unreached = [other for other in state.unreached if other != case]
    state.running = None


def _blame(state: SectionState, reason: str) -> bool:
    """Exclude the contender, or the case, during which a process ended; False where there is none to blame."""
    if state.running is None:
        return False
    case, contender = state.running
    if contender and (case, contender) not in {(entry[0], entry[1]) for entry in state.excluded}:
        state.excluded.append((case, contender, f"ended its process: {reason}"))
    elif case not in state.failures and case not in {row.case for row in state.rows}:
        state.failures[case] = f"ended its process: {reason}"
    else:
        return False
    state.running = None
    return True


def _is_well(state: SectionState | None) -> bool:
    if state is None or state.failures or "cut short" in state.facts:
        return False
    return not state.facts.get("exit status")


def _sections_text(states: list[SectionState]) -> str:
    lines = ["", "## Sections", ""]
    for state in states:
        lines.append(f"- {state.name}: commit {state.commit or 'unknown'}, {state.date}; {len(state.rows)} rows.")
        if state.name in TESTS:
            lines.append(f"  {_facts_text(state.facts)}")
        lines += [f"  - {case}: no result: {reason}" for case, reason in state.failures.items()]
        lines += [f"  - {case}: {contender} {reason}" for case, contender, reason in state.excluded]
        if state.unreached:
            lines.append(f"  - not reached in the time given: {', '.join(state.unreached)}")
    return "\n".join(lines) + "\n"


def _facts_text(facts: dict[str, object]) -> str:
    failed = facts.get("failed") or []
    listed = "".join(f"\n  - failed: {name}" for name in failed)
    return ", ".join(f"{name} {value}" for name, value in facts.items() if name != "failed") + listed


if __name__ == "__main__":
    sys.exit(main())
