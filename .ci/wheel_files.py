"""Fails where a wheel lacks a file of the package, of experiments/ or of configs/.

python .ci/wheel_files.py WHEEL
"""

import sys
import zipfile
from pathlib import Path


def main(wheel):
    wanted = set()
    for folder, inside in (
        ("griffin_jax", ""),
        ("experiments", "commands"),
        ("configs", "commands"),
    ):
        for path in Path(folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                wanted.add((Path("griffin_jax", inside) / path if inside else path).as_posix())
    missing = sorted(wanted - set(zipfile.ZipFile(wheel).namelist()))
    if missing:
        sys.exit(f"{wheel} lacks {', '.join(missing)}; see package_data in setup.py")
    print(f"{wheel}: {len(wanted)} files, none missing")


main(sys.argv[1])
