"""Two texts, one under the other, with what differs marked. Texts in, escaped markup out; knows no models."""

from __future__ import annotations

from difflib import SequenceMatcher

from markupsafe import Markup

LONGEST = 600  # characters shown: more than a few lines are not compared by eye
VISIBLE = str.maketrans({"\n": "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}", "\t": "\N{RIGHTWARDS ARROW TO BAR}"})
SPACE = str.maketrans({" ": "\N{MIDDLE DOT}"})


def differing(original: str, guess: str) -> tuple[Markup, Markup]:
    """Both texts, what the other lacks marked: ends of lines and tabs as signs, spaces as dots where they differ."""
    original, guess = original[:LONGEST], guess[:LONGEST]
    steps = SequenceMatcher(None, original, guess, autojunk=False).get_opcodes()
    ours = [_marked(original[a:b], tag != "equal") for tag, a, b, _, _ in steps]
    theirs = [_marked(guess[a:b], tag != "equal") for tag, _, _, a, b in steps]
    return Markup("").join(ours), Markup("").join(theirs)


def _marked(text: str, differs: bool) -> Markup:
    shown = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text.translate(VISIBLE))
    if not (shown and differs):
        return Markup.escape(shown)
    return Markup("<mark>{}</mark>").format(shown.translate(SPACE))
