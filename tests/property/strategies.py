"""Well-formed messages of every kind, drawn within the codec's bounds from a few peers and queries."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from p2pmesh.errors import Reason
from p2pmesh.protocol import messages as m
from p2pmesh.protocol.experience import Report, Row
from p2pmesh.query import (
    Accepted,
    Chunk,
    Ended,
    Hop,
    Lead,
    Message,
    Options,
    Query,
    QueryId,
    Resume,
    Search,
    TokenLogprobs,
    Usage,
)
from p2pmesh.record import Capability, Device, Load, ModelInfo, PeerId, Skill, Version
from tests.machines import ME, UNABLE, A, B, C, D, signed

peers = st.sampled_from([ME, A, B, C, D])
query_ids = st.integers(0, 3).map(lambda i: QueryId(f"{i:032x}"))
attempts = st.integers(0, 3) | st.just(255)
versions = st.builds(Version, st.integers(0, 3) | st.just(2**62), st.integers(0, 5) | st.just(2**62))
counts = st.integers(0, 40) | st.just(2**31 - 1)
seconds = st.floats(0.0, 10.0) | st.sampled_from([0.0, 1e7])
words = st.text(st.characters(codec="utf-8"), max_size=12)
reasons = st.sampled_from(Reason)
paths = st.lists(st.builds(Hop, peers, words, words), max_size=16).map(tuple)
updates = st.lists(st.builds(m.Update, peers, st.sampled_from(m.Status), versions), max_size=12).map(tuple)
marks = st.just(b"") | st.binary(min_size=16, max_size=16)
lines = st.lists(st.builds(m.Line, peers, versions, st.integers(0, 16), marks), max_size=20).map(tuple)
vectors = st.builds(
    lambda seed, length: np.random.default_rng(seed).integers(1, 127, length, np.int8),
    st.integers(1, 200),
    st.sampled_from([64, 64, 64, 1, 384]),  # the simulated space has 64; liars have what they like
)
spaces = st.sampled_from(["", "sim"])
capabilities = st.builds(
    Capability,
    spaces,
    st.lists(
        st.builds(Skill, words, st.none() | vectors, st.floats(0.0, 1.0), st.just(0), words), max_size=3
    ).map(tuple),
    st.lists(
        st.builds(
            ModelInfo,
            st.sampled_from(["small", "large", ""]),
            st.just(""),
            st.integers(0, 4_096),
            st.sampled_from([0.0, 50.0, 1e9]),
            st.sampled_from([0.0, 50.0, 1e9]),
            st.integers(0, 8),
            st.sampled_from([0, 0, 2, 1_024]),
            st.sampled_from([(), (), ("secret",)]),
        ),
        max_size=2,
    ).map(tuple),
    st.sampled_from([("general",), (), ("general", "secret")]),
    st.sampled_from([(), (Device("H100", 60, 80),), (Device("", 0, 0),) * 8]),
)
options = st.builds(
    Options,
    st.integers(1, 8_192),
    st.floats(0.0, 10.0),
    st.floats(0.0, 1.0),
    st.none() | st.integers(0, 2**32 - 1),
    st.lists(words, max_size=8).map(tuple),
    st.just(0) | st.integers(0, 256),
    st.just(0.0) | st.floats(0.0, 1.0),
    st.just(1.0) | st.floats(0.1, 2.0),
    st.just(0.0) | st.floats(-2.0, 2.0),
    st.just(0.0) | st.floats(-2.0, 2.0),
    st.lists(st.tuples(st.integers(0, 2**31 - 1), st.floats(-100.0, 100.0)), max_size=256).map(tuple),
    words | st.just("x" * 16_384),
    st.none() | st.integers(0, 20),
)
log_probabilities = st.floats(-9_999.0, 0.0, width=32)
spelled = st.binary(max_size=4) | st.just(b"x" * 255)


@st.composite
def chunks(draw: st.DrawFn) -> Chunk:
    """A piece of an answer, of whose tokens all are told how likely they were, or none."""
    ids = draw(tokens)
    told = st.builds(
        TokenLogprobs,
        spelled,
        log_probabilities,
        st.lists(st.tuples(spelled, log_probabilities), max_size=3).map(tuple),
    )
    logprobs = draw(st.just(()) | st.lists(told, min_size=len(ids), max_size=len(ids)).map(tuple))
    return Chunk(draw(query_ids), draw(attempts), draw(counts), ids, draw(words), logprobs)


tokens = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)
leads = st.builds(
    Lead,
    peers,
    st.floats(-1.0, 1.0),
    st.booleans(),
    st.sampled_from([(), ("/ip4/10.0.0.1/tcp/1",)]),
    st.none() | seconds,
    st.floats(0.0, 1.0),
)
searches = st.builds(Search, st.lists(leads, max_size=16).map(tuple), st.integers(0, 255))
queries = st.builds(
    Query,
    query_ids,
    peers,
    st.lists(st.builds(Message, st.sampled_from(["system", "user"]), words), max_size=4).map(tuple),
    options,
    st.sampled_from(["auto", "small", "large"]),
    st.sampled_from(["general", "secret"]),
    attempts,
    st.none() | vectors,
    spaces,
    counts,
    st.integers(0, 16),
    seconds,
    paths,
    st.lists(peers, max_size=32).map(tuple),
    peers | st.just(PeerId("")),
    st.none() | st.builds(Accepted, tokens, words, counts, words),
    st.none() | searches,
    st.sampled_from(Resume),
)
records = st.builds(
    signed,
    st.sampled_from([ME, A, B, C, D]) | st.integers(0, 60).map(lambda i: PeerId(f"n{i}")),
    versions,
    st.sampled_from([UNABLE, signed(A).record.capability]) | capabilities,
    st.sampled_from([(), ("/ip4/10.0.0.1/tcp/1",)]),
    st.none() | st.just(A),
)
ended = st.builds(Ended, st.builds(Usage, counts, counts), st.just("stop"), words, words, paths)
rows = st.builds(
    lambda peer, topic, born, trials, share: Row(peer, topic, born, trials, trials * share),
    peers,
    words,
    st.integers(0, 3),
    counts,
    st.floats(0.0, 1.0),
)
loads = st.builds(
    Load,
    seconds,
    counts,
    st.integers(0, 20) | st.just(1_024),
    st.lists(seconds, max_size=5).map(tuple) | st.just((1e7,) * 64),
    seconds,
    st.lists(st.binary(min_size=8, max_size=8), max_size=16).map(tuple),
    st.floats(0.02, 10.0),
)

messages: st.SearchStrategy[m.PeerMessage] = st.one_of(
    st.builds(m.Ping, counts, updates),
    st.builds(m.Ack, counts, updates),
    st.builds(m.PingRequest, counts, peers, updates),
    st.builds(m.Leave, versions),
    st.builds(m.Announce, lines),
    st.builds(m.Digest, st.binary(min_size=256, max_size=256) | st.just(bytes(256))),
    st.builds(m.Pull, st.lists(peers, max_size=20).map(tuple)),
    st.builds(m.Records, st.lists(records, max_size=5).map(tuple)),
    st.builds(m.Evidence, records, records),
    st.builds(
        m.Spent,
        st.lists(st.builds(m.Spending, peers, words, seconds), max_size=5).map(tuple),
        st.booleans(),
    ),
    st.builds(m.LoadReport, loads),
    st.builds(m.Forward, queries),
    st.builds(m.Accept, query_ids, attempts, st.booleans(), seconds, paths, words),
    st.builds(
        m.Refuse,
        query_ids,
        attempts,
        reasons,
        words,
        seconds,
        counts,
        st.lists(peers, max_size=32).map(tuple),
        peers | st.just(PeerId("")),
    ),
    st.builds(m.Tokens, chunks()),
    st.builds(m.End, query_ids, attempts, counts, ended),
    st.builds(m.Error, query_ids, attempts, reasons, words, st.lists(peers, max_size=32).map(tuple)),
    st.builds(m.Cancel, query_ids, attempts),
    st.just(m.Steal()),
    st.builds(m.Lines, st.lists(st.integers(0, 31), max_size=32).map(tuple), lines),
    st.builds(m.Seek, st.lists(peers, max_size=20).map(tuple)),
    st.just(m.Part()),
    st.builds(m.Keep, queries),
    st.builds(m.Copy, chunks(), words),
    st.builds(m.Kept, query_ids, counts),
    st.builds(m.Settle, query_ids, st.none() | ended, counts),
    st.builds(m.Claim, query_ids),
    st.builds(m.Legacy, queries, st.none() | ended),
    st.builds(m.Outcomes, st.builds(Report, st.integers(0, 3), st.lists(rows, max_size=5).map(tuple))),
)
