"""How long generated answers take now and at another commit, and whether they are the same.

    python -m tests.evaluation.generation_time f20d1e0 --output=docs/evaluation/generation_time.json

f20d1e0 is the last commit that wrote answers in static batches. Each tree runs in a process of its own, in
turns, on griffin-tiny and the samples in GRIFFIN_BENCHMARKS (by default ../shared/benchmarks beside the
checkout). A process answers all questions twice, and the first time, which compiles, does not count. The
time is that of `GriffinLM.generate_until`, so prompts are read and answers written, but nothing is loaded
and no answer is judged; on a machine that others use, compare the seconds of all cores. Answers are compared
in float32: in bfloat16 the two likeliest tokens are often equal but for the rounding.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
TASKS = {"griffin_gsm8k": 8, "griffin_humaneval": 0, "triviaqa": 5}


def answers(data_dir, limit, cap, dtype):
    """Prints a line of JSON with the answers to each task's questions and what they took.

    It imports only what both trees have, as it is run as a script of either.
    """
    from griffin_jax.evaluation import run
    from griffin_jax.evaluation.harness import GriffinLM
    from griffin_jax.evaluation.suites import Measure, Row

    measures = tuple(Measure(task, "", shots, "") for task, shots in TASKS.items())
    options = run.Options(limit=limit, data_dir=data_dir, run_generated_code=True, only_named=True)
    runs, _ = run.prepare([Row("generated", {}, "", measures)], options)
    lm = GriffinLM("griffin-tiny", dtype=dtype, batch_size=32, gen_toks_cap=cap)
    found = {}
    for one in runs.values():
        for task in one.loaded["tasks"].values():
            task.set_fewshot_seed(seed=run.SEEDS["examples"])
            task.build_all_requests(limit=limit)
            for _ in range(2):
                begin, cpu = time.perf_counter(), time.process_time()
                texts = lm.generate_until(task.instances, disable_tqdm=True)
                took = {
                    "seconds": time.perf_counter() - begin,
                    "cpu_seconds": time.process_time() - cpu,
                }
            found[one.task] = took | {"answers": texts}
    print(json.dumps(found))


def compare(commit, data_dir, limit, cap, dtype, pairs):
    """Returns a row for each task: the seconds of both trees, and how many answers are the same."""
    with tempfile.TemporaryDirectory() as folder:
        earlier = Path(folder, "earlier")
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run([*git, "add", "--detach", str(earlier), commit], check=True)
        try:
            trees = {"then": earlier, "now": ROOT}
            found = {name: [] for name in trees}
            for turn in range(pairs):
                order = list(trees.items())[:: -1 if turn % 2 else 1]
                for name, tree in order:
                    found[name].append(_run(tree, data_dir, limit, cap, dtype))
        finally:
            subprocess.run([*git, "remove", "--force", str(earlier)], check=True)
    rows = []
    for task in TASKS:
        row = {"task": task, "gen_toks_cap": cap, "dtype": dtype, "commit": commit}
        for name, parts in found.items():
            for key in ("seconds", "cpu_seconds"):
                row[f"{name}_{key}"] = [part[task][key] for part in parts]
        texts = {name: parts[0][task]["answers"] for name, parts in found.items()}
        row["questions"] = len(texts["now"])
        pairs = list(zip(texts["then"], texts["now"], strict=True))
        row["same"] = sum(then == now for then, now in pairs)
        row["others"] = [pair for pair in pairs if pair[0] != pair[1]]
        rows.append(row | {"share": min(row["now_cpu_seconds"]) / min(row["then_cpu_seconds"])})
    return rows


def _run(tree, data_dir, limit, cap, dtype):
    command = [sys.executable, __file__, "--answers", data_dir, str(limit), str(cap), dtype]
    environment = os.environ | {"PYTHONPATH": str(tree), "JAX_PLATFORMS": "cpu"}
    # An import of this file's folder would be that of the other tree.
    command.insert(1, "-P")
    done = subprocess.run(
        command, cwd=tree, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main():
    """See above."""
    from griffin_jax import provenance
    from tests.evaluation.prompts import BENCHMARKS

    parser = argparse.ArgumentParser()
    parser.add_argument("commit")
    parser.add_argument("--limit", type=int, default=40, help="questions of each task")
    parser.add_argument("--cap", type=int, default=256, help="tokens of an answer at most")
    parser.add_argument("--dtype", default="float32", help="of activations")
    parser.add_argument("--pairs", type=int, default=1, help="runs of each tree")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    options = given.limit, given.cap, given.dtype, given.pairs
    rows = compare(given.commit, str(BENCHMARKS), *options)
    for row in rows:
        then, now = (min(row[f"{name}_cpu_seconds"]) for name in ("then", "now"))
        print(
            f"{row['task']}: {then:.1f} s of all cores then, {now:.1f} now ({row['share']:.2f}), "
            f"{row['same']} of {row['questions']} answers the same"
        )
    if given.output:
        recorded = provenance.record("generation_time", sys.argv[1:])
        recorded["command"] = recorded["command"].replace("experiments.", "tests.evaluation.", 1)
        given.output.write_text(json.dumps({"rows": rows, "recorded": recorded}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--answers"]:
        answers(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
    else:
        main()
