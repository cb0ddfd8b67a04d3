"""A grammar's rules: how GBNF writes them, and which of them would never end or cost llama.cpp too much.

Pure, and it knows no schema. llama.cpp follows every reading of what was written so far at once, a stack for
each: where alternatives begin alike, within alternatives that begin alike, they multiply. Five to the power
of five take it 1.4 s for one token, and four of them 0.07 s (measured); no time limit reaches into that call,
so it is reckoned before.
"""

from __future__ import annotations

import re

Rules = dict[str, list[list[str]]]
"""Alternatives of each rule: runs of atoms, each a rule's name or a terminal, with its repetition."""

GRAMMAR_BYTES_MAX = 65_536
"""Longest grammar, in bytes. llama.cpp reads one of 49 kB in 5 ms (measured)."""
RULES_MAX = 4_096
"""Most rules of a grammar: with its bytes, what keeps a schema from being compiled without end."""
STEPS_MAX = 2_000_000
"""Most steps to reckon how many readings may be open. They take 0.35 s; 480 optional properties are 930 000
(measured)."""
STACKS_MAX = 512
"""Most readings that may be open at once. To ask about a whole vocabulary of 49 152 takes 0.2 ms for each
(measured)."""
ALIKE_MAX = 64
"""Most objects and lists of which a value is one."""
SPACE = '" "?'
"""What may stand after a comma and a colon. More is a loop that a small model does not leave."""
_ATOM = re.compile(r"([a-z][a-z0-9-]*)(\?|\*|\{0,\d*\})?(?:\{\d+(?:,\d*)?\})?")
"""A rule's name in an atom, how it may be left out, if it may, and how often it must come."""


class GrammarError(ValueError):
    """The rules cannot be used; the text says why."""


def rule_of(atom: str) -> str:
    """Return the rule an atom stands for; "" for a terminal."""
    found = _ATOM.fullmatch(atom)
    return found[1] if found else ""


def literal(text: str) -> str:
    """Return `text` as a terminal, whatever is in it: nothing may break out of the quotes."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def write(rules: Rules) -> str:
    """Return `rules` as GBNF. Raises `GrammarError` for those that never end, or would cost too much."""
    _check_ends(rules)
    _check_stacks(rules)
    text = "".join(
        f"{name} ::= {' | '.join(' '.join(atoms) for atoms in alternatives)}\n"
        for name, alternatives in rules.items()
    )
    check_size(len(rules), len(text.encode()))
    return text


def size(alternatives: list[list[str]]) -> int:
    """Return how many bytes a rule takes in a grammar, at least; cheaper than to write it."""
    return sum(len(atom) + 1 for run in alternatives for atom in run)


def check_size(rules: int, length: int) -> None:
    """Refuse so many rules, or so many bytes of them."""
    if rules > RULES_MAX:
        raise GrammarError(f"its grammar comes to {rules} rules, at most {RULES_MAX}: shorten it")
    if length > GRAMMAR_BYTES_MAX:
        raise GrammarError(f"its grammar comes to {length} bytes, at most {GRAMMAR_BYTES_MAX}: shorten it")


def _check_ends(rules: Rules) -> None:
    """Refuse what has no end: an object that must hold itself, or a reference that leads to itself alone."""
    needed = {name: [_needed(run) for run in runs] for name, runs in rules.items()}
    if len(_ending(needed)) < len(rules) or len(_leading(rules)) < len(rules):
        raise GrammarError("a '$ref' leads back to itself, so that no answer would end: make it optional")


def _needed(run: list[str]) -> set[str]:
    """Return the rules without which there is no text of this alternative."""
    found = map(_ATOM.fullmatch, run)
    return {match[1] for match in found if match and not match[2]}


def _leading(rules: Rules) -> list[str]:
    """Return the rules, each after those it begins with; without those that begin with themselves."""
    return _ending({name: [{rule_of(run[0]) for run in runs} - {""}] for name, runs in rules.items()})


def _ending(needs: dict[str, list[set[str]]]) -> list[str]:
    """Return the names that end, in order: an alternative of each needs only such. Spends `needs`."""
    users: dict[str, list[tuple[str, set[str]]]] = {}
    for name, alternatives in needs.items():
        for alternative in alternatives:
            for need in sorted(alternative):
                users.setdefault(need, []).append((name, alternative))
    ready = [name for name, alternatives in needs.items() if not all(alternatives)]
    ended: dict[str, None] = {}
    while ready:
        name = ready.pop()
        if name not in ended:
            ended[name] = None
            for user, alternative in users.get(name, ()):
                alternative.discard(name)
                if not alternative:
                    ready.append(user)
    return list(ended)


def _check_stacks(rules: Rules) -> None:
    """Refuse rules under which more than `STACKS_MAX` readings could be open at once."""
    steps = 0
    openings: dict[str, dict[tuple[str, int], None]] = {}
    """What each rule may begin with: the alternatives, of whatever rule, that begin with a terminal."""
    for name in _leading(rules):
        found: dict[tuple[str, int], None] = {}
        for index, run in enumerate(rules[name]):
            begun = openings.get(rule_of(run[0]), {(name, index): None})
            found.update(begun)
            steps = _step(steps, len(begun))
        if len(found) > STACKS_MAX:
            raise GrammarError(f"at one place it may go on in {len(found)} ways, at most {STACKS_MAX}")
        openings[name] = found
    within = {
        name: [{rule_of(atom) for atom in run[1:]} - {""} for run in runs] for name, runs in rules.items()
    }
    texts = {name: [_opening_text(run) for run in runs] for name, runs in rules.items()}
    alike = {name: _alike([texts[rule][i] for rule, i in found]) for name, found in openings.items()}
    users: dict[str, list[str]] = {}
    for name, found in openings.items():
        held = [*within[name], *(within[rule][i] for rule, i in found)]
        steps = _step(steps, sum(map(len, held)))
        inside = set[str]().union(*held)
        for inner in sorted(inside):
            users.setdefault(inner, []).append(name)
    stacks = {name: len(found) for name, found in openings.items()}
    changed = list(rules)
    while changed:  # it ends: numbers only grow, and to STACKS_MAX at most
        inner = changed.pop()
        steps = _step(steps, len(users.get(inner, ())))
        for name in users.get(inner, ()):
            if stacks[name] < (count := alike[name] * stacks[inner]):
                if count > STACKS_MAX:
                    raise GrammarError(
                        "objects or lists of an 'anyOf' begin alike, and within them again, so that "
                        f"more than {STACKS_MAX} readings must be followed: let the first property of each "
                        "be a required constant of its own, or have fewer"
                    )
                stacks[name] = count
                changed.append(name)


def _step(steps: int, more: int) -> int:
    """Return the sum, while it is within bounds."""
    if steps + more > STEPS_MAX:
        raise GrammarError("its parts hold one another in too many ways: have fewer '$ref' and 'anyOf'")
    return steps + more


def _opening_text(run: list[str]) -> str:
    """Return how an object or a list begins, as far as it is fixed; "" for what is neither, or a constant."""
    text = ""
    for atom in run:
        if atom != SPACE:
            if not (atom[0] == atom[-1] == '"'):
                return text if text[:1] in ("{", "[") else ""
            text += atom[1:-1]
    return ""


def _alike(texts: list[str]) -> int:
    """Return how many of `texts` may be begun at once, at most: one is the beginning of the others."""
    begun = sorted(filter(None, texts))  # each stands before those it begins, and they follow at once
    if len(begun) > ALIKE_MAX:
        raise GrammarError(f"a value is one of {len(begun)} objects or lists, at most {ALIKE_MAX}")
    most, beginnings = 1, list[int]()
    for index, text in enumerate([*begun, ""]):
        while beginnings and not text.startswith(begun[beginnings[-1]]):
            start = beginnings.pop()
            most = max(most, len(beginnings) + index - start)
        beginnings.append(index)
    return most
