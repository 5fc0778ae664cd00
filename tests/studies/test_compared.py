"""Models that `experiments.compare_training` has trained, as runs of a study."""

from griffin_jax.studies import compared


def test_a_comparison_is_a_run_a_model():
    places = [
        {"from": 0, "to": 64, "nats_per_token": 4.0},
        {"from": 64, "to": 256, "nats_per_token": 2.0},
    ]
    of = {"parameters": 5, "heldout_loss": 2.4, "tokens": 60, "tokens_per_second": 2.0}
    found = {name: of | {"loss_by_position": places} for name in ("Griffin", "Hawk")}
    runs = compared.results(found, "v")
    assert [(x["model"], x["variant"], x["seconds"]) for x in runs] == [
        ("Griffin", "v", 30.0),
        ("Hawk", "v", 30.0),
    ]
    assert runs[0]["tests"] == {
        "length 256": {"edges": [0, 64, 256], "by_position": [4.0, 2.0], "loss": 2.5}
    }
