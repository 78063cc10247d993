"""Profiles: files, looking calls up, timing calls, and the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from compute_core import metered
from leeboard.cli import main
from leeboard.sim import Platform
from leeboard.sim.distributed.compute import (
    Profile,
    ProfiledMeter,
    ProfileError,
    meter,
    report_of,
)
from leeboard.sim.distributed.compute.collect import CollectMeter, Example, Like
from leeboard.sim.distributed.compute.mode import Call
from leeboard.sim.distributed.compute.profile import signature
from leeboard.sim.distributed.compute.programs import calls_of
from leeboard.sim.distributed.compute.timing import profiled


def collected(run: Any) -> list[Example]:
    examples: dict[Call, Example] = {}
    metered(CollectMeter(examples), run)
    return list(examples.values())


def call(run: Any) -> Call:
    (example,) = collected(run)
    return example.call


def product(m: int, k: int, n: int, dtype: torch.dtype = torch.float32) -> Call:
    a, b = torch.ones(m, k, dtype=dtype), torch.ones(k, n, dtype=dtype)
    return call(lambda: a @ b)


def test_exact_estimated_and_fallback() -> None:
    """Equal calls as measured; others of the operator scaled by roofline; else the platform's."""
    table = Profile("d", flops=1e9, memory_bandwidth=1e9)
    table.add(product(64, 64, 64), 1e-3, 5)
    table.add(product(8, 8, 8), 2e-5, 1)
    assert table.find(product(64, 64, 64)).picoseconds == 10**9
    # Eight times the flops, both bound by arithmetic; nearest is the larger one.
    double = table.find(product(128, 128, 128))
    assert (double.source, double.picoseconds) == ("estimated", 8 * 10**9)
    small = table.find(product(8, 8, 4))
    # Both bound by arithmetic: 512 and 1024 FLOP.
    assert (small.source, small.picoseconds) == ("estimated", 10**7)
    for missing in (product(64, 64, 64, torch.float64), call(lambda: torch.ones(3))):
        assert (table.find(missing).source, table.find(missing).picoseconds) == ("roofline", None)


def test_profiled_meter_says_what_it_did_not_know() -> None:
    """Delays for what the table has, compute ops for the rest, and counts of both."""
    table = Profile("generic", flops=1e9, memory_bandwidth=1e9)
    a, b = torch.ones(16, 16), torch.ones(32, 16)
    table.add(product(16, 16, 16), 1e-4, 1)
    made = meter("profiled", Platform.star(2, bandwidth=1e9), 0, profile=table)

    def program() -> None:
        for _ in range(3):
            a @ a
        torch.tanh(b @ a)

    rank = metered(made, program)
    assert rank.delays == [10**8] * 3 + [2 * 10**8]
    assert [flops for flops, _, _ in rank.computed] == [512]
    report = report_of("profiled", [made])
    assert report.sources() == {"measured": 3, "estimated": 1, "roofline": 1}
    assert [op.name for op in report.fallbacks] == ["aten.tanh.default"]
    text = str(report)
    assert "calls: 3 measured, 1 estimated, 1 roofline" in text
    assert "not in the profile, by roofline: aten.tanh.default (1)" in text
    assert report.metadata()["compute.calls"] == "3 measured, 1 estimated, 1 roofline"
    assert "by the profile of 'generic'" in report.metadata()["compute.devices"]


def test_signatures() -> None:
    """Shapes, dtypes, strides that are not plain, whole numbers; not what floats are."""
    x = torch.ones(2, 3)
    assert signature(call(lambda: x.t() + x.t())) == "float32[3,2]{1,3} float32[3,2]{1,3}"
    assert signature(call(lambda: x.sum(1))) == "float32[2,3] 1 1"
    assert signature(call(lambda: x + 1.5)) == signature(call(lambda: x + 2.5))
    assert signature(call(lambda: x.to(torch.float16))).startswith("float32[2,3] dtype")
    assert signature(call(lambda: torch.cat([x, x]))) == "2 float32[2,3] float32[2,3]"


def test_saved_and_read(tmp_path: Path) -> None:
    """A file reads back equal; real and fake tensors look up alike."""
    table = Profile("d", 1e9, 2e9, {"processor": "p"})
    table.add(product(4, 5, 6), 1.25e-6, 7)
    table.save(tmp_path / "p.json")
    read = Profile.load(tmp_path / "p.json")
    assert (read.device, read.flops, read.memory_bandwidth) == ("d", 1e9, 2e9)
    assert (read.host, read.operators) == (table.host, table.operators)
    with FakeTensorMode():
        assert read.find(product(4, 5, 6)).picoseconds == 1_250_000
    assert "aten.mm.default       1      7" in str(read)


GOOD = {
    "format": "leeboard-profile",
    "version": 1,
    "device": "d",
    "flops": 1.0,
    "memory_bandwidth": 1.0,
    "host": {},
    "operators": {"aten.mm.default": {"x": [1.0, 1, 2, 3, 0]}},
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "x"}, "\"format\" is not 'leeboard-profile'"),
        ({"version": 2}, "version 2, expected 1"),
        ({"device": 3}, "'device' is 3, expected text"),
        ({"flops": 0}, "flops is 0, expected a number above 0"),
        ({"memory_bandwidth": "fast"}, "memory_bandwidth is 'fast'"),
        ({"host": []}, "'host' is \\[\\], expected a mapping"),
        ({"operators": None}, "'operators' is None"),
        ({"operators": {"a": 1}}, "'a' is 1, expected a mapping"),
        ({"operators": {"a": {"k": [1.0, 1, 2, 3]}}}, "a k: got .* expected \\[seconds, count"),
        ({"operators": {"a": {"k": [-1.0, 1, 2, 3, 0]}}}, "a k: seconds is -1.0"),
        ({"operators": {"a": {"k": [1e9, 1, 2, 3, 0]}}}, "at most a million"),
        ({"operators": {"a": {"k": [1.0, 1, 2.5, 3, 0]}}}, "expected whole numbers"),
        ({"operators": {"a": {"k": [1.0, 1, 2, 3, 6]}}}, "the last below 6"),
    ],
)
def test_damaged_files(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    """What is wrong, where, and what is expected."""
    file = tmp_path / "p.json"
    file.write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ProfileError, match=message):
        Profile.load(file)
    file.write_text(json.dumps(GOOD))
    assert len(Profile.load(file)) == 1


def test_files_that_are_no_profiles(tmp_path: Path) -> None:
    """Other files, and none."""
    file = tmp_path / "p.json"
    for content in ("", "{", "[1]", "\x00", "[" * 100_000):
        file.write_text(content)
        with pytest.raises(ProfileError, match=r"p\.json: "):
            Profile.load(file)
    with pytest.raises(FileNotFoundError):
        Profile.load(tmp_path / "none.json")


def test_arguments_are_made_again() -> None:
    """Layout, dtype, and the values of whole numbers; floats are harmless."""
    tensors: list[Tensor] = [
        torch.rand(3, 4).t(),
        torch.rand(1, 4).expand(3, 4),
        torch.arange(6).view(2, 3),
        torch.tensor([True, False]),
        torch.rand(()),
        torch.rand(0, 3),
        torch.rand(2, 2).to(torch.bfloat16),
        torch.ones(2, dtype=torch.complex64),
        torch.ones(4, 4).to_sparse(),
    ]
    for tensor in tensors:
        like = Like(tensor)
        made = like.make()
        assert (made.shape, made.dtype, made.layout) == (tensor.shape, tensor.dtype, tensor.layout)
        if tensor.layout is torch.strided:
            assert made.stride() == tensor.stride()
        if not tensor.is_floating_point() and not tensor.is_complex():
            assert torch.equal(made, tensor)
            assert made.data_ptr() != tensor.data_ptr()
    with FakeTensorMode():
        index = Like(torch.arange(3))
    assert index.make().tolist() == [0, 0, 0]


def test_timing() -> None:
    """Every call gets a time; those that change their arguments do not run off."""
    x, table = torch.rand(64, 64), torch.rand(10, 8)
    layer = nn.Linear(64, 64)

    def program() -> None:
        y = layer(x)
        y.sum().backward()
        with torch.no_grad():
            x.mul_(2.0)
        torch.nn.functional.embedding(torch.tensor([9, 0]), table)

    examples = collected(program)
    done: list[int] = []

    class Bar:
        def update(self, count: int) -> None:
            done.append(count)

    profile, failed = profiled(examples, device="here", seconds=0.001, progress=Bar())
    assert failed == {}
    assert len(done) == len(examples) == len(profile)
    assert profile.device == "here"
    entry = next(iter(profile.operators["aten.addmm.default"].values()))
    assert 0 < entry.seconds < 1
    assert entry.flops == 2 * 64**3
    assert {"processor", "threads", "torch", "gemm"} <= set(profile.host)


def test_what_cannot_be_timed_is_said() -> None:
    """An op that refuses its arguments is named, the others are timed."""
    library = torch.library.Library("compute_tests", "FRAGMENT")
    library.define("picky(Tensor x) -> Tensor")

    def picky(x: Tensor) -> Tensor:
        if float(x[0]) == 0.75:
            raise ValueError("not this one")
        return x.clone()

    library.impl("picky", picky, "CompositeExplicitAutograd")
    x = torch.ones(3)
    examples = collected(lambda: (torch.ops.compute_tests.picky(x), x + x))
    profile, failed = profiled(examples, seconds=0.001)
    assert failed == {"compute_tests.picky.default": "ValueError: not this one"}
    assert list(profile.operators) == ["aten.add.Tensor"]


SCRIPT = """\
import sys
import torch
import torch.distributed as dist

dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
x = torch.ones(8, int(sys.argv[1]) + rank)
y = x @ x.T
dist.all_reduce(y)
print("rank", rank, "of", size)
"""


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A script alone; the operators of all simulated ranks; added to a file; used by a run."""
    script, out = tmp_path / "s.py", tmp_path / "p.json"
    platform = Platform.star(3, bandwidth="1 Gbit/s")
    script.write_text(SCRIPT)
    platform.save(tmp_path / "three.yaml")
    yaml = str(tmp_path / "three.yaml")
    common = [str(script), "--out", str(out), "--seconds", "0.001", "--device", "generic"]
    assert main(["sim", "profile", *common, "--", "16"]) == 0
    shown = capsys.readouterr().out
    assert "rank 0 of 1" in shown
    assert f"{out} is written" in shown
    first = Profile.load(out)
    assert list(first.operators["aten.mm.default"]) == ["float32[8,16] float32[16,8]{1,16}"]
    assert main(["sim", "profile", *common, "--add", "--platform", yaml, "--", "32"]) == 0
    assert "rank 2 of 3" in capsys.readouterr().out
    both = Profile.load(out)
    assert [key.split()[0] for key in both.operators["aten.mm.default"]] == [
        f"float32[8,{n}]" for n in (16, 32, 33, 34)
    ]
    run = ["sim", "run", yaml, str(script), "--compute", "profiled", "--profile", str(out)]
    assert main([*run, "--", "32"]) == 0
    shown = capsys.readouterr().out
    assert "compute         profiled" in shown
    assert "0 estimated, 0 roofline" in shown
    assert main(["sim", "profile", "--show", str(out)]) == 0
    assert "aten.mm.default" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected a script"),
        (["s.py"], "--out: where to write"),
        (["s.py", "--out", "no/where.json"], "there is no folder"),
        (["s.py", "--out", "p.json", "--ranks", "2"], "--ranks 2: is for --platform"),
        (["s.py", "--out", "p.json", "--fold", "dp=2"], "--fold dp=2: is for --platform"),
        (["s.py", "--out", "p.json", "--seconds", "0"], "--seconds: got 0"),
        (["none.py", "--out", "p.json"], "none.py: no such file"),
        (["s.py", "-m", "json", "--out", "p.json"], "expected a script"),
        (["bad.py", "--out", "p.json"], "bad.py: exited with 3"),
        (["empty.py", "--out", "p.json"], "empty.py: no operator was called"),
        (["operators", "--out", "p.json", "--", "x"], "operators: takes no words"),
        (["--show", "none.json"], "none.json"),
    ],
)
def test_wrong_words(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Each ends in a line that says what is wrong."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s.py").write_text("import torch; torch.ones(3)")
    (tmp_path / "bad.py").write_text("raise SystemExit(3)")
    (tmp_path / "empty.py").write_text("x = 1")
    assert main(["sim", "profile", *words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "p.json").exists()


def test_calls_of_folded_ranks() -> None:
    """One rank stands for all, with fake tensors; their calls are made again with real ones."""

    def program() -> None:
        dist.init_process_group("gloo")
        x = torch.ones(8, 4)
        dist.all_reduce(x)
        torch.nn.functional.embedding(torch.ones(3, dtype=torch.int64), x)

    platform = Platform.star(4, bandwidth="1 Gbit/s")
    examples = calls_of(program, platform=platform, fold="dp=4")
    names = {str(example.call.rule.func) for example in examples}
    assert names == {"aten.ones.default", "aten.embedding.default"}
    profile, failed = profiled(examples, seconds=0.001)
    assert failed == {}
    assert len(profile) == 3


def test_builtin_programs() -> None:
    """They call the operators of common models, in both precisions."""
    names = {str(example.call.rule.func) for example in calls_of("transformer")}
    assert {"aten.addmm.default", "aten.native_layer_norm_backward.default"} <= names
    assert any("adam" in name or "addcdiv" in name for name in names)


def test_meter_needs_no_real_tensors() -> None:
    """Fake tensors are charged as real ones."""
    table = Profile("d", 1e9, 1e9)
    table.add(product(4, 4, 4), 1e-6, 1)
    with FakeTensorMode():
        a = torch.ones(4, 4)
        rank = metered(ProfiledMeter(table), lambda: a @ a)
    assert rank.delays == [10**6]
