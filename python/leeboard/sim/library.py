"""Documented devices, links and protocols by name.

Every figure is the vendor's or the standard's ("nominal") unless its source says "measured". A
nominal device computes at its peak: give it an efficiency curve, or scale `speed`, for what a
program sees of it. Idle power is in no data sheet and therefore 0; active power is the vendor's
limit. Latencies depend on the installation: links have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from leeboard.sim.names import PlatformError, nearest
from leeboard.sim.parts import Device, Link, Protocol

Part = TypeVar("Part", Device, Link, Protocol)


@dataclass(frozen=True)
class Preset:
    """A documented part.

    Attributes:
        name: What platform files and arguments call it.
        part: The device, link or protocol.
        source: Where its figures come from, and what they mean.
        measured: Whether figures were measured; otherwise they are nominal.
    """

    name: str
    part: Device | Link | Protocol
    source: str
    measured: bool = False


def _nvidia(
    name: str,
    flops: str,
    bandwidth: str,
    memory: str,
    active_power: str,
    source: str,
    **peaks: str,
) -> Preset:
    given: dict[str, Any] = {f"flops_{precision}": peak for precision, peak in peaks.items()}
    device = Device(
        name,
        flops=flops,
        memory_bandwidth=bandwidth,
        memory=memory,
        active_power=active_power,
        **given,
    )
    return Preset(name, device, f"{source}; dense FP16 with FP32 accumulation, board power limit")


_DEVICES = (
    Preset("generic", Device("generic"), "round figures of no product: 1 TFLOP/s, 100 GB/s"),
    _nvidia(
        "a100-40gb",
        "312 TFLOP/s",
        "1555 GB/s",
        "40 GB",
        "400 W",
        "NVIDIA A100 Tensor Core GPU data sheet (SXM4, 40 GB)",
        float64="19.5 TFLOP/s",
        float32="19.5 TFLOP/s",
        int8="624 TFLOP/s",
    ),
    _nvidia(
        "a100-80gb",
        "312 TFLOP/s",
        "2039 GB/s",
        "80 GB",
        "400 W",
        "NVIDIA A100 Tensor Core GPU data sheet (SXM4, 80 GB)",
        float64="19.5 TFLOP/s",
        float32="19.5 TFLOP/s",
        int8="624 TFLOP/s",
    ),
    _nvidia(
        "h100-sxm",
        "989.4 TFLOP/s",
        "3.35 TB/s",
        "80 GB",
        "700 W",
        "NVIDIA H100 Tensor Core GPU data sheet and architecture paper (SXM5)",
        float64="67 TFLOP/s",
        float32="67 TFLOP/s",
        float8="1979 TFLOP/s",
        int8="1979 TFLOP/s",
    ),
    _nvidia(
        "h200-sxm",
        "989.4 TFLOP/s",
        "4.8 TB/s",
        "141 GB",
        "700 W",
        "NVIDIA H200 Tensor Core GPU data sheet (SXM5; computes as the H100)",
        float64="67 TFLOP/s",
        float32="67 TFLOP/s",
        float8="1979 TFLOP/s",
        int8="1979 TFLOP/s",
    ),
    _nvidia(
        "rtx-4090",
        "165.2 TFLOP/s",
        "1008 GB/s",
        "24 GiB",
        "450 W",
        "NVIDIA Ada GPU architecture paper (GeForce RTX 4090)",
        float64="1290 GFLOP/s",
        float32="82.6 TFLOP/s",
        float8="330.3 TFLOP/s",
        int8="660.6 TFLOP/s",
    ),
    _nvidia(
        "jetson-orin-nano",
        "10 TFLOP/s",
        "68 GB/s",
        "8 GB",
        "15 W",
        "NVIDIA Jetson Orin Nano Series data sheet (8 GB, 15 W mode; 40 sparse INT8 TOPS: a "
        "quarter; FP32: 1024 cores at 625 MHz)",
        float32="1.28 TFLOP/s",
        int8="20 TFLOP/s",
    ),
    _nvidia(
        "jetson-agx-orin",
        "42.5 TFLOP/s",
        "204.8 GB/s",
        "64 GB",
        "60 W",
        "NVIDIA Jetson AGX Orin Series data sheet DS-10662-001 and technical brief (64 GB; GPU: "
        "170 sparse INT8 TOPS: a quarter; FP32: 2048 cores at 1.3 GHz)",
        float32="5.3248 TFLOP/s",
        int8="85 TFLOP/s",
    ),
    Preset(
        "epyc-7763",
        Device(
            "epyc-7763",
            flops="5.0176 TFLOP/s",
            flops_float64="2.5088 TFLOP/s",
            memory_bandwidth="204.8 GB/s",
            active_power="280 W",
        ),
        "AMD EPYC 7003 Series data sheet: 64 cores at the base clock of 2.45 GHz, 32 FP32 "
        "operations a cycle (two 256-bit FMA), eight channels of DDR4-3200; thermal design power; "
        "one socket",
    ),
)

_LINKS = (
    Preset("ethernet-1g", Link("1 Gbit/s"), "IEEE 802.3ab, 1000BASE-T"),
    Preset("ethernet-10g", Link("10 Gbit/s"), "IEEE 802.3ae"),
    Preset("ethernet-25g", Link("25 Gbit/s"), "IEEE 802.3by"),
    Preset("ethernet-100g", Link("100 Gbit/s"), "IEEE 802.3ba"),
    Preset(
        "wifi-6",
        Link("1201 Mbit/s", duplex="half"),
        "IEEE 802.11ax: 80 MHz, two spatial streams, MCS 11, guard interval 0.8 us; the physical "
        "rate of one station beside its access point, both ways together",
    ),
    Preset(
        "lte-cat-4",
        Link("51 Mbit/s"),
        "3GPP TS 36.306, category 4: 51.0 Mbit/s up (150.8 Mbit/s down); the slower way, for both",
    ),
    Preset("nvlink-3", Link("300 GB/s"), "NVIDIA A100 data sheet: 600 GB/s, both ways together"),
    Preset("nvlink-4", Link("450 GB/s"), "NVIDIA H100 data sheet: 900 GB/s, both ways together"),
    Preset(
        "pcie-4-x16",
        Link(16e9 * 16 * 128 / 130 / 8),
        "PCI Express 4.0: 16 GT/s, 16 lanes, 128b/130b",
    ),
    Preset(
        "pcie-5-x16",
        Link(32e9 * 16 * 128 / 130 / 8),
        "PCI Express 5.0: 32 GT/s, 16 lanes, 128b/130b",
    ),
    Preset("infiniband-hdr", Link("200 Gbit/s"), "InfiniBand Trade Association: HDR, four lanes"),
    Preset("infiniband-ndr", Link("400 Gbit/s"), "InfiniBand Trade Association: NDR, four lanes"),
)

_PROTOCOLS = (
    Preset("ideal", Protocol("ideal"), "nothing but bandwidth and latency, as closed forms assume"),
    Preset(
        "gloo",
        Protocol("gloo", eager_limit=0, handshake="notify", goodput=0.956, cross_traffic=0.09),
        "PyTorch's gloo over TCP: a message waits for the receiver's word; 1448 bytes of payload "
        "in a frame of 1514; both directions busy are 9 % slower. Measured between network "
        "namespaces at 100 Mbit/s, frames counted without preamble and gap",
        measured=True,
    ),
    Preset(
        "mpi",
        Protocol(
            "mpi",
            eager_limit="64 KiB",
            handshake="request",
            goodput=0.956,
            cross_traffic=0.09,
        ),
        "Open MPI over TCP: the default of btl_tcp_eager_limit, 65536; shares as gloo's",
    ),
    Preset(
        "nccl",
        Protocol("nccl", eager_limit="4 MiB", handshake="notify", goodput=0.98, packet=4096),
        "NCCL over RoCEv2: receivers post NCCL_BUFFSIZE, 4 MiB by default; packets of 4096 bytes "
        "carry 82 bytes of Ethernet, IP, UDP and InfiniBand headers; no software acknowledgements",
    ),
)

DEVICES: dict[str, Device] = {
    preset.name: preset.part for preset in _DEVICES if isinstance(preset.part, Device)
}
LINKS: dict[str, Link] = {
    preset.name: preset.part for preset in _LINKS if isinstance(preset.part, Link)
}
PROTOCOLS: dict[str, Protocol] = {
    preset.name: preset.part for preset in _PROTOCOLS if isinstance(preset.part, Protocol)
}
TABLES: dict[type, Mapping[str, Any]] = {Device: DEVICES, Link: LINKS, Protocol: PROTOCOLS}


def presets() -> list[Preset]:
    """All presets: devices, links, protocols."""
    return [*_DEVICES, *_LINKS, *_PROTOCOLS]


def find(kind: type[Part], given: Part | str) -> Part:
    """The preset of a name; what is no name is given back.

    Raises:
        PlatformError: An unknown name (the nearest one is suggested), or another type.
    """
    what, table = kind.__name__.lower(), TABLES[kind]
    if isinstance(given, kind):
        return given
    if not isinstance(given, str):
        raise PlatformError(f"{what}: got {given!r}, expected a {kind.__name__} or a preset's name")
    if given in table:
        preset: Part = table[given]
        return preset
    hint = nearest(given, table)
    raise PlatformError(f"{what}: unknown preset {given!r}{hint}; expected {', '.join(table)}")
