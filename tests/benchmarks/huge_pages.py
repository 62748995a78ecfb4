"""Huge pages for a benchmark's process: what README says of GLIBC_TUNABLES."""

import os
import sys
from pathlib import Path

# Names a setting of the C library's malloc, and asks for pages of 2 MiB.
VARIABLE, HUGE_PAGES = "GLIBC_TUNABLES", "glibc.malloc.hugetlb=1"
POLICY = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def restart_with_huge_pages() -> None:
    """Starts this program anew, once, such that its memory is in huge pages.

    On a CPU XLA asks for its temporary memory anew at each step, and the system hands
    it out page by page, which takes a part of each step, and less of it with pages of
    2 MiB than of 4 KiB. Only a new process can have them. Nothing happens where the
    variable GLIBC_TUNABLES is set already, and where Linux does not leave programs the
    choice.
    """
    if VARIABLE not in os.environ and leaves_choice():
        os.environ[VARIABLE] = HUGE_PAGES
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def leaves_choice() -> bool:
    """Whether programs choose the size of their pages here: Linux's usual policy."""
    try:
        return "[madvise]" in POLICY.read_text()
    except OSError:
        return False
