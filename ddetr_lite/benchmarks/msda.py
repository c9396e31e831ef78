"""`ddetr-lite bench msda`: multi-scale deformable attention against every peer that can be imported, in one run."""

import statistics
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from torch import Tensor
from tqdm import tqdm
from tyro.conf import arg

from ddetr_lite.benchmarks.machine import (
    heading,
    memory_bandwidth,
    peak_bytes,
    seconds,
    write_result,
)
from ddetr_lite.benchmarks.msda_peers import BASELINE, OURS, PEERS, Peer, describe_ours, refused
from ddetr_lite.engine.distributed import pick_device
from ddetr_lite.layers.deformable_attention import compass_offsets, sampling_locations
from ddetr_lite.layers.deformable_transformer import encoder_reference_points

Levels = tuple[tuple[int, int], ...]
PAPER: Levels = ((100, 134), (50, 67), (25, 34), (13, 17))  # a picture of 800 × 1066 pixels
QUARTER: Levels = ((50, 67), (25, 34), (13, 17), (7, 9))  # a quarter of its area
SMALL: Levels = ((32, 32), (16, 16), (8, 8), (4, 4))


@dataclass(frozen=True)
class Setting:
    """queries: None for an encoder, where every token is one."""

    levels: Levels
    dim: int = 256
    queries: int | None = None
    batch: int = 2
    heads: int = 8
    points: int = 4


SETTINGS: dict[str, Setting] = {
    "encoder": Setting(PAPER),
    "encoder-quarter": Setting(QUARTER),
    "decoder": Setting(QUARTER, queries=300),
    "small-64": Setting(SMALL, dim=64),
    "small-128": Setting(SMALL, dim=128),
    "small-256": Setting(SMALL, dim=256),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Kind = Literal["model-like", "uniform"]


@dataclass(frozen=True)
class MsdaOptions:
    """Time multi-scale deformable attention against its peers, which take turns in one run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    settings: tuple[str, ...] = ()
    """Shapes to measure, of encoder, encoder-quarter, decoder, small-64, small-128, small-256. Default: all (on a CPU all but
    the first)."""
    peers: Annotated[tuple[str, ...], arg(aliases=["--peer"])] = ()
    """Whom to compare with. Default: all that can be imported."""
    locations: tuple[Kind, ...] = ("model-like", "uniform")
    """model-like: each query around its own place, at the compass offsets, with a noise of 1.5 cells."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the values; locations and weights are float32."""
    repeats: int = 11
    seed: int = 0
    clock_ghz: float | None = None
    """The GPU's clock, for the floor of its L1 cache (128 bytes a cycle and processor). Default: the highest it says it has."""
    out: Path | None = None
    """A name without an ending: NAME.json and NAME.png are written."""


def make_input(setting: Setting, kind: Kind, device: torch.device, dtype: torch.dtype, seed: int) -> tuple[Tensor, ...]:
    """value (B, N, M, D), locations (B, N_q, M, L, P, 2), weights (B, N_q, M, L, P), on `device`."""
    torch.manual_seed(seed)
    levels, heads, points = setting.levels, setting.heads, setting.points
    tokens = sum(h * w for h, w in levels)
    queries = setting.queries or tokens
    value = torch.randn(setting.batch, tokens, heads, setting.dim // heads)
    shape = (setting.batch, queries, heads, len(levels), points)
    if kind == "uniform":
        locations = torch.rand(*shape, 2)
    else:
        offsets = compass_offsets(heads, len(levels), points) + 1.5 * torch.randn(*shape, 2)
        reference = _places(setting)[:, :, None].expand(-1, -1, len(levels), -1)  # (B, N_q, L, 2)
        locations = sampling_locations(reference, offsets, levels)
    weights = torch.randn(shape).flatten(3).softmax(-1).view(shape)
    return value.to(device, dtype), locations.to(device), weights.to(device)


def _places(setting: Setting) -> Tensor:
    """Where queries stand: the centres of all cells, or anywhere. (B, N_q, 2) in 0..1."""
    if setting.queries is not None:
        return torch.rand(setting.batch, setting.queries, 2)
    no_padding = torch.ones(setting.batch, len(setting.levels), 2)
    return encoder_reference_points(setting.levels, no_padding)[:, :, 0]  # the same on all levels


def floors(setting: Setting, value: Tensor, bandwidth: float, clock_ghz: float | None) -> dict[str, float]:
    """Milliseconds that the bytes need: main memory read and written once, and, on CUDA, the gather of all corners through L1.

    What fits into a cache from one repetition to the next can be faster than main memory: all settings but `encoder`.
    """
    batch, tokens, heads, channels = value.shape
    queries, size = setting.queries or tokens, value.element_size()
    samples = batch * queries * heads * len(setting.levels) * setting.points
    values, output = batch * tokens * heads * channels * size, batch * queries * heads * channels * size
    forward = values + output + samples * 3 * 4  # locations and weights are float32
    backward = forward + batch * tokens * heads * channels * 4 + samples * 3 * 4
    result = {"memory forward": forward / bandwidth * 1e3, "memory backward": backward / bandwidth * 1e3}
    if value.is_cuda:
        chip = torch.cuda.get_device_properties(value.device)
        clock = clock_ghz or getattr(chip, "clock_rate", 1.98e6) / 1e6  # an H100's, where torch does not say
        result["L1 forward"] = samples * 4 * channels * size / (chip.multi_processor_count * 128 * clock * 1e9) * 1e3
    return result


def measure(
    peers: dict[str, Peer], setting: Setting, inputs: tuple[Tensor, ...], repeats: int
) -> dict[str, dict[str, float]]:
    """Median milliseconds of forward, and of forward and backward, for each peer; on CUDA peak memory too (bytes).

    All have to give the same result first: raises ValueError for one that does not.
    """
    value, locations, weights = inputs
    leaves = [tensor.detach().clone().requires_grad_() for tensor in inputs]
    sensitivity = torch.randn(value.shape[0], locations.shape[1], value.shape[2] * value.shape[3]).to(value)
    levels = list(setting.levels)

    def forward(peer: Peer) -> None:
        with torch.no_grad():
            peer(value, levels, locations, weights)

    def both(peer: Peer) -> None:
        output = peer(leaves[0], levels, leaves[1], leaves[2])
        torch.autograd.grad(output, leaves, sensitivity.to(output.dtype))

    with torch.no_grad():
        expected = peers[OURS](value, levels, locations, weights).float()
        for name, peer in peers.items():
            gap = (peer(value, levels, locations, weights).float() - expected).abs().max() / expected.abs().max()
            if not gap < (1e-4 if value.dtype == torch.float32 else 3e-2):
                raise ValueError(f"{name} gives another result than {OURS}: {gap:.1e} of the largest")
    for peer in peers.values():
        both(peer)  # what is compiled or planned at the first call
    taken: dict[str, dict[str, list[float]]] = {name: {"forward": [], "both": []} for name in peers}
    for _ in range(repeats):
        for name, peer in peers.items():
            taken[name]["forward"].append(seconds(partial(forward, peer), value.device, queued=True))
            taken[name]["both"].append(seconds(partial(both, peer), value.device, queued=True))
    result = {name: {what: statistics.median(t) * 1e3 for what, t in times.items()} for name, times in taken.items()}
    if value.is_cuda:
        for name, peer in peers.items():
            result[name]["peak bytes"] = peak_bytes(partial(both, peer))
    return result


def run(options: MsdaOptions, command: str) -> dict[str, Any]:
    """Measure, print a table, write NAME.json where a name was given, and return what stands there."""
    device = pick_device(options.device)
    names = options.settings or tuple(SETTINGS)[0 if device.type == "cuda" else 1 :]
    unknown = [name for name in names if name not in SETTINGS]
    if unknown:
        raise ValueError(f"--settings {unknown[0]!r} is unknown: choose from {', '.join(SETTINGS)}")
    dtype = DTYPES[options.dtype]
    probe = torch.empty(1, 1, 1, 32, dtype=dtype, device=device)
    asked = dict.fromkeys((OURS, BASELINE, *(options.peers or PEERS)))  # in order, each once
    reasons = {name: refused(name, probe) for name in asked}
    for name in options.peers:
        if reasons[name]:
            raise ValueError(f"--peer {name}: {reasons[name]}")
    peers = {name: PEERS[name][1]() for name, reason in reasons.items() if reason is None}
    bandwidth = memory_bandwidth(device)
    rows: list[dict[str, Any]] = []
    for name in tqdm(names, "settings", disable=None):
        for kind in options.locations:
            inputs = make_input(SETTINGS[name], kind, device, dtype, options.seed)
            torch.compiler.reset()  # a compiled peer is compiled for each shape
            found = measure(peers, SETTINGS[name], inputs, options.repeats)
            least = floors(SETTINGS[name], inputs[0], bandwidth, options.clock_ghz)
            took = describe_ours(inputs[0])
            rows.append({"setting": name, "locations": kind, "ours": took, "floor ms": least, "peers": found})
    result: dict[str, Any] = {
        **heading(command, device),
        "dtype": options.dtype,
        "repeats": options.repeats,
        "not measured": {name: reason for name, reason in reasons.items() if reason},
        "rows": rows,
    }
    result["machine"]["copy bandwidth, GB/s"] = round(bandwidth / 1e9, 1)
    print(table(result))
    if options.out is not None:
        write_result(result, options.out)
    return result


def ratios(result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Setting and locations → peer → how many times as fast as the baseline, forward and backward."""
    return {
        f"{row['setting']}, {row['locations']}": {
            name: row["peers"][BASELINE]["both"] / found["both"] for name, found in row["peers"].items()
        }
        for row in result["rows"]
    }


def table(result: dict[str, Any]) -> str:
    """Milliseconds, how many times as fast as the baseline, the share of the floor reached, and peak memory."""
    lines = [f"{'':34}{'forward':>10}{'× base':>8}{'of floor':>10}{'fwd+bwd':>10}{'× base':>8}{'peak MB':>9}"]
    for row in result["rows"]:
        least = row["floor ms"]
        lines.append(f"{row['setting']}, {row['locations']} locations: {row['ours']}")
        base = row["peers"][BASELINE]
        for name, found in row["peers"].items():
            floor = max(least["memory forward"], least.get("L1 forward", 0)) / found["forward"]
            memory = f"{found['peak bytes'] / 1e6:9.0f}" if "peak bytes" in found else f"{'–':>9}"
            lines.append(
                f"  {name:32}{found['forward']:>7.2f} ms{base['forward'] / found['forward']:>8.2f}{floor:>10.0%}"
                f"{found['both']:>7.2f} ms{base['both'] / found['both']:>8.2f}{memory}"
            )
    lines += [f"not measured: {name} ({reason})" for name, reason in result["not measured"].items()]
    return "\n".join(lines)
