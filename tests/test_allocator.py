import platform
import subprocess
import sys

import pytest

from fastssl.allocator import keep_freed_memory

# A tensor that is larger than what malloc would keep by itself, freed and asked for again, in a process of its own.
PROGRAM = """
import resource, sys
import torch
from fastssl.allocator import keep_freed_memory

def touch():
    torch.empty(64 << 20, dtype=torch.uint8).fill_(1)

def resident_pages():
    return int(open("/proc/self/statm").read().split()[1])

for keep in (False, True, False):
    if keep or resource.getrusage(resource.RUSAGE_SELF).ru_minflt:
        assert keep_freed_memory(keep)
    for _ in range(12):  # malloc puts a few blocks elsewhere before it settles
        touch()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        touch()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before, resident_pages())
"""

needs_glibc = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has no such setting")


@needs_glibc
def test_freed_memory_is_used_again_and_given_back():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    (faults_before, _), (faults_kept, pages_kept), (_, pages_after) = (
        map(int, line.split()) for line in done.stdout.splitlines()
    )
    pages = (64 << 20) // 4096
    assert faults_before > 3 * pages
    assert faults_kept < pages
    assert pages_after < pages_kept - pages // 2


def test_other_c_libraries_are_left_alone(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    assert keep_freed_memory() is False
