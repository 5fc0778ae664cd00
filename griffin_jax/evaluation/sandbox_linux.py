"""Means of Linux by which a process without privileges shuts itself in, through ctypes.

Namespaces (unshare(2)), Landlock (landlock(7)) and seccomp filters (seccomp(2)). Every part is
tried; `shut_in` returns the names of those that the kernel granted. Stand-alone: `sandbox_child.py`
loads this file by its path.
"""

import ctypes
import os
import struct

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 38, 22
_SIGKILL, _EPERM, _ENOSYS = 9, 1, 38
_CLONE_THREAD, _CLONE_NEWNS, _CLONE_NEWIPC = 0x00010000, 0x00020000, 0x08000000
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_MS_NOSUID, _MS_NODEV = 2, 4

# The same numbers on every architecture (kernel 5.x tables).
_COMMON = {
    "pidfd_send_signal": 424,
    "io_uring_setup": 425,
    "pidfd_open": 434,
    "clone3": 435,
    "landlock_create_ruleset": 444,
    "landlock_add_rule": 445,
    "landlock_restrict_self": 446,
    "fchmodat2": 452,
}
_X86_64 = {
    "socket": 41,
    "clone": 56,
    "fork": 57,
    "vfork": 58,
    "kill": 62,
    "chmod": 90,
    "fchmod": 91,
    "chown": 92,
    "fchown": 93,
    "lchown": 94,
    "ptrace": 101,
    "setpgid": 109,
    "setsid": 112,
    "rt_sigqueueinfo": 129,
    "utime": 132,
    "pivot_root": 155,
    "chroot": 161,
    "settimeofday": 164,
    "mount": 165,
    "umount2": 166,
    "swapon": 167,
    "reboot": 169,
    "sethostname": 170,
    "init_module": 175,
    "setxattr": 188,
    "lsetxattr": 189,
    "fsetxattr": 190,
    "tkill": 200,
    "clock_settime": 227,
    "tgkill": 234,
    "utimes": 235,
    "kexec_load": 246,
    "fchownat": 260,
    "futimesat": 261,
    "fchmodat": 268,
    "unshare": 272,
    "utimensat": 280,
    "rt_tgsigqueueinfo": 297,
    "perf_event_open": 298,
    "prlimit64": 302,
    "setns": 308,
    "process_vm_writev": 311,
    "finit_module": 313,
    "bpf": 321,
}
_AARCH64 = {
    "setxattr": 5,
    "lsetxattr": 6,
    "fsetxattr": 7,
    "umount2": 39,
    "mount": 40,
    "pivot_root": 41,
    "chroot": 51,
    "fchmod": 52,
    "fchmodat": 53,
    "fchownat": 54,
    "fchown": 55,
    "utimensat": 88,
    "unshare": 97,
    "kexec_load": 104,
    "init_module": 105,
    "clock_settime": 112,
    "ptrace": 117,
    "kill": 129,
    "tkill": 130,
    "tgkill": 131,
    "rt_sigqueueinfo": 138,
    "reboot": 142,
    "setpgid": 154,
    "setsid": 157,
    "sethostname": 161,
    "settimeofday": 170,
    "socket": 198,
    "clone": 220,
    "swapon": 224,
    "rt_tgsigqueueinfo": 240,
    "perf_event_open": 241,
    "prlimit64": 261,
    "setns": 268,
    "process_vm_writev": 271,
    "finit_module": 273,
    "bpf": 280,
}
_ARCHITECTURES = {  # platform.machine() -> AUDIT_ARCH_*, numbers of system calls
    "x86_64": (0xC000003E, _COMMON | _X86_64),
    "aarch64": (0xC00000B7, _COMMON | _AARCH64),
}
_OWN_PROCESS_ONLY = ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "prlimit64")
_SPECIAL = ("clone", "clone3", *_OWN_PROCESS_ONLY)


def shut_in(libc, scratch, machine):
    """Applies what the kernel grants; returns the names of the mechanisms now in force."""
    libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    applied = []
    if _own_network(libc):
        applied.append("network namespace")
        if _small_scratch(libc, scratch):
            applied.append("small scratch")
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0:
        if _landlock(libc, scratch):
            applied.append("landlock")
        if machine in _ARCHITECTURES and _seccomp(libc, *_ARCHITECTURES[machine]):
            applied.append("seccomp")
    return applied


def _own_network(libc):
    """A network namespace holds no interface that is up. The user namespace is what allows
    it to a
    user without privileges, and takes root's privileges over everything outside away."""
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET | _CLONE_NEWIPC | _CLONE_NEWNS):
        return False
    try:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{user} {user} 1"),
            ("gid_map", f"{group} {group} 1"),
        ):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    except OSError:
        pass  # Only the small scratch directory needs it.
    return True


def _small_scratch(libc, scratch):
    """Returns a file system in memory over the scratch directory: no number of files fills the
    disk.
    """
    options = b"size=16m,nr_inodes=1024"
    flags = ctypes.c_ulong(_MS_NOSUID | _MS_NODEV)
    if libc.mount(b"scratch", scratch.encode(), b"tmpfs", flags, options):
        return False
    os.chdir(scratch)
    return True


def _landlock(libc, scratch):
    """Below `scratch` everything, elsewhere nothing that writes, makes or removes a file."""
    create, add, restrict = (_COMMON[f"landlock_{name}"] for name in (
        "create_ruleset", "add_rule", "restrict_self"))  # fmt: skip
    version = libc.syscall(create, None, ctypes.c_size_t(0), 1)
    if version < 1:
        return False
    write_file, refer, truncate = 1 << 1, 1 << 13, 1 << 14
    changes = write_file | sum(1 << bit for bit in range(4, 13))  # remove and make of every kind
    changes |= (refer if version >= 2 else 0) | (truncate if version >= 3 else 0)
    attributes = struct.pack("=Q", changes)
    ruleset = libc.syscall(create, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        return False
    for path, rights in ((scratch, changes), (os.devnull, write_file | truncate & changes)):
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = struct.pack("=Qi", rights, folder)
        failed = libc.syscall(add, ruleset, 1, rule, 0)
        os.close(folder)
        if failed:
            return False
    failed = libc.syscall(restrict, ruleset, 0)
    os.close(ruleset)
    return not failed


def _seccomp(libc, architecture, numbers):
    """Returns a filter over system calls: what is refused fails with EPERM.

    New processes are refused and threads are not: clone(2) tells its flags in its first argument,
    clone3(2) hides them in memory and so seems not to exist, which libc takes as "use clone".
    Signals and limits reach the process itself only.
    """
    load, equal, any_bit, at_least, give = 0x20, 0x15, 0x45, 0x35, 0x06  # BPF operations
    number_at, architecture_at, argument_at = 0, 4, 16  # offsets into struct seccomp_data
    allow, kill, error = 0x7FFF0000, 0x80000000, 0x00050000

    program = [
        (load, 0, 0, architecture_at),
        (equal, 1, 0, architecture),
        (give, 0, 0, kill),
        (load, 0, 0, number_at),
        (at_least, 0, 1, 0x40000000),  # x32 calls have numbers of their own.
        (give, 0, 0, error | _EPERM),
    ]
    for name, number in numbers.items():
        if name not in _SPECIAL and not name.startswith("landlock"):
            program += [(equal, 0, 1, number), (give, 0, 0, error | _EPERM)]
    program += [(equal, 0, 1, numbers["clone3"]), (give, 0, 0, error | _ENOSYS)]
    program += [
        (equal, 0, 4, numbers["clone"]),
        (load, 0, 0, argument_at),
        (any_bit, 0, 1, _CLONE_THREAD),
        (give, 0, 0, allow),
        (give, 0, 0, error | _EPERM),
    ]
    for name in _OWN_PROCESS_ONLY:
        program += [
            (equal, 0, 5, numbers[name]),
            (load, 0, 0, argument_at),
            (equal, 2, 0, os.getpid()),
            (equal, 1 if name == "prlimit64" else 0, 0, 0),  # 0 is oneself there.
            (give, 0, 0, error | _EPERM),
            (give, 0, 0, allow),
        ]
    program.append((give, 0, 0, allow))

    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    return libc.prctl(_PR_SET_SECCOMP, 2, header, 0, 0) == 0
