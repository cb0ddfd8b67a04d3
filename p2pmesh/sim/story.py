"""A trace for people: who did what when, and why. It shortens and selects; it knows no rule.

Probes, loads and digests are left out: they are nearly all there is, and say nothing; what follows from them,
that somebody is held for dead or is back, is told.
"""

from __future__ import annotations

from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.query import Chunk, Ended, QueryId
from p2pmesh.record import PeerId


class Story:
    """Collects lines. Pass it as a world's `tell`."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, now: float, what: str) -> None:
        """Something that is nobody's doing."""
        self.lines.append(f"{now:10.4f} ----- {what}")

    def __call__(self, now: float, ident: PeerId, thing: e.Event | e.Effect) -> None:
        """Something happens at `ident`, or it does something."""
        line = _tell(thing)
        if line:
            self.lines.append(f"{now:10.4f} {ident:5} {line}")


def _short(query_id: QueryId, attempt: int | None = None) -> str:
    return query_id[:6] + ("" if attempt is None else f"/{attempt}")


def _tell(thing: e.Event | e.Effect) -> str:  # noqa: C901 - one line for each
    match thing:
        case e.Send(peer=peer, message=message):
            said = _message(message)
            return f"-> {peer}: {said}" if said else ""
        case e.Received(peer=peer, message=message):
            said = _message(message)
            return f"<- {peer}: {said}" if said else ""
        case e.Connected(peer=peer) | e.Disconnected(peer=peer) | e.DialFailed(peer=peer):
            return f"{type(thing).__name__.lower()} {peer}"
        case e.Dial(peer=peer) | e.Hangup(peer=peer):
            return f"{type(thing).__name__.lower()}s {peer}"
        case e.Asked(query=query):
            zone = "" if query.zone == "general" else f" in {query.zone}"
            return f"is asked {_short(query.id)}{zone}: {query.text}, {query.budget_s:g} s"
        case e.Claimed(query_id=query_id, held_id=held_id, holder=holder, seen=seen):
            rest = f"the rest of {_short(held_id)}, past {seen} characters"
            return f"is asked for {rest}, as {_short(query_id)}; {holder} holds it"
        case e.Cancelled(query_id=query_id):
            return f"is told that nobody waits for {_short(query_id)}"
        case e.Generate(query=query, model=model):
            return f"starts {_short(query.id, query.attempt)} on {model}"
        case e.Abort(query_id=query_id, attempt=attempt):
            return f"aborts {_short(query_id, attempt)}"
        case e.Finished(query_id=query_id, attempt=attempt):
            return f"has written {_short(query_id, attempt)}"
        case e.Deliver(query_id=query_id, item=item):
            return f"delivers {_item(query_id, item)}"
        case e.Fail(query_id=query_id, reason=reason, detail=detail):
            return f"fails {_short(query_id)}: {reason.value}, {detail}"
        case e.Notify(peer=peer, what=what):
            return f"notes: {peer} {what}"
        case _:
            return ""


def _item(query_id: QueryId, item: e.Placed | e.Guarded | Chunk | Ended) -> str:
    match item:
        case e.Guarded(holder=holder):
            return f"{_short(query_id)}: is held by {holder or 'nobody'}"
        case e.Placed(path=path, eta_s=eta_s):
            return f"{_short(query_id)}: placed at {path[-1].peer}, {eta_s:.1f} s"
        case Chunk(index=index, attempt=attempt):
            return f"{_short(query_id, attempt)}: piece {index}"
        case Ended(usage=usage):
            return f"{_short(query_id)}: the end, {usage.completion_tokens} tokens"


def _message(message: m.PeerMessage) -> str:
    match message:
        case m.Forward(query=query):
            why = query.path[-1].why if query.path else ""
            return f"forward {_short(query.id, query.attempt)} ({why}; excluded {' '.join(query.excluded)})"
        case m.Accept(query_id=query_id, attempt=attempt, placed=placed, path=path):
            where = f", placed at {path[-1].peer}: {path[-1].why}" if placed and path else ""
            return f"accept {_short(query_id, attempt)}{where}"
        case m.Refuse(query_id=query_id, attempt=attempt, reason=reason, detail=detail, dead=dead):
            return f"refuse {_short(query_id, attempt)}: {reason.value}, {detail} {' '.join(dead)}".rstrip()
        case m.Error(query_id=query_id, attempt=attempt, reason=reason, detail=detail):
            return f"error {_short(query_id, attempt)}: {reason.value}, {detail}"
        case m.Tokens(chunk=chunk):
            return f"tokens {_short(chunk.query_id, chunk.attempt)}: piece {chunk.index}"
        case m.End(query_id=query_id, attempt=attempt, chunks=chunks):
            return f"end {_short(query_id, attempt)}: {chunks} pieces"
        case m.Cancel(query_id=query_id, attempt=attempt):
            return f"cancel {_short(query_id, attempt)}"
        case m.Keep() | m.Copy() | m.Kept() | m.Settle() | m.Claim() | m.Legacy():
            return _backup(message)
        case m.Steal() | m.Leave() | m.Part():
            return type(message).__name__.lower()
        case _:
            return ""


def _backup(message: m.Keep | m.Copy | m.Kept | m.Settle | m.Claim | m.Legacy) -> str:
    match message:
        case m.Keep(query=query):
            return f"keep {_short(query.id)}: {0 if query.accepted is None else query.accepted.chunks} pieces"
        case m.Copy(chunk=chunk):
            return f"copy {_short(chunk.query_id)}: piece {chunk.index}"
        case m.Kept(query_id=query_id, chunks=chunks):
            return f"kept {_short(query_id)}: {chunks} pieces"
        case m.Settle(query_id=query_id, ended=ended):
            return f"settle {_short(query_id)}: {'forget it' if ended is None else 'it is whole'}"
        case m.Claim(query_id=query_id):
            return f"claim {_short(query_id)}"
        case m.Legacy(query=query, ended=ended):
            pieces = 0 if query.accepted is None else query.accepted.chunks
            return f"legacy {_short(query.id)}: {pieces} pieces{'' if ended is None else ', whole'}"
