"""What signers say reaches everybody once, and who is out is let go."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from p2pmesh.errors import Reason, Untrusted
from p2pmesh.protocol import events as e
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.admission import LOOK_S, STATEMENTS_MAX
from p2pmesh.protocol.routing import Kind
from p2pmesh.record import Capability, PeerId, Version
from tests.machines import MODEL, UNABLE, A, B, Bench, C, of, query, sent, signed


class Trust:
    """Statements are words; one that begins with a peer's name throws it out."""

    def __init__(self) -> None:
        self.said: list[bytes] = []
        self.out: set[PeerId] = set()
        self.asks = self.grants = b""
        self.own, self.vouched = b"mine", True
        self.at_the_door: list[bytes] = []
        self.gifts: dict[PeerId, bytes] = {}

    def statements(self) -> Sequence[bytes]:
        return tuple(self.said)

    def learn(self, statements: Sequence[bytes]) -> tuple[list[bytes], str]:
        new = []
        for statement in statements:
            if statement == b"false":
                return new, "no signer has said so"
            if statement not in self.said:
                self.said.append(statement)
                self.out.add(PeerId(statement.decode()))
                new.append(statement)
        return new, ""

    def heard(self) -> list[bytes]:
        heard, self.at_the_door = self.at_the_door, []
        return heard

    def show(self) -> bytes:
        return b"me"

    def judge(self, peer: PeerId, shown: bytes) -> bytes:
        if shown == b"bad":
            raise Untrusted("its certificate has expired")
        return self.grants

    def take(self, granted: bytes) -> None:
        if granted == b"false":
            raise Untrusted("not a statement")

    def granted(self, peer: PeerId) -> bytes:
        return self.gifts.get(peer, b"")

    def certificate(self) -> bytes:
        return self.own

    def vouches(self, peer: PeerId, certificate: bytes, zones: Collection[str]) -> bool:
        return self.vouched

    def ban(self, peer: PeerId, certificates: Sequence[bytes]) -> bool:
        return False

    def outsiders(self, peers: Collection[PeerId]) -> list[PeerId]:
        return [peer for peer in peers if peer in self.out]

    def renewal(self) -> bytes:
        return self.asks


class Meshed(Bench):
    def __init__(self, *peers: PeerId) -> None:
        self.trust = Trust()
        super().__init__(UNABLE, trust=self.trust)
        self.link(*peers, capability=UNABLE)


def let_go(effects: list[e.Effect]) -> list[PeerId]:
    return [effect.peer for effect in of(effects, e.Hangup)]


def test_what_is_new_is_passed_on_to_all_others_and_what_is_old_to_nobody() -> None:
    bench = Meshed(A, B, C)
    effects = bench.say(A, m.Stated((b"x", b"y")))
    assert [(s.peer, s.message) for s in of(effects, e.Send) if isinstance(s.message, m.Stated)] == [
        (peer, m.Stated((b"x", b"y"))) for peer in (B, C)
    ]
    assert not sent(bench.say(B, m.Stated((b"x", b"y"))), m.Stated)
    effects = bench.say(B, m.Stated((b"y", b"z", b"false", b"never")))
    assert sent(effects, m.Stated, A) == [m.Stated((b"z",))]
    assert let_go(effects) == [B]
    assert "does not hold" in of(effects, e.Notify)[0].what


def test_a_new_neighbour_hears_all_of_it() -> None:
    bench = Meshed()
    bench.trust.said = [b"%d" % n for n in range(STATEMENTS_MAX + 1)]
    told = sent(bench.link(A, capability=UNABLE), m.Stated, A)
    assert [len(message.statements) for message in told] == [STATEMENTS_MAX, 1]
    assert not sent(Meshed().link(A, capability=UNABLE), m.Stated)


def test_who_is_thrown_out_is_let_go_at_once_and_the_others_hear_of_it() -> None:
    bench = Meshed(A, B, C)
    effects = bench.say(A, m.Stated((b"b",)))
    assert let_go(effects) == [B]
    assert sent(effects, m.Stated, C)
    bench = Meshed(A, B)
    bench.trust.learn([b"a"])  # as its own signer does
    effects = bench.handle(e.Stated(b"a"))
    assert let_go(effects) == [A]
    assert sent(effects, m.Stated, B) == [m.Stated((b"a",))]


def test_who_was_thrown_out_while_it_was_greeted_is_let_go_at_once() -> None:
    bench = Meshed()
    bench.trust.out.add(A)
    bench.trust.said = [b"x"]
    effects = bench.handle(e.Connected(A))
    assert let_go(effects) == [A]
    assert not sent(effects, m.Stated)


def test_a_zone_lasts_as_long_as_the_certificate_of_the_record() -> None:
    """A record was vouched for when it came, and never again."""
    bench = Meshed(A)
    able = Capability(models=(MODEL,), zones=("general", "hr"))
    bench.say(A, m.Records((signed(A, Version(1, 2), able),)))
    asked = query(origin=bench.machine.me, zone="hr")
    assert bench.machine.explain(asked).kind is Kind.FORWARD
    assert bench.machine._holders("hr") == {A}
    bench.trust.vouched = False
    assert bench.machine.explain(asked).reason is Reason.NO_ROUTE
    bench.handle(e.Described(able, ()))  # nor does this peer serve it, whose own certificate has ended
    assert bench.machine.explain(asked).reason is Reason.NO_ROUTE
    bench.trust.vouched = True
    assert bench.machine.explain(asked).kind is Kind.SERVE
    bench.trust.vouched = False
    assert bench.machine._holders("hr") == set()
    assert bench.machine._holders("general") == {A}


def test_whose_certificate_ends_is_let_go_at_the_next_look() -> None:
    bench = Meshed(A, B)
    bench.trust.out.add(A)
    assert let_go(bench.wait(LOOK_S)) == [A]


def test_who_shows_something_newer_is_judged_by_that() -> None:
    bench = Meshed(A)
    assert not let_go(bench.say(A, m.Shown(b"good")))
    assert let_go(bench.say(A, m.Shown(b"bad"))) == [A]
    bench = Meshed(A)
    bench.trust.grants = b"more"
    assert sent(bench.say(A, m.Shown(b"old")), m.Granted, A) == [m.Granted(b"more")]


def test_what_gets_old_is_shown_to_all_until_it_is_renewed_and_then_once_more() -> None:
    bench = Meshed(A, B)
    assert not sent(bench.wait(LOOK_S), m.Shown)
    bench.trust.asks = b"old"
    for _ in range(2):
        assert sent(bench.wait(LOOK_S), m.Shown) == [m.Shown(b"old")] * 2
    assert not sent(bench.say(A, m.Granted(b"half")), m.Shown)
    bench.trust.own, bench.trust.asks = b"newer", b""
    before = bench.machine.gossip.me
    assert sent(bench.say(A, m.Granted(b"more")), m.Shown) == [m.Shown(b"me")] * 2
    assert before.certificate == b"mine"
    assert bench.machine.gossip.me.certificate == b"newer"
    assert before.record.version < bench.machine.gossip.me.record.version
    assert not sent(bench.wait(2 * LOOK_S), m.Shown)
    assert let_go(bench.say(A, m.Granted(b"false"))) == [A]


def test_what_a_signer_renews_itself_is_shown_too() -> None:
    bench = Meshed(A)
    bench.trust.own = b"newer"
    assert sent(bench.wait(LOOK_S), m.Shown) == [m.Shown(b"me")]
    assert bench.machine.gossip.me.certificate == b"newer"


def test_what_is_granted_unasked_is_given_until_it_is_shown() -> None:
    bench = Meshed(A, B)
    bench.trust.gifts = {A: b"hr"}
    for _ in range(2):
        effects = bench.wait(LOOK_S)
        assert sent(effects, m.Granted, A) == [m.Granted(b"hr")]
        assert not sent(effects, m.Granted, B)
    bench.trust.gifts = {}
    assert not sent(bench.wait(LOOK_S), m.Granted)


def test_what_was_learnt_at_the_door_is_passed_on_to_the_others() -> None:
    """Two were away together, and one came to one of them: the other must hear of it, too."""
    bench = Meshed(A)
    bench.trust.at_the_door = [b"x"]
    effects = bench.handle(e.Connected(B))
    assert sent(effects, m.Stated, A) == [m.Stated((b"x",))]
    assert not sent(bench.handle(e.Connected(C)), m.Stated, A)


def test_a_record_without_a_certificate_that_vouches_for_it_is_not_taken() -> None:
    bench = Meshed(A)
    bench.trust.vouched = False
    effects = bench.say(A, m.Records((signed(B),)))
    assert "not in its zones" in of(effects, e.Notify)[0].what
    assert B not in bench.machine.gossip.records
    assert bench.machine.gossip.rejected == 1
    bench.trust.vouched = True
    bench.say(A, m.Records((signed(B),)))
    assert B in bench.machine.gossip.records


def test_a_peer_in_no_mesh_takes_none_of_it() -> None:
    bench = Bench(UNABLE)
    bench.link(A, B, capability=UNABLE)
    for message in (m.Stated((b"a",)), m.Shown(b"x"), m.Granted(b"x")):
        assert not of(bench.say(A, message), e.Hangup)
        assert not sent(bench.say(A, message), type(message))
    assert not let_go(bench.handle(e.Stated(b"a")))
