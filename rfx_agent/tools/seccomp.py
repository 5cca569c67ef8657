"""The system calls that the OS sandbox refuses, as the filter that bubblewrap loads.

The namespaces take away what there is to reach; this takes away the doors: new processes, sockets (a VM's vsock knows
no network namespace), memory that no limit counts (System V, memfd, extended attributes), what all processes of a
machine share (asynchronous I/O, inotify), tracing, mounts, keys, and the kernel interfaces that escapes are made of.
Threads are left.
"""

from __future__ import annotations

import platform
import struct

__all__ = ["seccomp_filter"]

_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_EPERM, _ENOSYS = 1, 38
_THREAD = 0x00010000  # CLONE_THREAD
# BPF: load a word of seccomp_data; jump if equal, at least, or any bit set; return.
_LOAD, _EQUAL, _LEAST, _BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

_SAME = (  # numbers that both machines share
    *(424, 434, 438),  # pidfd_send_signal, pidfd_open, pidfd_getfd
    *(425, 426, 427),  # io_uring
    *(428, 429, 430, 431, 432, 433, 442),  # the new mount interface
    447,  # memfd_secret
    463,  # setxattrat
)
# audit number, clone, and what is refused
_MACHINES: dict[str, tuple[int, int, tuple[int, ...]]] = {
    "x86_64": (
        0xC000003E,
        56,
        (
            *(57, 58),  # fork, vfork
            *(41, 29, 64, 68, 240, 319),  # socket, shmget, semget, msgget, mq_open, memfd_create
            *(101, 310, 311, 312),  # ptrace, process_vm_readv, process_vm_writev, kcmp
            *(272, 308, 165, 166, 155, 161, 303, 304),  # unshare, setns, mounts, chroot, file handles
            *(248, 249, 250, 321, 298, 323, 300),  # keys, bpf, perf_event_open, userfaultfd, fanotify_init
            *(188, 189, 190, 206, 253, 294),  # setxattr, lsetxattr, fsetxattr, io_setup, inotify_init, inotify_init1
            *(175, 313, 176, 246, 320, 135, 103, 179, 167, 168, 169, 163, 164, 212, 154, 172, 173),  # the machine's own
        ),
    ),
    "aarch64": (
        0xC00000B7,
        220,
        (
            *(198, 194, 190, 186, 180, 279),
            *(117, 270, 271, 272),
            *(97, 268, 40, 39, 41, 51, 264, 265),
            *(217, 218, 219, 280, 241, 282, 262),
            *(5, 6, 7, 0, 26),
            *(105, 273, 106, 104, 294, 92, 116, 60, 224, 225, 142, 89, 170, 18),
        ),
    ),
}
_MACHINES["arm64"] = _MACHINES["aarch64"]
_CLONE3 = 435


def seccomp_filter(machine: str | None = None) -> bytes | None:
    """The filter for ``machine`` (by default this one), or None where its system calls are not known.

    Example:
        >>> len(seccomp_filter("x86_64") or b"") % 8
        0
    """
    known = _MACHINES.get(machine or platform.machine())
    if known is None:
        return None
    audit, clone, refused = known
    rows = [
        (_LOAD, 0, 0, 4),  # the machine
        (_EQUAL, 1, 0, audit),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, 0),  # the call
        (_LEAST, 0, 1, 0x40000000),  # x32's other numbers for the same calls
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_EQUAL, 0, 1, _CLONE3),  # its flags cannot be read here; the C library falls back to clone
        (_RETURN, 0, 0, _ERRNO | _ENOSYS),
        (_EQUAL, 0, 3, clone),
        (_LOAD, 0, 0, 16),  # its flags
        (_BITS, 1, 0, _THREAD),
        (_RETURN, 0, 0, _ERRNO | _EPERM),
        (_LOAD, 0, 0, 0),
    ]
    for number in (*refused, *_SAME):
        rows += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | _EPERM)]
    rows.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *row) for row in rows)
