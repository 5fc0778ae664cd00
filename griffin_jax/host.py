"""What the operating system says of the machine: its processor, and the memory that is free."""

import platform
from pathlib import Path


def processor_fields() -> dict[str, str]:
    """Returns what Linux says of the first processor, by name; empty where there is no telling."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        return {}
    fields: dict[str, str] = {}
    for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value.strip())
    return fields


def processor() -> str:
    """Returns the processor's name."""
    return processor_fields().get("model name") or platform.processor() or platform.machine()


def available_memory() -> int | None:
    """Returns the bytes of memory that this process may still take; None where there is no telling."""
    meminfo, group = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
    if not meminfo.is_file():
        return None
    fields = dict(line.split(":") for line in meminfo.read_text(encoding="ascii").splitlines())
    if "MemAvailable" not in fields:
        return None
    available = int(fields["MemAvailable"].split()[0]) * 1024
    try:
        limit = (group / "memory.max").read_text(encoding="ascii").strip()
        used = (group / "memory.current").read_text(encoding="ascii")
    except OSError:
        return available
    return available if limit == "max" else min(available, int(limit) - int(used))
