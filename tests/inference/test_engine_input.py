"""Wrong input is met where it enters."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.inference.comparisons import (
    WARM,
    Wrong,
)
from tests.inference.tiny_model import CONFIG, language_model


@pytest.fixture(scope="module")
def lm():
    return language_model()


@pytest.mark.parametrize(
    "prompt, options, message",
    [
        ([], {}, "prompt is empty"),
        ("", {}, "prompt is empty"),
        ([5, 261], {}, "prompt holds token 261; ids are 0 to 260"),
        ([-1], {}, "prompt holds token -1"),
        ([5], {"max_new_tokens": -1}, "a whole number of at least 0, got -1"),
        ([5], {"max_new_tokens": 1.5}, "a whole number of at least 0, .*got 1.5|whole number"),
        ([5], {"stop": ["a", ""]}, "stop must hold strings, none of them empty, got ''"),
        ([5], {"stop": [7]}, "stop must hold strings, none of them empty, got 7"),
        ([5], {"stop_ids": range(17)}, "stop_ids holds 17 tokens; 16 are the most"),
        ([5.5], {}, "prompt holds token 5.5"),
        ([5], {"seed": -1}, "seed must be"),
        ([5], {"seed": 2**32}, "seed must be"),
        ([5], {"seed": 0.5}, "seed must be"),
        (
            [5],
            {"logprobs": 21},
            "logprobs must be a whole number of at least 0 and at most 20, got 21",
        ),
        ([5], {"deadline": 0}, "deadline must be a number above 0"),
        ([5], {"logit_bias": {261: 1.0}}, "logit_bias names token 261; ids are 0 to 260"),
        ([5], {"logit_bias": {5: float("nan")}}, r"logit_bias\[5\] must be a number of .* got nan"),
        ([5], {"logit_bias": {5: -1e39}}, r"must be a number of at least -1e\+30.*, got -1e\+39"),
        (
            [5],
            {"logit_bias": [1, 2]},
            r"logit_bias must be a dict from token ids to numbers, got \[1, 2",
        ),
        ([5], {"logit_bias": {"5": 1.0}}, "a token of logit_bias must be a whole number, got '5'"),
        ([5], {"stop_ids": 5}, "stop_ids must be a list of token ids, got 5"),
        ([5], {"seed": [1]}, r"seed must be a whole number in 0 \.\.\. 2\*\*32 - 1, got \[1\]"),
        ([5], {"seed": np.zeros(3, np.uint32)}, "seed must be a whole number"),
        ([5], {"allowed_tokens": []}, "allowed_tokens must be a list, not empty"),
        ([5], {"allowed_tokens": [-1]}, "allowed_tokens names token -1"),
        (
            [5],
            {"presence_penalty": float("inf")},
            "presence_penalty must be a number of .*, got inf",
        ),
        ([5], {"sampling": WARM, "top_k": 3}, "give sampling or top_k, not both"),
        ([5], {"sampling": Wrong("logits")}, r"method Wrong must draw one token.*float32\[261\]"),
        ([5], {"sampling": Wrong([])}, "method Wrong has no hash"),
    ],
)
def test_wrong_input_is_named_in_one_line_and_disturbs_nobody(lm, prompt, options, message):
    engine = lm.engine(slots=1)
    with pytest.raises(ValueError, match=message) as caught:
        engine.submit(prompt, **options)
    assert "\n" not in str(caught.value)
    assert engine.stats.submitted == 0


@dataclasses.dataclass(frozen=True)
class OfTheHost:
    """A way of drawing that cannot be mapped over rows."""

    def draw(self, logits, key):
        token = jax.ShapeDtypeStruct((), jnp.int32)
        return jax.pure_callback(lambda logits: np.int32(7), token, logits)


def test_a_method_that_cannot_be_mapped_over_rows_is_refused_before_it_meets_them(lm):
    engine = lm.engine(slots=2)
    with pytest.raises(NotImplementedError, match="vmap"):
        engine.submit([5], sampling=OfTheHost())
    assert engine.stats.submitted == 0


def test_wrong_options_and_engines_are_named(lm):
    with pytest.raises(TypeError, match="there is no option 'topk'; sampling has temperature"):
        lm.sample([[5]], topk=3)
    with pytest.raises(ValueError, match=r"SamplingConfig or an object with a method draw"):
        lm.sample([[5]], sampling=0.7)
    for options, message in (
        ({"slots": 0}, "slots must be a whole number of at least 1, got 0"),
        ({"burst": 0}, "burst must be"),
        ({"burst": None}, "burst must be a whole number of at least 1, got None"),
        ({"waiting": -1}, "waiting must be"),
        ({"seconds": "1"}, "seconds must be a number above 0, or None, got '1'"),
        ({"fill_first": "x"}, "fill_first must be true or false, got 'x'"),
        ({"prefix_cache": 2**20}, "prefix_cache must be a PrefixCache, got 1048576"),
    ):
        with pytest.raises(ValueError, match=message):
            lm.engine(**options)
    with pytest.raises(ValueError, match="2 seeds for 1 prompts"):
        lm.sample([[5]], seed=[1, 2])


def test_an_engine_waits_for_no_request_of_another(lm):
    engine, other = lm.engine(slots=1), lm.engine(slots=1)
    with pytest.raises(ValueError, match="request 0 is another engine's"):
        list(engine.as_ended([other.submit([5], 2)]))
    for options, message in (
        ({"texts": ()}, r"texts must be a list, not empty, or None, got \(\)"),
        ({"texts": 3}, "texts must be a list"),
        ({"longest": 0}, "longest must be a whole number of at least 1, or None, got 0"),
        ({"threads": 0}, "threads must be"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.compile_ahead(**options)


def test_a_context_of_another_shape_is_refused_before_it_meets_a_row(lm):
    context = language_model(CONFIG.replace(num_layers=3)).read([5, 6])
    with pytest.raises(ValueError, match="context is of a model of another shape; read the text"):
        lm.engine(slots=1).submit([7], context=context)
