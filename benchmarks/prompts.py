"""What the benchmarks ask: conversations that begin unlike any other of the same run. Pure.

An engine that keeps beginnings would win on prompts that start alike, and so each one opens with a name that
no other has. Even the system message differs: without one many chat templates put in their own, the same for
all.
"""

from __future__ import annotations

from random import Random

from p2pmesh.query import Message

Conversation = tuple[Message, ...]

_CONSONANTS = "bdfgklmnprstvz"
_VOWELS = "aeiou"
_SYLLABLES = tuple(c + v for c in _CONSONANTS for v in _VOWELS)
_THINGS = (
    "river",
    "mountain",
    "engine",
    "garden",
    "planet",
    "violin",
    "market",
    "harbour",
    "winter",
    "copper",
    "lantern",
    "bridge",
    "forest",
    "clock",
    "island",
    "letter",
    "kitchen",
    "desert",
    "tower",
    "mirror",
    "orchard",
    "railway",
    "library",
    "storm",
)
_PLACES = (
    "valley",
    "castle",
    "village",
    "school",
    "museum",
    "theatre",
    "station",
    "factory",
    "cathedral",
    "farm",
)


class Prompts:
    """One run's supply of conversations. The same seed gives the same ones."""

    def __init__(self, seed: int = 1) -> None:
        self._random = Random(seed)
        self._used: set[str] = set()

    def name(self) -> str:
        """Return a word that was not given before: three syllables."""
        while True:
            word = "".join(self._random.choices(_SYLLABLES, k=3)).capitalize()
            if word not in self._used:
                self._used.add(word)
                return word

    def story(self) -> Conversation:
        """Return a request of about 55 tokens that makes even a small model write on and on."""
        one, two = self._random.sample(_THINGS, 2)
        return (
            Message("system", f"{self.name()} tells long stories."),
            Message(
                "user",
                f"Write a very long story about a {one}, a {two} and an old {self._random.choice(_PLACES)}. "
                "Describe each day in detail, let many people speak, and never come to an end.",
            ),
        )

    def stories(self, count: int) -> list[Conversation]:
        """Return so many of them."""
        return [self.story() for _ in range(count)]

    def long(self, words: int) -> Conversation:
        """Return a prompt of so many words, no two alike."""
        listed = " ".join(self.name() for _ in range(words))
        return (
            Message("system", f"{self.name()} keeps lists."),
            Message("user", f"Which of these is a town? {listed}"),
        )

    def rules(self, sentences: int) -> str:
        """Return a system prompt of so many sentences, each about somebody else."""
        return " ".join(
            f"{self.name()} answers questions about the {self._random.choice(_THINGS)} in one sentence."
            for _ in range(sentences)
        )

    def question(self) -> str:
        """Return a short question nobody has asked before."""
        return f"{self.name()} asks: what is the use of a {self._random.choice(_THINGS)}?"
