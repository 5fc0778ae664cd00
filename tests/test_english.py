"""The project's English: American spelling, and sentences that begin with their subject or verb."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("griffin_jax", "experiments", "configs", "tests", "docs", "dev")
FILES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(p for name in FOLDERS for p in (ROOT / name).rglob("*"))]
    if path.suffix in (".py", ".md") and path != Path(__file__)
)

# What British spelling ends in -ise, by stems; others by words. Adverbs in -wards are British, too.
VERBS = [
    "authoris",
    "categoris",
    "characteris",
    "customis",
    "dequantis",
    "equalis",
    "factoris",
    "finalis",
    "generalis",
    "initialis",
    "linearis",
    "localis",
    "materialis",
    "maximis",
    "memoris",
    "minimis",
    "normalis",
    "optimis",
    "organis",
    "parallelis",
    "penalis",
    "prioritis",
    "quantis",
    "randomis",
    "realis",
    "recognis",
    "regularis",
    "serialis",
    "specialis",
    "stabilis",
    "standardis",
    "summaris",
    "symmetris",
    "synchronis",
    "tokenis",
    "utilis",
    "vectoris",
    "visualis",
]
WORDS = (
    "afterwards|analyse[ds]?|artefacts?|backwards|behaviours?|catalogues?|cent(?:re|red|ring)|"
    "colours?|defence|favour(?:s|ed|ing|ite)?|forwards|fulfil|grey|honours?|judgements?|"
    "label(?:led|ling)|learnt|licence|maths|model(?:led|ling)|neighbour(?:s|ing)?|programmes?|"
    "towards|travelled|whilst"
)
BRITISH = re.compile(
    rf"\w*(?:{'|'.join(VERBS)})(?:e|ed|es|er|ers|ing|ation|ations|able)|{WORDS}", re.IGNORECASE
)
# An argument's, an attribute's or a function's documentation, and a comment.
OF = re.compile(r'^\s*(?:"""|#\s+|[*`\w, ]+: )Of\b', re.MULTILINE)


def british(text):
    """Returns the words of a text, and of names in it, that are British spelling."""
    return {
        word for word in set(re.findall("[A-Z]?[a-z]+|[A-Z]+", text)) if BRITISH.fullmatch(word)
    }


@pytest.mark.parametrize("text", ["dequantise(1)", "NormalisedGate", "IS_RECOGNISED", "behaviour"])
def test_british_words_are_found_also_in_names(text):
    assert len(british(f"x = {text}")) == 1


@pytest.mark.parametrize("text", ["raise", "quantize", "otherwise", "precise", "color", "noise"])
def test_american_words_are_no_british_ones(text):
    assert not british(f"x = {text}(1)")


def test_spelling_is_american():
    texts = ((path, path.read_text(encoding="utf-8")) for path in FILES)
    found = {str(path.relative_to(ROOT)): words for path, text in texts if (words := british(text))}
    assert not found, f"British spelling: {found}"


def test_no_documentation_begins_with_of():
    found = [
        f"{path.relative_to(ROOT)}: {match.group().strip()}"
        for path in FILES
        if path.suffix == ".py"
        for match in OF.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found, f"say what it is the property of, not only of what: {found}"
