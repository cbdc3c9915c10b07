"""Deterministic text transformations; each is a task of the style stream.

`upper` to `pirate` are the paper's six (section 3, Experiment 2; appendix E); the others make longer streams. Each
takes a text and returns its target. There are two kinds:

* letter level (`upper`, `lower`, `starred_vowels`, `no_vowels`, `rot13`, `swap_case`, `loud_vowels`): whitespace,
  digits and punctuation don't change;
* word level (the others): a word is a run of anything but whitespace, so punctuation and apostrophes stay attached to
  it; the words are joined again by the task's separator, which drops leading, trailing and repeated whitespace.

An empty text stays empty, except for what a task wraps around it.
"""

import codecs
import functools
from collections.abc import Callable

_VOWELS = "aeiouAEIOU"
_STARRED = str.maketrans(dict.fromkeys(_VOWELS, "*"))


def upper(text: str) -> str:
    """Upper-cases by Unicode's rules, which can lengthen the text ("ß" gives "SS")."""
    return text.upper()


def lower(text: str) -> str:
    """Lower-cases by Unicode's rules."""
    return text.lower()


def reverse_words(text: str) -> str:
    """Reverses the order of the words, not their letters: "The cat sat." gives "sat. cat The"."""
    return " ".join(reversed(text.split()))


def double_words(text: str) -> str:
    """Prints each word twice: "The cat sat." gives "The The cat cat sat. sat."."""
    return " ".join(f"{word} {word}" for word in text.split())


def starred_vowels(text: str) -> str:
    """Replaces each of aeiouAEIOU by "*"; y and accented letters stay. The length does not change."""
    return text.translate(_STARRED)


def pirate(text: str) -> str:
    """Wraps the words: "The cat sat." gives "Arr! The cat sat. matey!"."""
    return " ".join(["Arr!", *text.split(), "matey!"])


def title_case(text: str) -> str:
    """Capitalises each word: "The cat sat." gives "The Cat Sat."; a word's other letters become lower case."""
    return " ".join(word[:1].upper() + word[1:].lower() for word in text.split())


def initials(text: str) -> str:
    """Keeps the first character of each word: "The cat sat." gives "T c s"."""
    return " ".join(word[0] for word in text.split())


def no_vowels(text: str) -> str:
    """Drops each of aeiouAEIOU: "The cat sat." gives "Th ct st."."""
    return "".join(letter for letter in text if letter not in _VOWELS)


def sorted_words(text: str) -> str:
    """Sorts the words, ignoring case; equal words stay in order: "The cat sat." gives "cat sat. The"."""
    return " ".join(sorted(text.split(), key=str.casefold))


def rot13(text: str) -> str:
    """Shifts each of a-z and A-Z by 13 places: "The cat sat." gives "Gur png fng."."""
    return codecs.encode(text, "rot13")


def reverse_letters(text: str) -> str:
    """Reverses the letters of each word, not the words' order: "The cat sat." gives "ehT tac .tas"."""
    return " ".join(word[::-1] for word in text.split())


def snake_case(text: str) -> str:
    """Joins the lower-cased words by "_": "The cat sat." gives "the_cat_sat."."""
    return "_".join(text.lower().split())


def dashes(text: str) -> str:
    """Joins the words by "-": "The cat sat." gives "The-cat-sat."."""
    return "-".join(text.split())


def swap_case(text: str) -> str:
    """Upper case becomes lower case, and the other way round: "The cat sat." gives "tHE CAT SAT."."""
    return text.swapcase()


def loud_vowels(text: str) -> str:
    """Upper-cases each of aeiou and lower-cases all other letters: "The cat sat." gives "thE cAt sAt."."""
    return "".join(letter.upper() if letter in _VOWELS else letter.lower() for letter in text)


def no_spaces(text: str) -> str:
    """Joins the words: "The cat sat." gives "Thecatsat."."""
    return "".join(text.split())


def last_word_first(text: str) -> str:
    """Puts the last word before the others: "The cat sat." gives "sat. The cat"."""
    words = text.split()
    return " ".join(words[-1:] + words[:-1])


def swapped_pairs(text: str) -> str:
    """Swaps the first word with the second, the third with the fourth: "The cat sat." gives "cat The sat."."""
    words = text.split()
    return " ".join(word for i in range(0, len(words), 2) for word in reversed(words[i : i + 2]))


def word_lengths(text: str) -> str:
    """Counts each word's characters: "The cat sat." gives "3 3 4"."""
    return " ".join(str(len(word)) for word in text.split())


def every_other_word(text: str) -> str:
    """Keeps the first word, the third, the fifth: "The cat sat." gives "The sat."."""
    return " ".join(text.split()[::2])


def numbered(text: str) -> str:
    """Puts its number before each word: "The cat sat." gives "1 The 2 cat 3 sat."."""
    return " ".join(f"{i} {word}" for i, word in enumerate(text.split(), 1))


def pig_latin(text: str) -> str:
    """Moves each word's first character to its end, with "ay": "The cat sat." gives "heTay atcay at.say"."""
    return " ".join(f"{word[1:]}{word[0]}ay" for word in text.split())


def doubted(text: str) -> str:
    """Wraps the words: "The cat sat." gives "Is it true? The cat sat. Surely not!"."""
    return " ".join(["Is it true?", *text.split(), "Surely not!"])


_SIX = (upper, lower, reverse_words, double_words, starred_vowels, pirate)
_FURTHER = (
    *(title_case, initials, no_vowels, sorted_words, rot13, reverse_letters, snake_case, dashes, swap_case),
    *(loud_vowels, no_spaces, last_word_first, swapped_pairs, word_lengths, every_other_word, numbered, pig_latin),
    doubted,
)
TRANSFORMS: dict[str, Callable[[str], str]] = {write.__name__: write for write in (*_SIX, *_FURTHER)}
"""Task name -> transformation: the paper's six in the order of its stream, then the others."""


def transform(name: str) -> Callable[[str], str]:
    """The transformation of a task: one of `TRANSFORMS`, or several joined by "+", applied from left to right.

    "reverse_words+upper" of "The cat sat." gives "SAT. CAT THE".

    Raises:
      KeyError: names an unknown transformation.
    """
    parts = [TRANSFORMS[part] for part in name.split("+")]
    return lambda text: functools.reduce(lambda written, write: write(written), parts, text)
