"""Whatever well-formed words and events come, in whatever order: no exception, bounded tables, no spin,
and nothing said that others could not read."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pmesh.config import Config, Limits, Membership, Relay
from p2pmesh.errors import Reason
from p2pmesh.protocol import events as e
from p2pmesh.protocol.flight import Phase
from p2pmesh.protocol.gossip import _NEW_MAX
from p2pmesh.protocol.stealing import LOOKED_AT_MAX
from p2pmesh.query import QueryId, Usage
from p2pmesh.record import Capability, PeerId
from p2pmesh.sim.world import World
from tests.machines import ABLE, ME, UNABLE, A, B, Bench, C, D, query
from tests.property.strategies import attempts, messages, peers, queries, query_ids, words

others = st.sampled_from([A, B, C])
dialers = st.sampled_from([A, B, C, D, *(PeerId(f"n{i}") for i in range(3))])
asked = st.integers(0, 3).map(lambda number: query(number, origin=ME))
events: st.SearchStrategy[e.Event] = st.one_of(
    st.builds(e.Received, others, messages),
    st.builds(e.Received, others, messages),
    st.builds(e.Received, others, messages),
    st.builds(e.Connected, dialers),
    st.builds(e.Disconnected, dialers),
    st.builds(e.Discovered, peers, st.just(("/x",))),
    st.builds(e.DialFailed, peers),
    st.builds(e.Asked, asked | queries),
    st.builds(e.Cancelled, query_ids),
    st.builds(e.Embedded, query_ids, st.none() | st.just(World.topic(1))),
    st.builds(e.Generated, query_ids, attempts, st.just((1,)), words),
    st.builds(e.Finished, query_ids, attempts, st.just(Usage(1, 1)), st.just("stop")),
    st.builds(e.Failed, query_ids, attempts, st.sampled_from(Reason), words, st.integers(0, 5_000)),
    st.builds(e.Rated, query_ids, st.floats(0.0, 1.0)),
    st.builds(e.Described, st.sampled_from([ABLE, UNABLE, Capability("sim")]), st.just(())),
    st.just(e.Departed()),
    st.just(e.Drained()),
    st.just(e.Tick()),
)
pauses = st.sampled_from([0.0, 0.0, 0.01, 0.3, 1.0, 7.0])
CONFIG = Config(
    limits=Limits(digest_max=40),
    membership=Membership(members_max=8, links_max=2, links_far=1, tombstone_s=5.0),
    relay=Relay(flights_max=3, seen_max=4, waiting_max=2, attempts_max=4),
)


def bounded(bench: Bench) -> None:
    """Every table stays within what the configuration allows."""
    machine, config = bench.machine, bench.config
    gossip, membership, relay = machine.gossip, machine.membership, machine.relay
    members, links = config.membership.members_max, 2 * config.membership.links_max
    assert len(relay.flights) <= config.relay.flights_max
    assert len(relay.flights._seen) <= config.relay.seen_max
    assert len(relay.flights._alarms) == len(relay.flights)
    assert all(len(set(f.tried)) == len(f.tried) for f in relay.flights)  # nobody is asked twice
    assert all(len(f.query.excluded) <= config.limits.excluded_max for f in relay.flights)
    assert len(membership.members) <= members
    assert len(membership.links) <= links
    assert set(membership._rumours) <= set(membership.members)
    assert set(membership._alarms._at) <= set(membership.members)
    assert len(membership._prober) <= 5 * config.membership.links_max + links
    assert membership._prober.health <= config.membership.health_max
    assert all(set(m.distances) <= set(membership.links) for m in membership.members.values())
    assert set(machine.loads._queued) <= set(machine.loads._loads) <= set(membership.links)
    assert set(machine._linking.load_set()) <= set(membership.links)
    assert len(machine._stealing._asked) <= LOOKED_AT_MAX + 1
    assert len(gossip._new) <= _NEW_MAX
    assert set(machine.ratings._told) <= set(membership.links)
    assert len(gossip._pulls) <= config.limits.digest_max
    assert len(gossip.records) <= members + config.limits.records_per_frame_max
    assert len(gossip._fresh) <= members + config.limits.records_per_frame_max + 1
    assert len(machine._local._jobs) <= config.relay.flights_max
    served = {f.query.id for f in relay.flights if f.phase is Phase.LOCAL}
    assert set(machine._local._jobs) == served  # no slot is held for nobody, and none is missing
    through = {p for f in relay.flights for p in (f.upstream, f.downstream) if p is not None}
    assert through <= set(membership.links)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(pauses, events), max_size=60), st.booleans())
def test_nothing_a_peer_may_say_breaks_a_machine(story: list[tuple[float, e.Event]], small: bool) -> None:
    bench = Bench(config=CONFIG if small else None)
    bench.link(A, B)
    for pause, event in story:
        bench.wait(pause, ticks_max=400)  # fails on a spin
        bench.handle(event)  # fails on an exception, and on a message that others could not read
        assert bench.machine.deadline > bench.now
        bounded(bench)


@settings(max_examples=60, deadline=None)
@given(st.lists(events, max_size=40))
def test_every_question_asked_here_ends_exactly_once(story: list[e.Event]) -> None:
    bench = Bench()
    bench.link(A, B)
    ends: list[QueryId] = []
    own = query(77, origin=ME)

    def note(effects: list[e.Effect]) -> None:
        for effect in effects:
            match effect:
                case e.Fail(query_id=ident) if ident == own.id:
                    ends.append(ident)
                case e.Deliver(query_id=ident, item=item) if ident == own.id:
                    assert not ends
                    if not isinstance(item, e.Placed) and hasattr(item, "usage"):
                        ends.append(ident)

    note(bench.handle(e.Asked(own)))
    for event in story:
        note(bench.wait(0.2))
        note(bench.handle(event))
    note(bench.wait(own.budget_s))
    assert ends == [own.id]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(pauses, events), max_size=30))
def test_the_same_story_has_the_same_effects(story: list[tuple[float, e.Event]]) -> None:
    told = []
    for _ in range(2):
        bench = Bench()
        effects = bench.link(A, B)
        for pause, event in story:
            effects += bench.wait(pause) + bench.handle(event)
        told.append([repr(effect) for effect in effects])
    assert told[0] == told[1]
