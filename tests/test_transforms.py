"""The six transformations on awkward input, and the sentences they are applied to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftn_jax.streams.sentences import SENTENCES, SPLITS
from ftn_jax.streams.transforms import TRANSFORMS

STREAM_ORDER = ["upper", "lower", "reverse_words", "double_words", "starred_vowels", "pirate"]

# text -> the six targets in the stream's order, worked out by hand
TARGETS = {
    "The cat sat.": (
        "THE CAT SAT.",
        "the cat sat.",
        "sat. cat The",
        "The The cat cat sat. sat.",
        "Th* c*t s*t.",
        "Arr! The cat sat. matey!",
    ),
    'Wait... "Stop!" (now); wiki-girl, go?': (
        'WAIT... "STOP!" (NOW); WIKI-GIRL, GO?',
        'wait... "stop!" (now); wiki-girl, go?',
        'go? wiki-girl, (now); "Stop!" Wait...',
        'Wait... Wait... "Stop!" "Stop!" (now); (now); wiki-girl, wiki-girl, go? go?',
        'W**t... "St*p!" (n*w); w*k*-g*rl, g*?',
        'Arr! Wait... "Stop!" (now); wiki-girl, go? matey!',
    ),
    "42 Apples, 7th of 1999": (
        "42 APPLES, 7TH OF 1999",
        "42 apples, 7th of 1999",
        "1999 of 7th Apples, 42",
        "42 42 Apples, Apples, 7th 7th of of 1999 1999",
        "42 *ppl*s, 7th *f 1999",
        "Arr! 42 Apples, 7th of 1999 matey!",
    ),
    "Don't I'd 'Tis dogs'": (
        "DON'T I'D 'TIS DOGS'",
        "don't i'd 'tis dogs'",
        "dogs' 'Tis I'd Don't",
        "Don't Don't I'd I'd 'Tis 'Tis dogs' dogs'",
        "D*n't *'d 'T*s d*gs'",
        "Arr! Don't I'd 'Tis dogs' matey!",
    ),
    "AEIOUYaeiouy": (
        "AEIOUYAEIOUY",
        "aeiouyaeiouy",
        "AEIOUYaeiouy",
        "AEIOUYaeiouy AEIOUYaeiouy",
        "*****Y*****y",
        "Arr! AEIOUYaeiouy matey!",
    ),
    "": ("", "", "", "", "", "Arr! matey!"),
    " \t\n": (" \t\n", " \t\n", "", "", " \t\n", "Arr! matey!"),
    "  Two   big\tDogs\n": (
        "  TWO   BIG\tDOGS\n",
        "  two   big\tdogs\n",
        "Dogs big Two",
        "Two Two big big Dogs Dogs",
        "  Tw*   b*g\tD*gs\n",
        "Arr! Two big Dogs matey!",
    ),
    "Café Übung straße": (
        "CAFÉ ÜBUNG STRASSE",
        "café übung straße",
        "straße Übung Café",
        "Café Café Übung Übung straße straße",
        "C*fé Üb*ng str*ß*",
        "Arr! Café Übung straße matey!",
    ),
}


def test_transforms_stand_in_the_stream_order():
    assert list(TRANSFORMS) == STREAM_ORDER


@pytest.mark.parametrize("column, name", list(enumerate(STREAM_ORDER)))
@pytest.mark.parametrize("text", TARGETS)
def test_awkward_input(text, column, name):
    assert TRANSFORMS[name](text) == TARGETS[text][column]


@given(st.text())
def test_reversing_twice_only_normalises_whitespace(text):
    reverse = TRANSFORMS["reverse_words"]
    assert reverse(reverse(text)) == " ".join(text.split())


@given(st.text())
def test_doubled_words_are_the_words_at_even_and_at_odd_places(text):
    doubled = TRANSFORMS["double_words"](text).split()
    assert doubled[::2] == doubled[1::2] == text.split()


@given(st.text(alphabet=st.sampled_from("aAeEiIoOuUyYbZ é'*1 \n")))
def test_starred_vowels_changes_vowels_only(text):
    starred = TRANSFORMS["starred_vowels"](text)
    assert len(starred) == len(text)
    for before, after in zip(text, starred, strict=True):
        assert after == ("*" if before in "aeiouAEIOU" else before)


@given(st.text())
def test_pirate_keeps_the_words_between_arr_and_matey(text):
    assert TRANSFORMS["pirate"](text).split() == ["Arr!", *text.split(), "matey!"]


def test_there_are_120_different_short_mixed_case_ascii_sentences():
    assert len(SENTENCES) == 120
    assert len({sentence.lower() for sentence in SENTENCES}) == 120
    for sentence in SENTENCES:
        assert sentence.isascii() and sentence == " ".join(sentence.split())
        assert any(c.isupper() for c in sentence) and any(c.islower() for c in sentence)
        assert 25 <= len(sentence) <= 48 and 5 <= len(sentence.split()) <= 11


def test_splits_are_a_partition_by_position():
    assert {split: len(part) for split, part in SPLITS.items()} == {"train": 80, "recovery": 20, "test": 20}
    assert set().union(*SPLITS.values()) == set(SENTENCES)
    assert SPLITS["train"][:5] == (*SENTENCES[:4], SENTENCES[6])
    assert SPLITS["recovery"][:2] == (SENTENCES[4], SENTENCES[10])
    assert SPLITS["test"][:2] == (SENTENCES[5], SENTENCES[11])


@pytest.mark.parametrize("split", ["train", "recovery", "test"])
def test_half_of_every_split_is_rich_in_rare_letters(split):
    rich = sum(len(set("jqxz") & set(sentence.lower())) >= 3 for sentence in SPLITS[split])
    assert 2 * rich == len(SPLITS[split])


def test_targets_of_every_sentence_differ_between_tasks():
    for sentence in SENTENCES:
        targets = {transform(sentence) for transform in TRANSFORMS.values()}
        assert len(targets) == len(TRANSFORMS) and sentence not in targets
