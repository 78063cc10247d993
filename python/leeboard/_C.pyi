"""Compiled CPU kernels of leeboard (internal; use leeboard.ops).

Kernel entry points return False, with nothing touched, for arguments that they do not take.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import Tensor

# Outputs of at least this many bytes are written around the cache.
STREAM_BYTES: int

def isa_levels() -> list[tuple[int, str]]: ...
def has_thread_pool() -> bool: ...
def has_exchange_table() -> bool: ...

# (up and down rate in bits a second, up and down delay in ns, bytes that may wait).
_Port: TypeAlias = tuple[float, float, int, int, int]

class Star:
    """Links of known rate and delay around a switch, without a clock. Times in ns."""

    def __init__(self, ports: Sequence[_Port], framing: int = 0) -> None: ...
    def offer(
        self,
        now: int,
        source: int,
        target: int,
        bytes: int,  # noqa: A002
        packet: int,
        flow: int = 0,
    ) -> bool: ...
    def next(self) -> int: ...
    def advance(self, now: int) -> tuple[list[tuple[int, int, int]], list[int]]: ...
    def counters(self, port: int) -> dict[str, int]: ...

class Relay:
    """A thread that moves packets between TUN devices, over such links."""

    def __init__(
        self, descriptors: Sequence[int], ports: Sequence[Any], framing: int, network: int
    ) -> None: ...
    def set_links(self, ports: Sequence[Any]) -> None: ...
    def real_time(self) -> bool: ...
    def report(self) -> dict[str, Any]: ...
    def stop(self) -> None: ...

class SimProgram:
    def __init__(self, program: dict[str, Any]) -> None: ...
    @property
    def ranks(self) -> int: ...

class SimRoutes:
    def __init__(self, platform: dict[str, Any]) -> None: ...
    def find(self, source: int, target: int) -> tuple[list[int], int, int, float]:
        """Resources (2 * link + direction), latency and overhead (ps), bandwidth (bytes/s)."""

class SimMaxMin:
    def __init__(self, capacities: list[float], limit: float) -> None: ...
    def add(self, shares: list[tuple[int, float]]) -> int: ...
    def set_active(self, flow: int, active: bool) -> None: ...
    def set_capacity(self, resource: int, capacity: float) -> None: ...
    def solve(self) -> list[float]: ...
    def loads(self) -> list[float]: ...
    def visited(self) -> int: ...

def sim_carry(
    platform: dict[str, Any], messages: dict[str, Any], network: str, bins: int
) -> dict[str, Any]: ...
def sim_hold(
    structure: str, pending: int, holds: int, distribution: str, seed: int
) -> tuple[float, int]: ...
def rms_norm_forward(
    x: Tensor,
    weight: Tensor | None,
    out: Tensor,
    eps: float,
    weight_offset: float,
    rounding: str,
    level: int,
) -> bool: ...
def rms_norm_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor | None,
    grad_residual: Tensor | None,
    grad_x: Tensor,
    grad_weight: Tensor | None,
    eps: float,
    weight_offset: float,
    rounding: str,
    level: int,
) -> bool: ...
def add_rms_norm_forward(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None,
    normed: Tensor,
    new_residual: Tensor,
    eps: float,
    weight_offset: float,
    rounding: str,
    level: int,
) -> bool: ...
def aux_norm_linear_forward(
    hiddens: list[Tensor],
    gammas: list[Tensor],
    weight: Tensor,
    out: Tensor,
    eps: float,
    level: int,
) -> bool: ...
def decode_attention_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    positions: Tensor | None,
    mask: Tensor | None,
    out: Tensor,
    scale: float,
    window: int,
    sinks: int,
    append: bool,
    level: int,
) -> bool: ...
def draft_chain_forward(
    state: Tensor,
    token: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    parts: list[Tensor],
    matrices: list[Tensor],
    formats: list[str],
    d2t: Tensor | None,
    outputs: list[Tensor],
    steps: int,
    topk: int,
    nodes: int,
    eps: float,
    norm_output: bool,
    norm_before_residual: bool,
    window: int,
    sinks: int,
    level: int,
) -> bool: ...
def drafter_glue_forward(
    x: Tensor,
    token: Tensor,
    embedding: Tensor,
    norm_weight: Tensor,
    hidden_weight: Tensor,
    input_weight: Tensor,
    joined: Tensor,
    state: Tensor,
    eps: float,
    norm_output: bool,
    level: int,
) -> bool: ...
def linear_topk_forward(
    x: Tensor,
    data: Tensor,
    scales: Tensor | None,
    d2t: Tensor | None,
    index: Tensor,
    value: Tensor,
    lse: Tensor | None,
    format: str,  # noqa: A002
    level: int,
) -> bool: ...
def panel_linear_forward(
    x: Tensor,
    weight: Tensor,
    panels: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    over_inputs: bool,
    panel: int,
    strict: bool,
    level: int,
) -> bool: ...
def panel_ffn_forward(
    x: Tensor,
    up: Tensor,
    down: Tensor,
    gate: Tensor | None,
    up_bias: Tensor | None,
    gate_bias: Tensor | None,
    panels: Tensor | None,
    bias: Tensor | None,
    gates: Tensor | None,
    residual: Tensor | None,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    out: Tensor,
    rows_per_sample: int,
    activation: int,
    norm: int,
    eps: float,
    panel: int,
    strict: bool,
    level: int,
) -> bool: ...
def qlinear_forward(
    x: Tensor,
    data: Tensor,
    scales: Tensor | None,
    norm_weight: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    format: str,  # noqa: A002
    eps: float,
    level: int,
) -> bool: ...
def swiglu_linear_forward(
    x: Tensor,
    matrices: list[Tensor | None],
    norm_weight: Tensor | None,
    residual: Tensor | None,
    out: Tensor,
    formats: list[str],
    eps: float,
    level: int,
) -> bool: ...
def ttt_loss_teacher(
    logits: Tensor,
    logsumexp: Tensor | None,
    total: Tensor,
    coverage: Tensor,
    best: Tensor,
    softcap: float,
    level: int,
) -> bool: ...
def ttt_loss_rows(
    logits: Tensor,
    teacher: Tensor,
    place: Tensor,
    total: Tensor,
    coverage: Tensor,
    best: Tensor,
    weight: Tensor,
    row_loss: Tensor,
    hit: Tensor,
    overlap: Tensor,
    loss: str,
    eta: float,
    gradient: bool,
    level: int,
) -> bool: ...
def unit_saliency_forward(
    activation: Tensor, grad: Tensor, out: Tensor, width: int, level: int
) -> bool: ...
def verify_greedy_forward(
    draft_tokens: Tensor,
    target_tokens: Tensor,
    parents: Tensor | None,
    accepted: Tensor,
    next_token: Tensor,
    path: Tensor | None,
    level: int,
) -> bool: ...
def verify_sample_forward(
    draft_tokens: Tensor,
    target_probs: Tensor,
    draft_probs: Tensor | None,
    parents: Tensor | None,
    uniforms: Tensor,
    accepted: Tensor,
    next_token: Tensor,
    path: Tensor | None,
    level: int,
) -> bool: ...
def first_bad_distribution(probs: Tensor, tolerance: float, level: int) -> int | None:
    """The first row that is no distribution, or -1; None for a tensor that is not taken."""

def sim_run(
    program: SimProgram, platform: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]: ...

class SimAborted(BaseException):
    """The simulation has been ended: a rank's thread unwinds, past any `except Exception`."""

class SimLive:
    """A simulation whose ranks' programs are written while it runs, by threads that take turns.

    A rank's turn is over when it calls run, look, park or finish: they return the rank whose turn is
    next, which is often the same; -1: nothing can go on. Until then what it appends is only kept.
    Times are picoseconds, sizes bytes; -1: any rank, any tag. Methods raise ValueError for what
    cannot be meant; run, look, park, finish, enter and switch raise SimAborted after abort().
    """

    def __init__(self, ranks: int, platform: dict[str, Any], options: dict[str, Any]) -> None: ...
    def delay(self, rank: int, ps: int) -> None: ...
    def sleep(self, rank: int, ps: int) -> None: ...
    def compute(self, rank: int, flops: int, bytes: int, dtype: int = 0) -> None: ...  # noqa: A002
    def mark(self, rank: int, name: int) -> None: ...
    def alloc(self, rank: int, bytes: int) -> None: ...  # noqa: A002
    def free(self, rank: int, bytes: int) -> None: ...  # noqa: A002
    def isend(self, rank: int, to: int, tag: int, bytes: int) -> int: ...  # noqa: A002
    def irecv(self, rank: int, source: int, tag: int, bytes: int) -> int: ...  # noqa: A002
    def collective(
        self,
        rank: int,
        group: int,
        which: int,
        bytes: int,  # noqa: A002
        root: int = -1,
        algorithm: int = 0,
        blocking: bool = False,
    ) -> int: ...
    def all_to_all(
        self,
        rank: int,
        group: int,
        sends: list[int],
        recvs: list[int],
        algorithm: int = 0,
        blocking: bool = False,
    ) -> int: ...
    def wait(self, rank: int, slot: int) -> None: ...
    def group(self, name: str, members: list[int], rank: int = -1) -> int: ...
    def run(self, rank: int) -> int: ...
    def look(self, rank: int) -> int: ...
    def park(self, rank: int) -> int: ...
    def finish(self, rank: int) -> int: ...
    def unpark(self, rank: int, at: int) -> None: ...
    def clock(self, rank: int) -> int: ...
    def place(self, rank: int) -> int: ...
    def done(self, rank: int, slot: int) -> bool: ...
    def met(self, rank: int, slot: int) -> tuple[int, int]: ...
    def serial(self, rank: int, slot: int) -> int: ...
    def enter(self, rank: int) -> None: ...
    def switch(self, rank: int, to: int) -> None: ...
    def leave(self, to: int) -> None: ...
    def abort(self) -> None: ...
    def interrupt(self) -> None: ...
    def outcome(self) -> dict[str, Any]: ...
    def program(self) -> dict[str, Any]: ...

def sim_collectives() -> list[str]: ...
def sim_algorithms() -> list[str]: ...
def sim_supports(collective: int, algorithm: int) -> bool: ...
def sim_rounds(
    collective: int,
    algorithm: int,
    ranks: int,
    root: int,
    bytes: int,  # noqa: A002
    islands: list[int] = ...,
    sizes: list[int] = ...,
) -> tuple[list[list[tuple[list[tuple[int, int]], list[tuple[int, int]], int]]], int]: ...

class AttentionPlan:
    """The keys that each query row sees; checked here, immutable."""

    def __init__(self, offsets: Tensor, spans: Tensor, keys: int) -> None: ...
    @property
    def queries(self) -> int: ...
    @property
    def keys(self) -> int: ...

def sparse_gqa_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor | None,
    plans: list[AttentionPlan],
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    heads: tuple[int, ...] | None,
    padding: Tensor | None,
    sink_logits: Tensor | None,
    scale: float,
    softcap: float,
    level: int,
) -> bool: ...
def sparse_gqa_top_u(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor | None,
    chosen: Tensor,
    sample: Tensor,
    counts: Tensor,
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    heads: tuple[int, ...] | None,
    padding: Tensor | None,
    sink_logits: Tensor | None,
    scale: float,
    softcap: float,
    level: int,
) -> bool: ...
def ttt_attention_forward(
    q: Tensor,
    k: list[Tensor],
    v: list[Tensor],
    out: Tensor,
    lse: Tensor | None,
    plans: list[AttentionPlan],
    bounds: Tensor | None,
    scale: float,
    level: int,
) -> bool: ...
def ttt_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: list[Tensor],
    v: list[Tensor],
    out: Tensor,
    lse: Tensor,
    grad_q: Tensor,
    grad_k: list[Tensor],
    grad_v: list[Tensor],
    plans: list[AttentionPlan],
    bounds: Tensor | None,
    scale: float,
    level: int,
) -> bool: ...
def sparse_gqa_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    plans: list[AttentionPlan],
    cu_q: Tensor | None,
    cu_k: Tensor | None,
    heads: tuple[int, ...] | None,
    padding: Tensor | None,
    scale: float,
    softcap: float,
    level: int,
) -> bool: ...
