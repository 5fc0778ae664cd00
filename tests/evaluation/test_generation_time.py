"""The comparison of generated answers between trees, with processes that are made up."""

from tests.evaluation import generation_time


def test_a_row_has_the_best_times_and_the_answers_that_differ(monkeypatch):
    def run(tree, *_):
        now = tree == generation_time.ROOT
        took = {"seconds": 9.0, "cpu_seconds": 3.0 if now else 6.0}
        return {
            task: took | {"answers": ["a", "b" if now else "c"]} for task in generation_time.TASKS
        }

    commands = []
    monkeypatch.setattr(generation_time, "_run", run)
    monkeypatch.setattr(
        generation_time.subprocess, "run", lambda command, check: commands.append(command[4])
    )
    rows = generation_time.compare("f20d1e0", "data", 2, 8, "float32", pairs=2)
    assert commands == ["add", "remove"]
    assert [row["task"] for row in rows] == list(generation_time.TASKS)
    for row in rows:
        assert row["share"] == 0.5 and row["now_cpu_seconds"] == [3.0, 3.0]
        assert (row["questions"], row["same"], row["others"]) == (2, 1, [("c", "b")])
