"""Measures the models on this machine.

  python -m experiments.benchmark --config=configs/bench_decode.py --output=docs/benchmarks/decode.json

The config says what is measured. Lines go to standard output as figures come; --output writes all
of them as JSON, with the machine described. --profile=FOLDER also writes the time per kernel of a
decoding burst, a text file per model.
"""

import json
import sys
from pathlib import Path
from typing import Any

from absl import flags

from experiments import command

_CONFIG = command.define_config("bench_decode.py")
_OUTPUT = flags.DEFINE_string("output", None, "JSON file for the results.")
_PROFILE = flags.DEFINE_string("profile", None, "Folder for the time per kernel.")


def main() -> None:
    config = _CONFIG.value
    rows = _decode(config)
    if _OUTPUT.value:
        path = Path(_OUTPUT.value)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        partial.replace(path)


def _decode(config) -> dict[str, Any]:
    from griffin_jax.benchmarks import decode, kernel_profile, machine, memory
    from griffin_jax.benchmarks.subject import Subject

    subjects = [Subject.parse(text) for text in config.models]
    limits = machine.measure_limits(config.copy_bytes or None, config.matrix or None)
    results = {
        "kind": config.kind,
        "config": json.loads(config.to_json_best_effort()),
        "machine": machine.describe(),
        "limits": limits.to_dict(),
        "rows": [],
    }
    _note(f"{results['machine']}")
    _note(
        f"copy {limits.bytes_per_second / 1e12:.3f} TB/s, bfloat16 products "
        f"{limits.flops_per_second / 1e12:.1f} TFLOP/s, float32 "
        f"{limits.float32_flops_per_second / 1e12:.1f}"
    )
    for subject in subjects:
        name = f"{subject.model}:{subject.weights}:{subject.dtype}"
        try:
            lm, about = subject.load(config.seed)
            _note(
                f"{name}: {about['weight_bytes'] / 1e9:.2f} GB of weights in "
                f"{about['make_seconds']:.1f} s"
            )
            if config.prompt:
                row = decode.measure_prefill(lm, limits, config.prompt, 1, config.repeats)
                results["rows"].append(about | {"what": "prefill"} | row)
                _note(
                    f"{name}: prefill of {config.prompt}: {row['seconds']['median']:.4f} s "
                    f"(spread {row['seconds']['spread']:.1%}), {row['matmul_share']:.1%} of the "
                    f"matrix rate, {row['compile']['programs']} programs compiled in "
                    f"{row['compile']['seconds']:.1f} s, first call {row['first_seconds']:.1f} s"
                )
            for index, position in enumerate(config.positions):
                profile = bool(_PROFILE.value) and index == 0
                row = decode.measure_decoding(
                    lm, limits, position, config.tokens, burst=config.burst, profile=profile
                )
                results["rows"].append(about | {"what": "decode"} | row)
                _note(
                    f"{name}: at {position}: {row['seconds_per_token']['median'] * 1e3:.3f} ms per "
                    f"token (spread {row['seconds_per_token']['spread']:.1%}, floor "
                    f"{row['floor_seconds'] * 1e3:.3f}), {row['bandwidth_share']:.1%} of the "
                    f"bandwidth, state {row['state_bytes'] / 1e6:.1f} MB, peak "
                    f"{row['peak_bytes'] / 1e9:.2f} GB, compiled in {row['compile']['seconds']:.1f} s, "
                    f"first call {row['first_seconds']:.1f} s"
                )
                if profile:
                    kernels = [kernel_profile.KernelTime(**k) for k in row["kernels"]]
                    folder = Path(_PROFILE.value)
                    folder.mkdir(parents=True, exist_ok=True)
                    text = kernel_profile.format_profile(kernels, per=config.burst)
                    file = folder / f"{name.replace(':', '_').replace('/', '_')}.txt"
                    file.write_text(text + "\n", encoding="utf-8")
                    print(text)
        except memory.OutOfMemory as error:
            results["rows"].append(
                subject.to_dict() | {"what": "out of memory", "error": str(error)}
            )
            _note(f"{name}: out of memory: {error}")
        lm = None
    return results


def _note(line: str) -> None:
    print(line, flush=True)
    sys.stdout.flush()


if __name__ == "__main__":
    command.run(main)
