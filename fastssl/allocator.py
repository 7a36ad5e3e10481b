"""What the process does with memory that tensors have given back.

PyTorch allocates CPU tensors with the C library's malloc. glibc's gives large blocks, and the top of its heap, back to
the system as soon as they are free, and every step of a training loop gets the same gigabytes anew, one page fault per
4 kB. A process that is there to train or to serve does better to keep them.
"""

import ctypes
import platform

# malloc.h of glibc.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX = 128 * 1024, 65536
_NEVER = 2**31 - 1


def keep_freed_memory(keep: bool = True) -> bool:
    """Let the whole process keep the memory of freed CPU tensors and use it again, or give it back as it was used to.

    The trainer does this by itself; a training loop of your own gains from calling it once before the first step. What
    was once in use stays with the process, for any later tensor, until it ends or ``keep_freed_memory(False)`` gives
    it back. It changes no numbers.

    Args:
        keep: False gives free memory back at once, and from now on when it is freed.

    Returns:
        Whether the C library has such a setting (glibc has; musl and macOS have not, and nothing changes there).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER if keep else _DEFAULT_TRIM_THRESHOLD)
    libc.mallopt(_M_MMAP_MAX, 0 if keep else _DEFAULT_MMAP_MAX)
    if not keep:
        _release_kept_outputs()
        libc.malloc_trim(0)
    return True


def _release_kept_outputs() -> None:
    """Free what our own operators keep of the memory of their large results, at most 512 MB, whatever malloc does."""
    from fastssl import extension  # imports torch, which nobody needs for the rest of this module

    extension.release_kept_outputs()
