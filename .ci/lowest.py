"""Prints pip constraints that pin each direct requirement to the lowest version that setup.py allows.

  python .ci/lowest.py EXTRA ... < requirements

The requirements are read from the installed package's metadata.
"""

import sys
from importlib import metadata

from packaging.requirements import Requirement


def main(extras):
    for text in metadata.requires("griffin_jax"):
        requirement = Requirement(text)
        if requirement.marker and not any(
            requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)
        ):
            continue
        lowest = [x.version for x in requirement.specifier if x.operator in (">=", "==")]
        if not lowest:
            sys.exit(f"setup.py: {text} has no lower bound")
        print(f"{requirement.name}=={lowest[0]}")


main(sys.argv[1:])
