"""Those who were let in, for no zone, and break the protocol: their own certificates, their own keys.

What an insider may do all the same (answer badly, answer slowly, see what he is asked in the open) is no
attack on the protocol: `docs/threat-model.md`.
"""

from __future__ import annotations

import hashlib
import math
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import trio
import trio.lowlevel

from p2pmesh.cli import client
from p2pmesh.errors import Reason
from p2pmesh.net.identity import Identity
from p2pmesh.peer.driver import BAD_FRAMES_MAX
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.origins import Origins
from p2pmesh.protocol.receipts import Receipts
from p2pmesh.query import Chunk, Ended, Hop, Message, Options, Query, QueryId, Usage
from p2pmesh.record import (
    GENERAL,
    Capability,
    Load,
    ModelInfo,
    PeerId,
    PeerRecord,
    SignedRecord,
    Skill,
    Version,
    record_to_sign,
)
from p2pmesh.trust.keys import verify
from p2pmesh.trust.standing import Standing
from tests.attacks.ground import QUOTA, ZONE, Ground, Refused, insider, query_id
from tests.attacks.verdict import Verdict

_BUDGET_S = 12_345.678
"""A number that is found again in a frame's bytes."""
_OUTBOX = 500
"""Frames that may wait at the flooder's own end: half of what would end the link there."""
_KNOWN_S = 5.0
"""Seconds within which every peer must know who was thrown out."""


class _Signer:
    """Signs with an identity's key, and checks anybody's."""

    def __init__(self, who: Identity) -> None:
        self._who = who
        self.verify = verify

    def sign(self, body: bytes) -> bytes:
        return self._who.sign(body)


def _record(
    ground: Ground,
    who: Identity,
    version: Version,
    name: str,
    ident: PeerId | None = None,
    capability: Capability | None = None,
) -> SignedRecord:
    """Return a record of `ident`, or of `who` itself, signed by `who`."""
    record = PeerRecord(ident or who.id, version, name, (), capability or Capability(), bytes(range(32)))
    body = ground.codec.encode_record(record)
    certificate = ground.certificate(who).certificate()
    return SignedRecord(record, body, who.sign(record_to_sign(body, certificate)), certificate)


def _query(who: PeerId, **changes: object) -> Query:
    plain = Query(QueryId(query_id()), who, (Message("user", "one two"),), Options(max_tokens=8))
    return replace(plain, path=(Hop(who, "mallory", ""),), budget_s=5.0, **changes)


# -- frames -------------------------------------------------------------------------------------------


async def bad_frames(ground: Ground) -> Verdict:
    """Frames that are nested, of no kind, cut off, or say NaN and infinity where there are numbers."""
    who = Identity.generate()
    whole = ground.codec.encode(m.Forward(replace(_query(who.id), budget_s=_BUDGET_S)))
    number = struct.pack(">d", _BUDGET_S)
    assert whole.count(number) == 1
    load = ground.codec.encode(m.LoadReport(Load(remaining_s=_BUDGET_S)))
    frames = {
        "nested": b"\x92\x0a" + b"\x91" * 60_000 + b"\xc0",
        "nested maps": b"\x92\x0a" + b"\x81\x01" * 30_000 + b"\xc0",
        "no kind": b"\x92\x7f\x01",
        "cut off": whole[: len(whole) // 2],
        "NaN": whole.replace(number, struct.pack(">d", math.nan)),
        "infinity": load.replace(number, struct.pack(">d", math.inf)),
        "a giant string": b"\x92\x0a\xdb\x7f\xff\xff\xff",
        "an extension": b"\x92\x0a\xc7\x05\x01hello",
    }
    taken = []
    for name, frame in frames.items():
        async with insider(ground, "desk") as one:
            for _ in range(BAD_FRAMES_MAX):
                one.say_raw(frame)
            if not await one.until(lambda one=one: one.ended, 5.0):
                taken.append(name)
    said = f"{len(frames)} kinds; {BAD_FRAMES_MAX} of one did not end the link: {taken or 'none'}"
    return Verdict(not taken, said)


async def nan_vectors(ground: Ground) -> Verdict:
    """Vectors that have no direction, or a component that no vector has, in records and in queries: the bytes
    of honest ones are changed, and records signed as they are then."""
    who, taken, sent = Identity.generate(), [], 0
    honest = np.frombuffer(bytes(range(1, 97)) * 4, np.int8)
    skill = Skill("liar", honest, 1.0)
    record = _record(ground, who, Version(1, 1), "mallory", capability=Capability("s", (skill,), (_MODEL,)))
    query = ground.codec.encode(m.Forward(_query(who.id, vector=honest, space="s")))
    for name, raw in (("zero", bytes(384)), ("-128", b"\x80" * 384)):
        body = record.body.replace(honest.tobytes(), raw)
        # Only the bytes travel: what is in `record` is what we pretend to ourselves.
        signature = who.sign(record_to_sign(body, record.certificate))
        frames = (
            ground.codec.encode(m.Records((replace(record, body=body, signature=signature),))),
            query.replace(honest.tobytes(), raw),
        )
        for kind, frame in zip(("record", "query"), frames, strict=True):
            assert raw in frame
            async with insider(ground, "desk", who) as one:
                for _ in range(BAD_FRAMES_MAX):
                    sent += one.say_raw(frame)
                if not await one.until(lambda one=one: one.ended, 5.0):
                    taken.append(f"{kind} {name}")
    known = ground.known("desk", who.id)
    blocked = not taken and sent > 0 and (known is None or not known["skills"])
    return Verdict(blocked, f"{sent} sent; such did not end the link: {taken or 'none'}")


# -- records ------------------------------------------------------------------------------------------


async def forged_record(ground: Ground) -> Verdict:
    """A newer record of somebody else, signed by the forger."""
    who, victim = Identity.generate(), ground.id("hr")
    async with insider(ground, "desk", who) as one:
        newer = Version(2**60, 1)
        one.say(m.Records((_record(ground, who, newer, "forged", victim),)))
        signed = await one.pulled(victim)
    row = ground.known("desk", victim)
    blocked = row is not None and row["name"] == "hr" and signed.record.version < newer
    return Verdict(blocked, f"the desk still calls it {row and row['name']!r}")


async def altered_record(ground: Ground) -> Verdict:
    """Somebody's own record, one byte of it changed."""
    victim = ground.id("hr")
    async with insider(ground, "desk") as one:
        signed = await one.pulled(victim)
    changed = ground.codec.encode_record(
        replace(signed.record, name="hrx", version=replace(signed.record.version, seq=2**40))
    )
    async with insider(ground, "signer") as one:
        one.say(m.Records((replace(signed, body=changed),)))
        await one.until(lambda: one.ended, 2.0)
    row = ground.known("signer", victim)
    called = row and row["name"]
    return Verdict(called == "hr", f"the signer still calls it {called!r}")


async def rolled_back_record(ground: Ground) -> Verdict:
    """A record of an earlier life, played back once its owner has started anew."""
    victim = ground.id("hr")
    async with insider(ground, "desk") as one:
        old = await one.pulled(victim)
    await trio.to_thread.run_sync(ground.restart, "hr")
    async with insider(ground, "desk") as one:
        new = await one.pulled(victim)
        one.say(m.Records((old,)), m.Announce((m.Line(victim, old.record.version, 1),)))
        held = await one.pulled(victim)
    blocked = old.record.version < new.record.version and held.record.version >= new.record.version
    return Verdict(blocked, f"old {old.record.version}, new {new.record.version}, held {held.record.version}")


async def equivocating_record(ground: Ground) -> Verdict:
    """Stay linked to two peers, and tell each another record of one version. Evidence that is none is passed
    on as well: against an honest peer, of one record and a forged one."""
    who = Identity.generate()
    version, standing = Version(1, 1), ground.certificate(who)
    white, black = (_record(ground, who, version, name) for name in ("white", "black"))
    async with insider(ground, "desk", who, standing) as one, insider(ground, "signer", who, standing) as two:
        one.say(m.Records((white,)))
        two.say(m.Records((black,)))
        began = trio.current_time()
        let_go = await ground.until(lambda: bool(one.ended and two.ended), 20.0)
        took = trio.current_time() - began
    again = [to for to in ground.peers if await _is_let_in(ground, to, who, standing)]
    gone = await ground.until(lambda: all(_is_gone(ground, to, who.id) for to in ground.peers), 30.0)

    victim = ground.id("hr")
    async with insider(ground, "desk") as liar:
        honest = await liar.pulled(victim)
        forged = _record(ground, Identity.generate(), honest.record.version, "forged", victim)
        liar.say(m.Evidence(honest, forged))
        caught = await liar.until(lambda: liar.ended, 5.0)
    framed = _is_gone(ground, "desk", victim)

    later = ground.certificate(who, lambda: time.time() + 2.0)  # since then: a signer let it in anew
    pardoned = [to for to in ground.peers if await _is_let_in(ground, to, who, later)]
    blocked = let_go and not again and gone and caught and not framed and len(pardoned) == len(ground.peers)
    said = f"out after {took:.1f} s, let in again by {again or 'none'}, let in anew by {len(pardoned)}"
    return Verdict(blocked, f"{said}; false evidence ended its own link: {caught}")


async def _is_let_in(ground: Ground, to: str, who: Identity, standing: Standing) -> bool:
    with suppress(Refused):
        async with insider(ground, to, who, standing):
            return True
    return False


def _is_gone(ground: Ground, name: str, ident: PeerId) -> bool:
    row = ground.known(name, ident)
    return row is None or not (row["linked"] or row["alive"])


# -- zones --------------------------------------------------------------------------------------------


_MODEL = ModelInfo("oracle", "ab" * 32, 4_096, 1e6, 1e6, 8)


async def relabelled_zones(ground: Ground) -> Verdict:
    """Say in one's own record that one may see a zone; and ask in it, unsealed, of one who may."""
    who = Identity.generate()
    claims = Capability("", (Skill(GENERAL, None, 1.0),), (_MODEL,), (GENERAL, ZONE))
    async with insider(ground, "desk", who) as one:
        one.say(m.Records((_record(ground, who, Version(1, 1), "mallory", capability=claims),)))
        await one.until(lambda: one.ended, 2.0)
        body = {"prompt": "one two", "zone": ZONE}
        table = await trio.to_thread.run_sync(lambda: _explained(ground, body))
        chosen = [row for row in table if row["id"] == who.id and row["why_not"] is None]
        forwards = [h for h in one.heard if isinstance(h, m.Forward)]
        await ground.ask("oracle", zone=ZONE, max_tokens=8)
        forwards += [h for h in one.heard if isinstance(h, m.Forward)]
    async with insider(ground, "hr", who) as one:
        asked = _query(who.id, zone=ZONE)
        one.say(m.Forward(asked))
        said = (m.Accept, m.Refuse, m.Tokens, m.End)
        await one.until(lambda: one.ended or any(isinstance(h, said[1:]) for h in one.heard), 5.0)
        answers = [type(h).__name__ for h in one.heard if isinstance(h, said)]
        ended = one.ended
    blocked = not chosen and not forwards and not {"Tokens", "End"} & set(answers)
    return Verdict(blocked, f"chosen for the zone: {len(chosen)}; asking in it got {answers or ended!r}")


def _explained(ground: Ground, body: dict[str, str]) -> list[dict[str, object]]:
    return list(client.call(ground.desk.url, "POST", "/mesh/v1/explain", body)["table"])


# -- answers ------------------------------------------------------------------------------------------


Messages = Sequence[m.PeerMessage]


def _spoilt(ground: Ground) -> dict[str, Callable[[m.Tokens, m.Tokens, m.End], Messages]]:
    """Return what is made of an honest answer of two pieces and an end, by name."""

    def text(piece: m.Tokens, text: str) -> m.Tokens:
        return m.Tokens(replace(piece.chunk, text=text))

    def by_another(end: m.End) -> m.End:
        path = (*end.ended.path[:-1], Hop(ground.id("hr"), "hr", ""))
        return replace(end, ended=replace(end.ended, path=path))

    def endless(one: m.Tokens) -> Messages:
        return [m.Tokens(replace(one.chunk, index=index, text="more ")) for index in range(500)]

    return {
        "honest": lambda one, two, end: (one, two, end),
        "reordered": lambda one, two, end: (two, one, end),
        "truncated": lambda one, two, end: (one, replace(end, chunks=1)),
        "miscounted": lambda one, two, end: (one, two, replace(end, chunks=9)),
        "spliced": lambda one, two, end: (text(one, "not "), text(two, "this"), end),
        "unsigned": lambda one, two, end: (one, two, replace(end, ended=replace(end.ended, receipt=None))),
        "another's": lambda one, two, end: (one, two, by_another(end)),
        "endless": lambda one, two, end: endless(one),
    }


async def spoilt_answers(ground: Ground) -> Verdict:
    """Serve a model, and answer with pieces out of order, missing, of another query, or a forged end. The
    same answer, unspoilt, is taken: or nothing would be shown."""
    outcomes = {name: await _answered(ground, spoil) for name, spoil in _spoilt(ground).items()}
    wrong = [name for name, code in outcomes.items() if (code == "ok") != (name == "honest")]
    wrong += [name for name, code in outcomes.items() if code.startswith("never")]
    return Verdict(not wrong, f"{outcomes}")


async def _answered(ground: Ground, spoil: Callable[[m.Tokens, m.Tokens, m.End], Messages]) -> str:
    """Let the desk ask a model that an insider alone serves; return what came of it: "ok" or a code."""
    who = Identity.generate()
    model = replace(_MODEL, name=f"oracle-{who.id[-6:]}")
    capability = Capability("", (Skill(GENERAL, None, 1.0),), (model,))
    receipts = Receipts(who.id, ground.codec, _Signer(who))

    def forwarded(forward: m.Forward) -> Messages:
        query = forward.query
        path = (*query.path, Hop(who.id, "mallory", ""))
        said = hashlib.sha256(b"one two").digest()
        ended = receipts.signed(query, Ended(Usage(2, 2), "stop", model.name, model.digest, path), said)
        ident = (query.id, query.attempt)
        one, two = (m.Tokens(Chunk(*ident, i, (i,), text)) for i, text in enumerate(("one ", "two")))
        accept = m.Accept(*ident, True, 0.1, path, model.digest)
        return (accept, *spoil(one, two, m.End(*ident, 2, ended)))

    async with insider(ground, "desk", who) as one:
        one.on_forward = forwarded
        one.say(m.Records((_record(ground, who, Version(1, 1), "mallory", capability=capability),)))
        one.say(m.LoadReport(Load(free_slots=8)))
        if not await ground.until(lambda: ground.known("desk", who.id) is not None, 10.0):
            return "never known"
        code, _ = await ground.ask(model.name, max_tokens=20)
        if not any(isinstance(h, m.Forward) for h in one.heard):
            return "never asked"
        return code


async def replayed_query(ground: Ground) -> Verdict:
    """The same query twice, to have it served twice."""
    who = Identity.generate()
    asked = _query(who.id, model="small")
    async with insider(ground, "signer", who) as one:
        one.say(m.Forward(asked))
        ended = await one.until(lambda: any(isinstance(h, m.End) for h in one.heard), 10.0)
        one.say(m.Forward(asked))
        await one.until(lambda: any(isinstance(h, m.Refuse) for h in one.heard), 5.0)
        ends = sum(isinstance(h, m.End) for h in one.heard)
        refused = [h.reason.value for h in one.heard if isinstance(h, m.Refuse)]
    return Verdict(ended and ends == 1 and bool(refused), f"answered {ends} time, then {refused}")


async def message_flood(ground: Ground) -> Verdict:
    """Well-formed messages as fast as they can be written, for five seconds."""
    before = replace(ground.honest)
    sent, number = 0, 0
    frame = ground.codec.encode(m.Pull((ground.id("hr"),)))
    async with insider(ground, "desk") as one:
        until = trio.current_time() + 5.0
        while trio.current_time() < until and not one.ended:
            number = (number + 1) % 2**31
            if one.waiting() < _OUTBOX:
                sent += one.say_raw(frame) + one.say_raw(ground.codec.encode(m.Ping(number)))
            await trio.lowlevel.checkpoint()
        ended = one.ended
    served = await ground.until_answered(10)
    honest = ground.honest.since(before)
    blocked = served and honest.answered == honest.asked
    how = ended or "the link stood"
    return Verdict(blocked, f"{sent} messages ({how}), honest queries {honest.answered} of {honest.asked}")


async def greedy_asker(ground: Ground) -> Verdict:
    """Ask for as much as there is, without a pause, until the quota of the one that answers is used up; then
    in the name of others, and under a new name of one's own."""
    who, before = Identity.generate(), replace(ground.honest)
    prompt = "one two " * 200
    asked = _query(who.id, model="small", messages=(Message("user", prompt),), options=Options(max_tokens=1))
    async with insider(ground, "signer", who) as one:

        def refused() -> list[m.Refuse]:
            return [h for h in one.heard if isinstance(h, m.Refuse) and h.reason is Reason.QUOTA]

        for _ in range(4 * QUOTA * 4 // len(prompt)):
            one.say(m.Forward(replace(asked, id=QueryId(query_id()))))
            await trio.sleep(0.01)
            if refused() or one.ended:
                break
        used_up = bool(await one.until(refused, 10.0))
        ghost = Identity.generate()  # anybody can make keys, and sign with them
        posed = [_posing(asked, origin, who.id) for origin in (ground.id("desk"), ground.id("hr"), ghost.id)]
        posed[-1] = Origins(ground.codec, _Signer(ghost)).signed(posed[-1], 1)
        for query in posed:
            one.say(m.Forward(query))
        ids = {query.id for query in posed}

        def turned_away() -> set[QueryId]:
            return {h.query_id for h in refused()} & ids

        await one.until(lambda: turned_away() == ids or one.ended, 5.0)
        ended = [h for h in one.heard if isinstance(h, m.End) and h.query_id in ids]
    served = await ground.until_answered(10)
    honest = ground.honest.since(before)
    blocked = used_up and served and turned_away() == ids and not ended
    seen = f"used up: {used_up}; {len(turned_away())} of 3 in other names were refused"
    return Verdict(blocked, f"{seen}, honest {honest.answered}/{honest.asked}")


def _posing(asked: Query, origin: PeerId, relay: PeerId) -> Query:
    """Return the same as if `origin` had asked it, and sent it by way of `relay`."""
    path = (Hop(origin, "x", ""), Hop(relay, "mallory", ""))
    return replace(asked, id=QueryId(query_id()), origin=origin, path=path)


# -- out ----------------------------------------------------------------------------------------------


async def revoked_certificate(ground: Ground) -> Verdict:
    """Stay linked to all three, and come again, after having been thrown out."""
    who = Identity.generate()
    standing = ground.certificate(who)
    known = {}
    async with trio.open_nursery() as nursery:

        async def stay(to: str) -> None:
            async with insider(ground, to, who, standing) as one:
                linked.append(to)
                await one.until(lambda: one.ended, 20.0)
                known[to] = trio.current_time() - thrown_out if one.ended else math.inf

        linked: list[str] = []
        thrown_out = math.inf
        for to in ground.peers:
            nursery.start_soon(stay, to)
        all_linked = await ground.until(lambda: len(linked) == len(ground.peers), 10.0)
        thrown_out = trio.current_time()
        await trio.to_thread.run_sync(ground.revoke, who.id)
    again = []
    for to in ground.peers:
        try:
            async with insider(ground, to, who, standing):
                again.append(to)
        except Refused:
            pass
    last = max(known.values(), default=math.inf)
    blocked = all_linked and min(known.values()) >= 0.0 and last <= _KNOWN_S and not again
    said = f"the last of {len(known)} ended the link {last:.2f} s after; let in again by {again or 'none'}"
    return Verdict(blocked, said)


ATTACKS = (
    bad_frames,
    nan_vectors,
    forged_record,
    altered_record,
    rolled_back_record,
    equivocating_record,
    relabelled_zones,
    spoilt_answers,
    replayed_query,
    message_flood,
    greedy_asker,
    revoked_certificate,
)
