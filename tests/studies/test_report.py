"""What is told of runs: which are chosen, their means, and the law of their sizes."""

import types

from griffin_jax.studies import report


def test_variants_come_by_their_numbers_and_tests_by_what_differs():
    names = ["width 128", "rows of 4,096", "width 32", "rows of 1,024", ""]
    assert sorted(names, key=report._in_order) == [
        "",
        "rows of 1,024",
        "rows of 4,096",
        "width 32",
        "width 128",
    ]
    assert report._what_differs(["length 8, a 1", "length 16, a 1"]) == ["length 8", "length 16"]
    assert report._what_differs(["as trained"]) == ["as trained"]


def test_the_learning_rate_of_the_lowest_loss_is_kept_and_seeds_are_spread():
    def run(rate, seed, loss):
        curve = [[10, 1.0], [20, loss]]
        tests = {"as trained": {"rows": loss}}
        return {
            "model": "a", "variant": "", "learning_rate": rate, "seed": seed, "parameters": 5,
            "heldout_loss": loss, "curve": curve, "tests": tests,
        }  # fmt: skip

    results = [
        run(1e-3, 0, 0.4),
        run(1e-3, 1, 0.6),
        run(1e-2, 0, 0.2),
        run(1e-2, 1, 0.9),
        run(1, 0, 0.1),
    ]
    ((key, runs),) = report.chosen(results).items()
    assert key == ("a", "") and {x["learning_rate"] for x in runs} == {1e-3}
    assert report.table(results, 0.5).splitlines()[2] == (
        "| a | 5 | 0.001 | 2 | 0.500 (0.400 to 0.600) | 20 / never | 50.0% (40.0% to 60.0%) |"
    )


def test_quantities_of_claims_are_means_over_seeds():
    def run(model, seed, curve, **more):
        test = {"tokens": 0.5, "rows": seed / 4, "loss": 1.0}
        position = {"edges": [0, 64, 128], "by_position": [2.0, 1.0 + seed]}
        return {
            "model": model, "variant": "", "learning_rate": 1, "seed": seed, "curve": curve,
            "parameters": 10, "heldout_loss": curve[-1][1], "tests": {"t": test | position},
        } | more  # fmt: skip

    results = [run("a", seed, [[1, 3.0], [2, 0.01 * seed]]) for seed in (0, 2)]
    results.append(run("b", 0, [[1, 4.0]], stopped=1, tests={}))
    find = report.lookup(types.SimpleNamespace(counted="rows", solved=0.05), results)
    assert find("accuracy", "a", "t") == 0.25 and find("loss", "a") == 0.01
    assert find("loss at", "a", 64) == find("loss at", "a", 500) == 2.0
    assert find("loss of", "a", "t") == 1.0 and find("steps to learn", "a") == 2
    assert find("loss at step", "b", 1) == 4.0 and find("loss at step", "b", 2) is None
    assert find("accuracy", "b", "t") is None and find("steps to learn", "b") is None
    assert find("loss", "c") is None
    assert find("loss over", "a", "a") == 1.0 and find("loss over", "a", "c") is None
    # A seed that was stopped is in no mean beside seeds that are done.
    results.append(run("a", 1, [[1, 3.5]], stopped=1, tests={}))
    find = report.lookup(types.SimpleNamespace(counted="rows", solved=0.05), results)
    assert find("accuracy", "a", "t") == 0.25 and find("loss", "a") == 0.01
    assert find("loss at step", "a", 1) == 3.0
    rows = report.table(results, 0.5).splitlines()[2:]
    assert rows[0].startswith("| a | 10 | 1 | 2, 1 stopped at 1 | 0.010 (0.000 to 0.020) | 2 / 2 |")
    assert rows[1].startswith("| b | 10 | 1 | 1 stopped at 1 | 4.000 | never |")
    # These are of text, on which nothing is solved.
    assert "| below 0.5 at step |" in report.table(results, 0.5)


def test_the_law_of_sizes_is_a_power_law():
    results = [
        {
            "model": "a",
            "variant": str(n),
            "learning_rate": 1,
            "parameters": n,
            "heldout_loss": 5 * n**-0.25,
        }
        for n in (10, 100, 1000)
    ]
    study = types.SimpleNamespace(variants={"10": {}, "100": {}, "1000": {}})
    find = report.lookup(study, results)
    assert abs(find("exponent", "a") - 0.25) < 1e-6 and find("exponent", "b") is None
    # Without one of the sizes, or with one that was stopped, there is no exponent to tell.
    assert report.lookup(study, results[:2])("exponent", "a") is None
    results[2] |= {"stopped": 5}
    assert report.lookup(study, results)("exponent", "a") is None


def test_a_quantity_is_of_runs_that_have_all_ended():
    def run(model, variant, **more):
        return {"model": model, "variant": variant} | more

    planned = [
        types.SimpleNamespace(name=name, variant=variant)
        for name in "ab"
        for variant in ("wide", "narrow")
        for _ in range(2)  # seeds
    ]
    results = [run("a", "wide"), run("a", "wide"), run("a", "narrow"), run("b", "wide")]
    results += [run("a", "narrow", stopped=5), run("b", "wide")]
    are_done = report.ended(types.SimpleNamespace(runs=lambda: iter(planned)), results)
    assert are_done("loss", "a", "wide") and are_done("loss over", "a", "wide", "b")
    assert not are_done("accuracy", "a", "narrow", "a test")
    assert not are_done("loss over", "b", "narrow", "a") and not are_done("loss", "b", "narrow")
    assert not are_done("exponent", "a")
    # A curve is there up to where its run was stopped.
    assert are_done("loss at step", "a", "narrow", 5)
    assert not are_done("loss at step", "b", "narrow", 5)
