"""Every knob: its default, its unit, and where the number came from.

Frozen values and the relations between them, nothing read from outside: files, environment and flags are
merged in `peer.settings`. A default lives here, and that of a bound in `limits`, and nowhere else:
`docs/configuration.md` is generated from both, so the text under each field is the manual.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field

from p2pmesh.errors import ConfigError
from p2pmesh.limits import Limits as Limits
from p2pmesh.limits import positive


@dataclass(frozen=True, kw_only=True)
class Membership:
    """Who is here: SWIM's probe, suspect, refute, over links only."""

    probe_interval_s: float = 1.0
    """Seconds between probes, each to one link in turn. As memberlist's LAN preset."""
    probe_timeout_s: float = 0.15
    """Seconds to the next of the direct tries. Three of them fit before the indirect ones (measured: removes
    all but 2 of 2 443 wrong verdicts per node-hour at 10 % loss)."""
    direct_tries: int = 3
    """Direct probes before others are asked to probe."""
    indirect_peers: int = 3
    """Links asked to probe a silent one. As SWIM's k."""
    suspicion_mult: float = 3.0
    """A suspect is declared dead after `suspicion_mult * log10(max(10, links))` seconds, at least. As
    memberlist, but for its 4: the accused is probed at once, and 3 buried nobody alive (`sim detect`)."""
    updates_per_frame_max: int = 12
    """Most membership updates on one probe. 6 saturate at 512 peers (measured)."""
    suspicion_max_mult: float = 6.0
    """A suspicion that nobody else confirms lasts so many times as long. As memberlist."""
    confirmations: int = 3
    """Peers that must confirm a suspicion to bring it down to its least. Lifeguard's k."""
    health_max: int = 8
    """Most points by which a peer doubts itself: each makes its probes wait once more as long (Lifeguard)."""
    retransmit_mult: float = 4.0
    """Each update is sent `retransmit_mult * log10(links + 1)` times. As memberlist."""
    tombstone_s: float = 600.0
    """Seconds the departed are remembered, so that stale gossip cannot bring them back. A guess: far longer
    than any digest lives."""
    members_max: int = 1_024
    """Most peers known, the dead included."""
    links_max: int = 48
    """Most links chosen; as many again are kept that others chose. Detection scoped to links keeps its cost
    flat (measured)."""
    links_far: int = 16
    """How many of them are drawn blindly and kept: without them views fall apart (simulated)."""
    relink_interval_s: float = 2.0
    """Least seconds between two choices of links. A guess: a choice among 1 024 peers takes some ms."""
    redial_min_s: float = 0.5
    """Seconds before a failed dial is tried again; doubles up to `redial_max_s`."""
    redial_max_s: float = 10.0
    """Most seconds between dials of one peer, the dead included: a peer that comes back and knows nobody is
    alone for that long. A guess."""
    dial_grace_s: float = 1.0
    """Of two peers that know each other the lower id dials; the other waits this long, in seconds, and then
    dials too, for the first may be unable to. A guess."""

    def __post_init__(self) -> None:
        positive(self, *self.__dataclass_fields__)
        if self.probe_timeout_s * (self.direct_tries + 1) >= self.probe_interval_s:
            raise ConfigError(
                "membership.probe_timeout_s times direct_tries + 1 must stay below probe_interval_s"
            )
        if self.links_far >= self.links_max:
            raise ConfigError("membership.links_far must stay below membership.links_max")
        if self.redial_min_s > self.redial_max_s:
            raise ConfigError("membership.redial_min_s must not exceed membership.redial_max_s")


@dataclass(frozen=True, kw_only=True)
class Gossip:
    """What they can do (announced, pulled once) and how busy they are (pushed on change)."""

    announce_rounds: int = 3
    """Times a fresh record is announced to `fanout` links: 99.98 % of 100 000 peers (simulated); digests
    reach the rest."""
    announce_interval_s: float = 0.2
    """Seconds between those rounds."""
    fanout: int = 3
    """Links told in each round."""
    digest_interval_s: float = 5.0
    """Seconds between digests, each to one random link."""
    load_delta_s: float = 0.5
    """Load is pushed when the finish time moved more than this, in seconds (simulated)."""
    load_interval_min_s: float = 0.25
    """Least seconds between two pushes of load."""
    load_keepalive_s: float = 5.0
    """Most seconds between two pushes of load."""
    load_set_max: int = 32
    """Most links that get our load."""

    def __post_init__(self) -> None:
        positive(self, *self.__dataclass_fields__)
        if self.load_interval_min_s >= self.load_keepalive_s:
            raise ConfigError("gossip.load_interval_min_s must stay below gossip.load_keepalive_s")


@dataclass(frozen=True, kw_only=True)
class Routing:
    """Where a query goes: least J = wait + work / speed + RTT + lambda * (1 - quality)."""

    lambda_s: float = 20.0
    """Seconds one whole unit of quality is worth: a 0.1 better answer may take 2 s longer. A choice."""
    gain_min_s: float = 0.3
    """Least gain, in seconds, for which a query is passed on (simulated)."""
    gain_min_share: float = 0.1
    """Least gain as a share of the time it would take here (simulated)."""
    steal_gain_min_s: float = 0.2
    """Least gain, in seconds, for which a waiting query is handed to an idle neighbour (simulated)."""
    steal_interval_s: float = 0.1
    """Least seconds between two requests of an idle peer for work. A guess: a few round trips."""
    general_quality: float = 0.5
    """Quality of a peer that declared nothing. A guess, between a wrong specialist and a right one."""
    near: float = 0.35
    """Cosine at and above which a skill covers a query wholly. Measured on 10 topics of 10 prompts with
    all-MiniLM-L6-v2: a prompt lies at .33 (median) from its own topic, at .22 from the nearest other one."""
    far: float = 0.12
    """Cosine at and below which a skill has nothing to do with a query: there a specialist is worth
    nothing, less than a general peer (a wrong adapter scored .015, a generalist .170: measured)."""
    rtt_default_s: float = 0.005
    """Round trip assumed for a peer that was never measured, in seconds. A LAN's."""
    bytes_per_token: float = 4.0
    """UTF-8 bytes of one token, to estimate a prompt. English text under most vocabularies."""
    bytes_per_token_max: float = 8.0
    """No prompt is refused unsent unless it would not fit even at this many bytes a token."""

    def __post_init__(self) -> None:
        if self.lambda_s < 0:
            raise ConfigError(f"routing.lambda_s must not be below 0, not {self.lambda_s!r}")
        positive(self, "near", "rtt_default_s", "bytes_per_token", "bytes_per_token_max")
        if not -1.0 <= self.far < self.near <= 1.0:
            raise ConfigError("routing.far must stay below routing.near, both within -1..1")
        if not 0.0 <= self.general_quality <= 1.0:
            raise ConfigError("routing.general_quality must lie within 0..1")


@dataclass(frozen=True, kw_only=True)
class Relay:
    """Queries in flight."""

    accept_timeout_s: float = 0.5
    """Seconds of silence after which a query is offered to the next peer, the round trip being unknown."""
    dial_patience_s: float = 1.0
    """Seconds a query waits for a link to the peer chosen for it. A guess: round trips and a handshake."""
    keepalive_s: float = 1.0
    """Most seconds between two signs of life of a query that is being served, in seconds."""
    silence_max_s: float = 3.0
    """Seconds without a sign of life after which the peer that serves a query counts as lost."""
    resume: str = "any"
    """Who goes on with an answer asked here when its writer is lost: "any", "same-model", or "never" one."""
    drain_s: float = 30.0
    """Most seconds that a peer that is told to go finishes what it has begun."""
    attempts_max: int = 8
    """Most tries of one query."""
    crashes_max: int = 2
    """Models that may crash over one query before it ends: one may be chance, two are the query's doing."""
    budget_max_s: float = 3_600.0
    """Most seconds that a query of another peer may hold a place here, whatever it asks for."""
    flights_max: int = 1_024
    """Most queries in flight through one peer: asked, passed on or served."""
    waiting_max: int = 64
    """Most queries that wait for a slot of this peer's models. A full queue refuses, with a retry-after."""
    seen_max: int = 4_096
    """Most finished attempts remembered, so that a duplicate is answered and not served again."""

    def __post_init__(self) -> None:
        positive(self, *(set(self.__dataclass_fields__) - {"resume"}))
        if self.resume not in ("any", "same-model", "never"):
            raise ConfigError(f"relay.resume must be any, same-model or never, not {self.resume!r}")
        if self.attempts_max > 255:
            raise ConfigError("relay.attempts_max must be at most 255: it travels as one byte")
        if self.keepalive_s >= self.silence_max_s:
            raise ConfigError("relay.keepalive_s must stay below relay.silence_max_s")


@dataclass(frozen=True, kw_only=True)
class Net:
    """The wire."""

    listen: tuple[str, ...] = ("/ip4/127.0.0.1/tcp/0",)
    """Multiaddresses to listen on. Loopback by default: a peer that is in no mesh must not be
    reachable from outside. `/ip4/0.0.0.0/tcp/4001` opens it to the LAN."""
    announce: tuple[str, ...] = ()
    """Multiaddresses told to others instead of those listened on, for a forwarded port."""
    join: tuple[str, ...] = ()
    """Multiaddresses, ending in /p2p/ID, of peers to meet first. None of them has any power others lack."""
    mdns: bool = False
    """Announce and look for peers on the local network."""
    mdns_interface: str = ""
    """Address of the one interface mDNS uses; empty: all of them. Tests say 127.0.0.1."""
    dial_discovered: bool = True
    """Dial peers heard of through others. False keeps to `join` and whoever dials us: what a peer behind a
    strict firewall lives with, and what `--topology line` shows."""
    dial_timeout_s: float = 10.0
    """Seconds a dial may take, handshakes included."""
    outbox_frames_max: int = 1_024
    """Most frames that wait for one link, of each priority. A full outbox ends the link."""
    inbox_frames_max: int = 1_024
    """Most received frames that wait to be handled; then reading pauses."""
    connections_max: int = 256
    """Most connections at once, at most half of them not yet links; one more is closed unheard. A guess: five
    times `membership.links_max`."""
    inbound_streams_max: int = 8
    """Most streams one connection may open to us in one burst; more ends it. Its right to the next ones comes
    back at `inbound_streams_per_s`. One is needed: any further one is refused."""
    inbound_streams_per_s: float = 4.0
    """Most new streams a second from one connection; more ends it."""
    read_bytes: int = 65_536
    """Bytes asked for at once: small reads cost a window update each (measured)."""

    def __post_init__(self) -> None:
        positive(
            self,
            "dial_timeout_s",
            "outbox_frames_max",
            "inbox_frames_max",
            "connections_max",
            "inbound_streams_max",
            "inbound_streams_per_s",
            "read_bytes",
        )


_MAY_BE_0 = ("idle_unload_s", "prefix_bytes_max")
"""Of `Engine`: 0 turns them off."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The models."""

    threads: int = 1
    """Threads of each model; fewer where a peer's models together would have more than the machine has cores:
    two spinning threads that contend are 5 to 10 times slower than one (measured)."""
    slots: int = 8
    """Queries one model runs at once, in one batch."""
    context_tokens: int = 2_048
    """Longest prompt plus answer of one query; cut to what the model was trained for."""
    prefill_chunk: int = 96
    """Most prompt tokens read in one step. A longer one is read beside others' answers in smaller pieces."""
    gpu_layers: int = 0
    """Layers put on a GPU, where the build has one; -1: all."""
    jobs_max: int = 256
    """Most jobs one engine holds, running and waiting."""
    prefix_bytes_max: int = 268_435_456
    """Most memory, in bytes, that one model keeps conversations in which it has read: the next turn of one of
    them begins at once. 0: each prompt is read whole. A guess: 11 000 tokens of the smallest model."""
    load_timeout_s: float = 120.0
    """Seconds a model may take to load before its process is ended."""
    restart_min_s: float = 0.2
    """Seconds before a crashed engine is started again; doubles up to `restart_max_s`."""
    restart_max_s: float = 30.0
    """Most seconds between restarts."""
    crashes_max: int = 2
    """Crashes while loading, in a row, after which a model file is quarantined."""
    idle_unload_s: float = 0.0
    """Seconds without a query after which a model's process ends and its memory is free; it is loaded again
    for the next query, which waits for it. 0: never."""
    stall_max_s: float = 20.0
    """Seconds an engine with work may stay silent before its process is ended. 60 steps, as measured."""

    def __post_init__(self) -> None:
        positive(self, *(set(self.__dataclass_fields__) - {"gpu_layers", *_MAY_BE_0}))
        for name in _MAY_BE_0:
            if not getattr(self, name) >= 0:
                raise ConfigError(f"engine.{name} must not be below 0, not {getattr(self, name)!r}")


@dataclass(frozen=True, kw_only=True)
class Http:
    """The OpenAI-compatible door."""

    bind: str = "127.0.0.1:7411"
    """HOST:PORT on loopback, which asks nobody who he is; port 0 takes a free one; empty: no HTTP."""
    public: str = ""
    """IP:PORT for other machines: TLS, and a key (`p2pmesh key create`) for each request; empty: none."""
    certificate: str = ""
    """PEM file of the certificate that `public` shows, and those above it. From the folder of the TOML."""
    private_key: str = ""
    """PEM file of its key, without a passphrase."""
    body_bytes_max: int = 1_048_576
    """Longest request body, in bytes."""
    request_timeout_s: float = 120.0
    """A query's whole budget when it comes in over HTTP, in seconds."""
    requests_max: int = 256
    """Most requests served at once at each of the two; one more is answered 503 with a retry-after."""

    def __post_init__(self) -> None:
        positive(self, "body_bytes_max", "request_timeout_s", "requests_max")
        if self.public and not (self.certificate and self.private_key):
            raise ConfigError(
                "http.public needs http.certificate and http.private_key: keys travel by TLS alone"
            )


@dataclass(frozen=True, kw_only=True)
class Quota:
    """How much of the mesh one asker may use: of this peer's models, what was used at its links counted in.
    Whoever has used it up gets `rate_limit_exceeded`, and when to come back; this peer's own user never does.
    Give each peer that answers the same. An asker is a peer, known by its signature: of an app there, the
    peer's own keys say how often it may ask (`p2pmesh key create --per-minute`)."""

    tokens_per_minute: int = 0
    """Tokens, of prompts and answers, that one asker may use a minute on average, and as many at once when he
    used none for a while; 0: as many as there are."""
    zones: dict[str, int] = field(default_factory=dict)
    """The same for the queries of a zone, by the zone's name; one that is not named here is as above."""

    def __post_init__(self) -> None:
        limits = {"tokens_per_minute": self.tokens_per_minute}
        limits |= {f"zones.{zone}": most for zone, most in self.zones.items()}
        for key, most in limits.items():
            if not 0 <= most <= 2**31 - 1:
                raise ConfigError(f"quota.{key} must lie within 0 (no limit) and 2147483647, not {most!r}")


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """One model to serve: `[[models]]` in TOML."""

    model: str
    """A path to a GGUF file, or a name from the catalog ("smollm2-135m-instruct"). In a file, a relative path
    counts from the file's folder; `~` is the home directory."""
    name: str = ""
    """The name others ask for; empty: the file's."""
    engine: str = "llama"
    """"llama", or "echo": a model with no weights and a set speed, for tests."""
    tokens_per_s: float = 50.0
    """Speed of an echo model."""
    digest: str = ""
    """SHA-256 in hex the file must have; empty: any."""
    adapter: str = ""
    """A path to a LoRA adapter, a GGUF file, that is laid over the model; empty: none. Each adapter is a
    model of its own, in its own process: the weights are mapped, and so in memory once, and no answer waits
    for those with another adapter (an adapter holds for all that a context decodes at once)."""
    adapter_scale: float = 1.0
    """How strongly it is laid over: 1 as it was trained."""
    system_prompt: str | None = None
    """Put before a conversation that has no system message of its own. None: nothing, but for the embedded
    default model, which answers in broken French without one (measured)."""
    zones: tuple[str, ...] = ()
    """The zones whose queries alone it answers, because of what it was trained on (`["hr"]`); empty: those of
    every zone that this peer may see. Its name and what it is good at are told to the whole mesh."""

    def __post_init__(self) -> None:
        if not self.tokens_per_s > 0:
            raise ConfigError(f"models.tokens_per_s must be above 0, not {self.tokens_per_s!r}")
        if self.digest and not re.fullmatch("[0-9a-fA-F]{64}", self.digest):
            raise ConfigError(f"models.digest must be 64 hex digits, a SHA-256, not {self.digest[:80]!r}")
        if not math.isfinite(self.adapter_scale):
            raise ConfigError(f"models.adapter_scale must be a number, not {self.adapter_scale!r}")


@dataclass(frozen=True, kw_only=True)
class SkillConfig:
    """One thing this peer is good at: `[[skills]]` in TOML."""

    name: str
    """What it is called."""
    examples: tuple[str, ...] = ()
    """A few prompts of the kind; their mean embedding is the skill's direction."""
    quality: float = 0.8
    """Claimed quality, 0..1. A guess until it is judged."""
    model: str = ""
    """The model that has it; empty: any of this peer's."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.quality <= 1.0:
            raise ConfigError(f"skills.quality of {self.name!r} must lie within 0..1, not {self.quality!r}")
        if not self.examples:
            raise ConfigError(f"skill {self.name!r} needs at least one example prompt")


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole peer."""

    name: str = ""
    """For people; empty: the host's name and the end of the id."""
    state: str = ""
    """Directory of the key and the epoch; empty: $XDG_DATA_HOME/p2pmesh. Two peers cannot share one."""
    models: tuple[ModelConfig, ...] = ()
    """What to serve. Empty: a peer that asks and relays."""
    skills: tuple[SkillConfig, ...] = ()
    """What it is good at. Empty: a general skill."""
    embedder: str = "auto"
    """"auto": all-MiniLM-L6-v2 where set-up has made it; "hash": word hashing, for tests; "none"."""
    zones: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Who may see which zone, by the ids of peers, where this machine signs for its mesh (`[zones]`, `hr =
    ["12D3KooW…"]`): they are given certificates that say so, and all others such as do not. Of a zone that is
    not named here tickets decide (`p2pmesh invite --zone`)."""
    limits: Limits = field(default_factory=Limits)
    membership: Membership = field(default_factory=Membership)
    gossip: Gossip = field(default_factory=Gossip)
    routing: Routing = field(default_factory=Routing)
    relay: Relay = field(default_factory=Relay)
    quota: Quota = field(default_factory=Quota)
    net: Net = field(default_factory=Net)
    engine: Engine = field(default_factory=Engine)
    http: Http = field(default_factory=Http)

    def __post_init__(self) -> None:
        names = {"name": self.name} | {f"skills.name {s.name!r}": s.name for s in self.skills}
        for key, name in names.items():
            if not name.isprintable():
                raise ConfigError(f"{key} holds characters that cannot be printed: {name!r}")
            if (length := len(name.encode("utf-8", "replace"))) > self.limits.name_bytes_max:
                most = f"{self.limits.name_bytes_max} (limits.name_bytes_max)"
                raise ConfigError(f"{key} is {length} bytes long, at most {most}")
        for what, most_of in (("models", self.limits.models_max), ("skills", self.limits.skills_max)):
            if (count := len(getattr(self, what))) > most_of:
                raise ConfigError(f"{count} {what}, at most {most_of} (limits.{what}_max)")
        if self.net.outbox_frames_max < self.relay.waiting_max:
            raise ConfigError("net.outbox_frames_max must not be below relay.waiting_max")
