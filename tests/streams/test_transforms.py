"""The transformations on awkward input, and the sentences they are applied to."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ftn_jax.streams.text.sentences import SENTENCES, SPLITS
from ftn_jax.streams.text.transforms import TRANSFORMS, transform

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


# What each further task makes of these, worked out by hand.
TEXTS = (
    "The cat sat.",
    'Wait... "Stop!" (now); wiki-girl, go?',
    "42 Apples, 7th of 1999",
    "Don't I'd 'Tis dogs'",
    "",
    "  Two   big\tDogs\n",
    "Café Übung straße",
)
FURTHER = {
    "title_case": (
        "The Cat Sat.",
        'Wait... "stop!" (now); Wiki-girl, Go?',
        "42 Apples, 7th Of 1999",
        "Don't I'd 'tis Dogs'",
        "",
        "Two Big Dogs",
        "Café Übung Straße",
    ),
    "initials": (
        "T c s",
        'W " ( w g',
        "4 A 7 o 1",
        "D I ' d",
        "",
        "T b D",
        "C Ü s",
    ),
    "no_vowels": (
        "Th ct st.",
        'Wt... "Stp!" (nw); wk-grl, g?',
        "42 ppls, 7th f 1999",
        "Dn't 'd 'Ts dgs'",
        "",
        "  Tw   bg\tDgs\n",
        "Cfé Übng strß",
    ),
    "sorted_words": (
        "cat sat. The",
        '"Stop!" (now); go? Wait... wiki-girl,',
        "1999 42 7th Apples, of",
        "'Tis dogs' Don't I'd",
        "",
        "big Dogs Two",
        "Café straße Übung",
    ),
    "rot13": (
        "Gur png fng.",
        'Jnvg... "Fgbc!" (abj); jvxv-tvey, tb?',
        "42 Nccyrf, 7gu bs 1999",
        "Qba'g V'q 'Gvf qbtf'",
        "",
        "  Gjb   ovt\tQbtf\n",
        "Pnsé Üohat fgenßr",
    ),
    "reverse_letters": (
        "ehT tac .tas",
        '...tiaW "!potS" ;)won( ,lrig-ikiw ?og',
        "24 ,selppA ht7 fo 9991",
        "t'noD d'I siT' 'sgod",
        "",
        "owT gib sgoD",
        "éfaC gnubÜ eßarts",
    ),
    "snake_case": (
        "the_cat_sat.",
        'wait..._"stop!"_(now);_wiki-girl,_go?',
        "42_apples,_7th_of_1999",
        "don't_i'd_'tis_dogs'",
        "",
        "two_big_dogs",
        "café_übung_straße",
    ),
    "dashes": (
        "The-cat-sat.",
        'Wait...-"Stop!"-(now);-wiki-girl,-go?',
        "42-Apples,-7th-of-1999",
        "Don't-I'd-'Tis-dogs'",
        "",
        "Two-big-Dogs",
        "Café-Übung-straße",
    ),
    "swap_case": (
        "tHE CAT SAT.",
        'wAIT... "sTOP!" (NOW); WIKI-GIRL, GO?',
        "42 aPPLES, 7TH OF 1999",
        "dON'T i'D 'tIS DOGS'",
        "",
        "  tWO   BIG\tdOGS\n",
        "cAFÉ üBUNG STRASSE",
    ),
    "loud_vowels": (
        "thE cAt sAt.",
        'wAIt... "stOp!" (nOw); wIkI-gIrl, gO?',
        "42 ApplEs, 7th Of 1999",
        "dOn't I'd 'tIs dOgs'",
        "",
        "  twO   bIg\tdOgs\n",
        "cAfé übUng strAßE",
    ),
    "no_spaces": (
        "Thecatsat.",
        'Wait..."Stop!"(now);wiki-girl,go?',
        "42Apples,7thof1999",
        "Don'tI'd'Tisdogs'",
        "",
        "TwobigDogs",
        "CaféÜbungstraße",
    ),
    "last_word_first": (
        "sat. The cat",
        'go? Wait... "Stop!" (now); wiki-girl,',
        "1999 42 Apples, 7th of",
        "dogs' Don't I'd 'Tis",
        "",
        "Dogs Two big",
        "straße Café Übung",
    ),
    "swapped_pairs": (
        "cat The sat.",
        '"Stop!" Wait... wiki-girl, (now); go?',
        "Apples, 42 of 7th 1999",
        "I'd Don't dogs' 'Tis",
        "",
        "big Two Dogs",
        "Übung Café straße",
    ),
    "word_lengths": (
        "3 3 4",
        "7 7 6 10 3",
        "2 7 3 2 4",
        "5 3 4 5",
        "",
        "3 3 4",
        "4 5 6",
    ),
    "every_other_word": (
        "The sat.",
        "Wait... (now); go?",
        "42 7th 1999",
        "Don't 'Tis",
        "",
        "Two Dogs",
        "Café straße",
    ),
    "numbered": (
        "1 The 2 cat 3 sat.",
        '1 Wait... 2 "Stop!" 3 (now); 4 wiki-girl, 5 go?',
        "1 42 2 Apples, 3 7th 4 of 5 1999",
        "1 Don't 2 I'd 3 'Tis 4 dogs'",
        "",
        "1 Two 2 big 3 Dogs",
        "1 Café 2 Übung 3 straße",
    ),
    "pig_latin": (
        "heTay atcay at.say",
        'ait...Way Stop!""ay now);(ay iki-girl,way o?gay',
        "24ay pples,Aay th7ay foay 9991ay",
        "on'tDay 'dIay Tis'ay ogs'day",
        "",
        "woTay igbay ogsDay",
        "aféCay bungÜay traßesay",
    ),
    "doubted": (
        "Is it true? The cat sat. Surely not!",
        'Is it true? Wait... "Stop!" (now); wiki-girl, go? Surely not!',
        "Is it true? 42 Apples, 7th of 1999 Surely not!",
        "Is it true? Don't I'd 'Tis dogs' Surely not!",
        "Is it true? Surely not!",
        "Is it true? Two big Dogs Surely not!",
        "Is it true? Café Übung straße Surely not!",
    ),
}


def test_transforms_stand_in_the_stream_order():
    assert list(TRANSFORMS) == [*STREAM_ORDER, *FURTHER] and len(TRANSFORMS) == 24


@pytest.mark.parametrize("column, name", list(enumerate(STREAM_ORDER)))
@pytest.mark.parametrize("text", TARGETS)
def test_awkward_input(text, column, name):
    assert TRANSFORMS[name](text) == TARGETS[text][column]


@pytest.mark.parametrize("name", FURTHER)
def test_further_transforms_on_awkward_texts(name):
    assert tuple(map(TRANSFORMS[name], TEXTS)) == FURTHER[name]


def test_transformations_follow_one_another():
    text = "It's 9 a.m.\nCafe"
    assert transform("upper")(text) == "IT'S 9 A.M.\nCAFE"
    assert transform("reverse_words+upper")(text) == "CAFE A.M. 9 IT'S"
    assert transform("double_words+starred_vowels+reverse_words")("so am I") == "* * *m *m s* s*"
    with pytest.raises(KeyError, match="shout"):
        transform("upper+shout")


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
