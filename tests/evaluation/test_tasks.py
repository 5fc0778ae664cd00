"""Each of our tasks on made-up questions: all right is 1, all wrong is 0, in between is between."""

import pytest

from griffin_jax.evaluation import sandbox
from griffin_jax.evaluation.local_data import card_task_manager, local_tasks
from griffin_jax.evaluation.tasks import bbh, coreference, gsm8k, short_answers
from tests.evaluation import made_up, oracle, prompts

ACCURACIES = {
    "griffin_social_iqa": ("acc,none", "acc_norm,none"),
    "griffin_boolq": ("acc,none", "acc_prior,none"),
    "griffin_openbookqa": ("acc,none", "acc_norm,none", "acc_prior,none"),
    "griffin_triviaqa": ("exact_match,none",),
    "griffin_nq_open": ("exact_match,none",),
    "griffin_humaneval": ("pass@1,create_test",),
    "griffin_mbpp": ("pass_at_1,none",),
    "griffin_gsm8k": ("exact_match,none",),
    "griffin_agieval": ("acc,none",),
    "griffin_bbh": ("exact_match,get-answer",),
    "griffin_bbq_ambig": ("acc,none",),
    "griffin_bbq_disambig": ("acc,none",),
    "griffin_winogender": ("acc,none",),
    "griffin_winobias_1_2": ("acc,none", "acc_pro,none", "acc_anti,none"),
    "griffin_winobias_2_2": ("acc,none", "acc_pro,none", "acc_anti,none"),
}
ANSWERS = {
    "griffin_triviaqa": lambda doc: f" the {doc['answer']['aliases'][0].upper()}!\nQuestion:",
    "griffin_nq_open": lambda doc: f" {doc['answer'][-1]}.",
    "griffin_humaneval": lambda doc: doc["canonical_solution"],
    "griffin_mbpp": lambda doc: doc["code"],
    "griffin_gsm8k": lambda doc: (
        f" The answer is 7? No. The answer is ${doc['answer'].partition('#### ')[2]}.00. In 3 steps."
    ),
}


def answer(task_name, doc):
    if task_name.startswith("griffin_bbh"):
        return f"Quite so: 1, 2. So the answer is {doc['target']}."
    return ANSWERS[task_name](doc)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return made_up.write(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def loaded(data_dir):
    return local_tasks(ACCURACIES, data_dir)


def test_a_model_that_is_always_right_scores_1(loaded):
    results = oracle.run(loaded, lambda doc: True, answer)
    for name, metrics in ACCURACIES.items():
        assert {key: results[name][key] for key in metrics} == dict.fromkeys(metrics, 1.0), name


def test_a_model_that_is_always_wrong_scores_0(loaded):
    results = oracle.run(loaded, lambda doc: False, answer)
    for name, metrics in ACCURACIES.items():
        assert {key: results[name][key] for key in metrics} == dict.fromkeys(metrics, 0.0), name


def test_what_is_right_half_of_the_time_has_a_standard_error(loaded):
    one = {"griffin_nq_open": loaded["griffin_nq_open"]}
    results = oracle.run(one, lambda doc: doc["question"].startswith("who"), answer)
    assert results["griffin_nq_open"]["exact_match,none"] == 0.5
    assert results["griffin_nq_open"]["exact_match_stderr,none"] == pytest.approx(0.5)


def test_winobias_tells_stereotypes_apart(loaded):
    names = ("griffin_winobias_1_2", "griffin_winobias_2_2")
    results = oracle.run({name: loaded[name] for name in names}, lambda d: d["stereotype"] == "pro")
    for name in names:
        found = [results[name][f"{key},none"] for key in ("acc", "acc_pro", "acc_anti")]
        assert found == [0.5, 1.0, 0.0]


def test_groups_weigh_as_their_authors_do(loaded):
    """BBH by questions, AGIEval by subsets: one subset is right, of 3 in 29 and of 9 in 41 rows."""
    groups = {name: loaded[name] for name in ("griffin_bbh", "griffin_agieval")}

    def right(doc):
        return "word_sorting" in doc.get("input", "") or "aqua-rat" in doc.get("query", "")

    results = oracle.run(groups, right, answer)
    assert results["griffin_bbh"]["exact_match,get-answer"] == pytest.approx(3 / 29)
    assert results["griffin_agieval"]["acc,none"] == pytest.approx(1 / 7)


def test_every_task_has_a_version_and_a_known_name(loaded):
    manager = card_task_manager()
    ours = [name for name in manager.all_tasks if name.startswith("griffin_")]
    assert set(ACCURACIES) <= set(ours)
    assert len(ours) == len(ACCURACIES) + 27 + 8 + 3  # subsets, and the tasks with scorers
    for task in loaded.values():
        leaves = [task] if not hasattr(task, "get_all_tasks") else task.get_all_tasks()
        assert all(leaf.VERSION == 1.0 for leaf in leaves)


def test_programs_run_only_with_permission(loaded, monkeypatch):
    monkeypatch.setattr(sandbox, "run_all", lambda *_, **__: pytest.fail("a program was run"))
    task_dict = card_task_manager().load([loaded["griffin_humaneval"], loaded["griffin_mbpp"]])
    with pytest.raises(ValueError, match="confirm_run_unsafe_code"):
        oracle.evaluate(oracle.Oracle(task_dict["tasks"], lambda doc: True, answer), task_dict)


def contexts(task, limit=None):
    task.set_fewshot_seed(1234)
    task.build_all_requests(limit=limit)
    return [instance.args[0] for instance in task.instances]


def test_priors_are_asked_after_answer_alone(loaded):
    task = loaded["griffin_boolq"]
    passage = "Salt is a mineral.\nQuestion: is salt a mineral?\nAnswer:"
    assert contexts(task, 1) == [passage, passage, "Answer:", "Answer:"]
    assert [instance.args[1] for instance in task.instances] == [" no", " yes"] * 2
    # " no" is as likely as " yes" here, but likelier than it is without a question.
    doc = task.instances[0].doc
    scores = [(-5.0, False), (-5.0, False), (-9.0, False), (-2.0, False)]
    assert task.process_results(doc, scores) == {"acc": 0.0, "acc_prior": 0.0}
    scores = [(-4.0, False), (-5.0, False), (-2.0, False), (-9.0, False)]
    assert task.process_results(doc, scores) == {"acc": 0.0, "acc_prior": 1.0}


def test_the_examples_of_gsm8k_are_joined_as_in_the_colab(loaded):
    context = contexts(loaded["griffin_gsm8k"], 1)[0]
    examples = "\n\n".join(f"Q: {row['question']}\nA: {row['answer']}" for row in gsm8k.examples())
    assert len(gsm8k.examples()) == 8
    assert context == (
        "As an expert problem solver solve step by step the following mathematical questions."
        f"\n\n{examples}\n\nQ: Two boxes of 700 nails: how many?\nA:"
    )


def test_mbpp_shows_the_tasks_2_to_4_with_their_code(loaded):
    context = contexts(loaded["griffin_mbpp"], 1)[0]
    parts = context.split("\n\nYou are an expert Python programmer, and here is your task: ")
    assert [part.count("[DONE]") for part in parts] == [1, 1, 1, 0]
    assert [f"add {number}." in parts[i] for i, number in enumerate((2, 3, 4, 11))] == [True] * 4
    assert parts[2].endswith("[BEGIN]\ndef add_4(x):\r\n    return x + 4\n[DONE]")
    assert context.endswith("assert add_11(2) == 13\n[BEGIN]\n")


def test_bbq_shows_examples_of_other_templates_and_of_both_conditions(loaded):
    task = loaded["griffin_bbq_ambig"]
    assert all(doc["context_condition"] == "ambig" for doc in task.eval_docs)
    seen = set()
    for seed in range(20):
        task.set_fewshot_seed(seed)
        for doc in task.eval_docs:
            (example,) = task.sampler.sample(1, eval_doc=doc)
            key = ("category", "question_index")
            assert [example[k] for k in key] != [doc[k] for k in key]
            seen.add(example["context_condition"])
    assert seen == {"ambig", "disambig"}


def test_agieval_shows_other_rows_of_the_same_file(loaded):
    tasks = {task.task_name: task for task in loaded["griffin_agieval"].get_all_tasks()}
    for name, shots in (("griffin_agieval_aqua_rat", 5), ("griffin_agieval_sat_en", 3)):
        task = tasks[name]
        for context, doc in zip(contexts(task)[::4], task.eval_docs, strict=True):
            assert context.endswith("\n\n" + doc["query"])
            assert context.count(doc["query"]) == 1
            assert context.count("the answer is") == shots + 1


def test_bbh_takes_the_last_answer_whole():
    assert bbh.answer_of("Q is odd. So the answer is True") == "True"
    assert bbh.answer_of("the answer is no. Wait: the answer is (A).\nMore") == "(A)"
    assert bbh.answer_of("so the answer is ] ) }.") == "] ) }"
    assert bbh.answer_of("no mark at all") == "no mark at all"
    assert bbh.answer_of("") == ""


def test_numbers_are_found_as_in_the_colab():
    assert gsm8k.answer_of("3 and 4. The answer is 1,234.5, not 6") == "1234.5"
    assert gsm8k.answer_of("The answer is 5. The answer is unclear, 4 or 3") == "4"
    assert gsm8k.answer_of("The answer is seven, which is 3 + -4") == "3"
    assert gsm8k.answer_of("3 apples and 4 pears") == "4"
    assert gsm8k.answer_of("nothing") == ""


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (" The  Beatles", True),
        ("beatles.\nQuestion: next", True),
        ("the Beatles, of course", False),
        ("Thebeatles", False),
        ("", False),
    ],
)
def test_short_answers_are_compared_without_case_articles_and_punctuation(said, match):
    doc = {"answer": {"value": "The Beatles", "aliases": ["Beatles"]}}
    assert short_answers.triviaqa_results(doc, [said]) == {"exact_match": float(match)}


def test_winobias_rows_of_the_hub_become_the_same_questions():
    row = {
        "tokens": [
            "The",
            "CEO",
            "thanked",
            "the",
            "construction",
            "worker",
            "because",
            "she",
            "had",
            "helped",
            ".",
        ],
        "coreference_clusters": ["3", "5", "7", "7"],
    }
    local = {
        "sentence": "The CEO thanked the construction worker because she had helped.",
        "mentions": ["the construction worker", "she"],
    }
    expected = {
        "sentence": local["sentence"],
        "pronoun": "she",
        "options": ["CEO", "construction worker"],
        "label": 1,
        "stereotype": "anti",
    }
    assert coreference._question(row, "anti") == coreference._question(local, "anti") == expected
    with pytest.raises(ValueError, match="doesn't name two occupations"):
        coreference._question(local | {"sentence": "The CEO slept."}, "anti")


@prompts.needs_samples
def test_canonical_solutions_of_the_samples_pass_and_empty_ones_fail():
    names = {"griffin_humaneval": "pass@1,create_test", "griffin_mbpp": "pass_at_1,none"}
    loaded = local_tasks(names, prompts.BENCHMARKS, limit=20)
    right = oracle.run(loaded, lambda doc: True, answer)
    empty = oracle.run(loaded, lambda doc: False, answer)
    for name, metric in names.items():
        assert right[name]["sample_len"] == 20
        assert (right[name][metric], empty[name][metric]) == (1.0, 0.0)
