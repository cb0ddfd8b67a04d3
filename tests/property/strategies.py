"""Well-formed messages of every kind, drawn within the codec's bounds from a few peers and queries."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from p2pmesh.errors import Reason
from p2pmesh.protocol import messages as m
from p2pmesh.query import Chunk, Ended, Hop, Message, Options, Query, QueryId, Usage
from p2pmesh.record import Load, PeerId, Version
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
lines = st.lists(st.builds(m.Line, peers, versions, st.integers(0, 16)), max_size=20).map(tuple)
vectors = st.integers(1, 200).map(lambda seed: np.random.default_rng(seed).integers(-127, 127, 384, np.int8))
options = st.builds(
    Options,
    st.integers(1, 8_192),
    st.floats(0.0, 10.0),
    st.floats(0.0, 1.0),
    st.none() | st.integers(0, 2**32 - 1),
    st.lists(words, max_size=8).map(tuple),
)
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
    st.sampled_from(["", "sim"]),
    counts,
    st.integers(0, 16),
    seconds,
    paths,
    st.lists(peers, max_size=32).map(tuple),
)
records = st.builds(
    signed,
    st.sampled_from([ME, A, B, C, D]) | st.integers(0, 60).map(lambda i: PeerId(f"n{i}")),
    versions,
    st.sampled_from([UNABLE, signed(A).record.capability]),
    st.sampled_from([(), ("/ip4/10.0.0.1/tcp/1",)]),
    st.none() | st.just(A),
)
ended = st.builds(Ended, st.builds(Usage, counts, counts), st.just("stop"), words, words, paths)
tokens = st.lists(st.integers(0, 2**31 - 1), max_size=5).map(tuple)

messages: st.SearchStrategy[m.PeerMessage] = st.one_of(
    st.builds(m.Ping, counts, updates),
    st.builds(m.Ack, counts, updates),
    st.builds(m.PingRequest, counts, peers, updates),
    st.builds(m.Leave, versions),
    st.builds(m.Announce, lines),
    st.builds(m.Digest, lines),
    st.builds(m.Pull, st.lists(peers, max_size=20).map(tuple)),
    st.builds(m.Records, st.lists(records, max_size=5).map(tuple)),
    st.builds(m.LoadReport, st.builds(Load, seconds, counts, counts)),
    st.builds(m.Forward, queries),
    st.builds(m.Accept, query_ids, attempts, st.booleans(), seconds, paths),
    st.builds(
        m.Refuse,
        query_ids,
        attempts,
        reasons,
        words,
        seconds,
        counts,
        st.lists(peers, max_size=32).map(tuple),
    ),
    st.builds(m.Tokens, st.builds(Chunk, query_ids, attempts, counts, tokens, words)),
    st.builds(m.End, query_ids, attempts, counts, ended),
    st.builds(m.Error, query_ids, attempts, reasons, words),
    st.builds(m.Cancel, query_ids, attempts),
)
