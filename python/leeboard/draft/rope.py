"""Rotary position embedding: its frequencies under Hugging Face's scalings, and tables of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor

if TYPE_CHECKING:
    from leeboard.draft.config import DrafterConfig

# Per scaling: the keys that it needs, and those that it may have.
_KEYS: dict[str, tuple[frozenset[str], frozenset[str]]] = {
    "linear": (frozenset({"factor"}), frozenset()),
    "llama3": (
        frozenset(
            {
                "factor",
                "low_freq_factor",
                "high_freq_factor",
                "original_max_position_embeddings",
            }
        ),
        frozenset(),
    ),
    "yarn": (
        frozenset({"factor", "original_max_position_embeddings"}),
        frozenset(
            {"attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"}
        ),
    ),
}


class RopeScaling(dict[str, Any]):
    """A scaling as `DrafterConfig.rope_scaling` holds it: a dict that does not change.

    Unlike a dict it is hashable, so that the config is too.
    """

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))

    def __reduce__(self) -> tuple[Any, ...]:
        return RopeScaling, (dict(self),)

    def __copy__(self) -> RopeScaling:
        return self

    def __deepcopy__(self, memo: Any) -> RopeScaling:
        return self

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError("rope_scaling of a DrafterConfig does not change: make a new config")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse


def normalized_scaling(scaling: object, rope_theta: float) -> RopeScaling | None:
    """Hugging Face's `rope_scaling` or `rope_parameters`, checked and in one spelling.

    The old key `type` becomes `rope_type`, absent values (None) and a `rope_theta` that repeats
    the config's are dropped, and the type "default" becomes None.

    Raises:
        ValueError: Not a mapping, a type that is not supported, a key that is unknown, missing or
            out of range; the message names it.
    """
    if scaling is None:
        return None
    items = scaling.items() if isinstance(scaling, Mapping) else ()
    given = {key: value for key, value in items if value is not None}
    if not given:
        raise ValueError(f"rope_scaling: got {scaling!r}, expected a mapping with a rope_type")
    kinds = {given.pop(key) for key in ("rope_type", "type") if isinstance(given.get(key), str)}
    if len(kinds) != 1:
        raise ValueError(f"rope_scaling: got {scaling!r}, expected one name as its rope_type")
    (kind,) = kinds
    if kind != "default" and kind not in _KEYS:
        raise ValueError(
            f"rope_scaling: got rope_type {kind!r}, expected one of {['default', *_KEYS]}"
        )
    theta = given.pop("rope_theta", rope_theta)
    if theta != rope_theta:
        raise ValueError(
            f"rope_scaling: got rope_theta {theta!r} in it, expected rope_theta = {rope_theta!r}"
        )
    needed, optional = _KEYS.get(kind, (frozenset(), frozenset()))
    if unknown := sorted(given.keys() - needed - optional, key=str):
        raise ValueError(f"rope_scaling: unknown key(s) {unknown} for rope_type {kind!r}")
    if missing := sorted(needed - given.keys()):
        raise ValueError(f"rope_scaling: missing key(s) {missing} for rope_type {kind!r}")
    if kind == "default":
        return None
    for key, value in given.items():
        _check_value(key, value)
    if kind == "llama3" and given["low_freq_factor"] >= given["high_freq_factor"]:
        raise ValueError(
            f"rope_scaling: got low_freq_factor {given['low_freq_factor']!r}, expected less than "
            f"high_freq_factor = {given['high_freq_factor']!r}"
        )
    return RopeScaling({"rope_type": kind, **dict(sorted(given.items()))})


def _check_value(key: str, value: object) -> None:
    if key == "truncate":
        good, expected = isinstance(value, bool), "True or False"
    elif key == "original_max_position_embeddings":
        good, expected = type(value) is int and value > 0, "a positive integer"
    elif key == "factor":
        good = type(value) in (int, float) and 1 <= value < math.inf  # type: ignore[operator]
        expected = "a number from 1 up"
    else:
        good = type(value) in (int, float) and 0 < value < math.inf  # type: ignore[operator]
        expected = "a positive number"
    if not good:
        raise ValueError(f"rope_scaling: got {key} {value!r}, expected {expected}")


def rope_fields(source: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` of a DrafterConfig from the fields of a Hugging Face config.

    `rope_parameters` is what newer versions of transformers write in place of the other two.
    """
    parameters = source.get("rope_parameters") or {}
    # Models that mix window and full attention keep one set of parameters per kind of layer.
    parameters = dict(parameters.get("full_attention", parameters) or {})
    # A drafter turns every channel, whatever its target does.
    parameters.pop("partial_rotary_factor", None)
    theta = parameters.pop("rope_theta", None)
    if theta is None:
        theta = source.get("rope_theta")
    scaling = parameters or source.get("rope_scaling") or None
    return {"rope_theta": 10000.0 if theta is None else theta, "rope_scaling": scaling}


def inverse_frequencies(config: DrafterConfig) -> tuple[Tensor, float]:
    """Angle per position of every pair of channels, under the config's scaling.

    f_i = rope_theta^(-2i/D), then by `rope_scaling`: "linear" divides by `factor`; "llama3"
    divides the wavelengths beyond the original context and blends the ones near it; "yarn" (Peng
    et al., 2023, arXiv:2309.00071) blends along a ramp over i and scales cosine and sine. The
    arithmetic is that of transformers' `ROPE_INIT_FUNCTIONS`, operation by operation.

    Returns:
        (float32 [D/2] on the CPU, the factor of cosine and sine: 1.0 but for "yarn").
    """
    dim, base = config.head_dim, config.rope_theta
    pairs = torch.arange(0, dim, 2, dtype=torch.float32, device="cpu")
    plain = 1.0 / (base ** (pairs / dim))
    scaling = config.rope_scaling
    if scaling is None:
        return plain, 1.0
    if scaling["rope_type"] == "linear":
        return plain / scaling["factor"], 1.0
    if scaling["rope_type"] == "llama3":
        return _llama3(plain, scaling), 1.0
    return _yarn(base ** (pairs / dim), config, scaling)


def _llama3(plain: Tensor, scaling: Mapping[str, Any]) -> Tensor:
    factor, context = scaling["factor"], scaling["original_max_position_embeddings"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    wavelength = 2 * math.pi / plain
    scaled = torch.where(wavelength > context / low, plain / factor, plain)
    smooth = (context / wavelength - low) / (high - low)
    blended = (1 - smooth) * scaled / factor + smooth * scaled
    between = ~(wavelength < context / high) * ~(wavelength > context / low)
    return torch.where(between, blended, scaled)


def _yarn(
    period: Tensor, config: DrafterConfig, scaling: Mapping[str, Any]
) -> tuple[Tensor, float]:
    dim, factor = config.head_dim, scaling["factor"]

    def magnitude(mscale: float) -> float:
        return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0

    def channel(rotations: float) -> float:
        """The pair that turns so often within the original context."""
        context = scaling["original_max_position_embeddings"]
        turns = math.log(context / (rotations * 2 * math.pi))
        return (dim * turns) / (2 * math.log(config.rope_theta))

    attention = scaling.get("attention_factor")
    if attention is None:
        attention = magnitude(1)
        if "mscale" in scaling and "mscale_all_dim" in scaling:
            attention = magnitude(scaling["mscale"]) / magnitude(scaling["mscale_all_dim"])
    low = channel(scaling.get("beta_fast", 32))
    high = channel(scaling.get("beta_slow", 1))
    if scaling.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dim - 1)
    if low == high:
        high += 0.001
    ramp = (torch.arange(dim // 2, dtype=torch.float32, device="cpu") - low) / (high - low)
    keep = 1 - ramp.clamp(0, 1)
    return 1.0 / (factor * period) * (1 - keep) + 1.0 / period * keep, float(attention)


def rope_table(config: DrafterConfig, positions: int) -> tuple[Tensor, Tensor]:
    """Cosine and sine of the rotary angles of positions 0 to `positions` - 1.

    Args:
        config: Says head width, base and scaling.
        positions: Number of rows, 0 or more.

    Returns:
        (cos, sin), float32 [positions, D/2] on the CPU, each times the scaling's factor. Angles
        are float32 products of position and frequency, as in transformers.
    """
    inverse, factor = inverse_frequencies(config)
    return rotation(torch.arange(positions, device="cpu"), inverse, factor)


def rotation(positions: Tensor, inverse: Tensor, factor: float) -> tuple[Tensor, Tensor]:
    """(cos, sin), float32 [..., D/2], of integer positions [...] and the two values of
    `inverse_frequencies`, on one device."""
    angles = positions[..., None].float() * inverse
    cos, sin = angles.cos(), angles.sin()
    return (cos, sin) if factor == 1.0 else (cos * factor, sin * factor)
