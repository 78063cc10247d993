"""The state cache: what is read is what the target computed, and nothing half or foreign is read."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from drafter_models import make_target
from leeboard import _files
from leeboard.draft import Batch, DrafterConfig, Eagle3Drafter
from leeboard.draft.mtp import MTPConfig, MTPHead
from leeboard.draft.training import (
    CachedStates,
    DiskFullError,
    OnlineStates,
    Rows,
    cache_bytes,
    cache_states,
    shards,
    writer,
)
from training_data import random_rows

# Two rows a file.
SHARD = 17_000


@pytest.fixture(scope="module")
def target() -> Any:
    return make_target("llama")


@pytest.fixture(scope="module")
def drafter(target: Any) -> Eagle3Drafter:
    return Eagle3Drafter(DrafterConfig.for_target(target.config))


@pytest.fixture(scope="module")
def rows() -> Rows:
    return random_rows(count=20)


@pytest.fixture(scope="module")
def finished(
    target: Any, drafter: Eagle3Drafter, rows: Rows, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A finished cache; to be read only."""
    folder = tmp_path_factory.mktemp("cache")
    cache_states(target, drafter, rows, folder, shard_bytes=SHARD, batch_rows=2, progress=False)
    return folder


def parts(batch: Batch) -> Iterator[tuple[str, torch.Tensor]]:
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if field.name == "hiddens":
            yield from ((f"hiddens.{i}", hidden) for i, hidden in enumerate(value))
        else:
            yield field.name, value


def test_cached_is_online(target: Any, drafter: Eagle3Drafter, rows: Rows, finished: Path) -> None:
    cached = CachedStates(finished, target=target, drafter=drafter, rows=rows)
    assert len(cached) == len(rows) > 6
    assert len(list(finished.glob("states-*"))) == -(-len(rows) // 2)
    online = OnlineStates(target, drafter, rows)
    for indices in ([0], [5, 0, 3], range(len(rows))):
        for (name, got), (_, expected) in zip(
            parts(cached.batch(indices)), parts(online.batch(indices)), strict=True
        ):
            assert got.dtype == expected.dtype, name
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert cached.rows.fingerprint() == rows.fingerprint()
    with pytest.raises(IndexError, match=rf"got \[{len(rows)}\]"):
        cached.batch([0, len(rows)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_size_is_told_beforehand(
    dtype: torch.dtype, target: Any, drafter: Eagle3Drafter, rows: Rows, tmp_path: Path
) -> None:
    told = cache_bytes(target, drafter, rows, dtype=dtype)
    assert told == rows.ids.numel() * (4 * 32 * 2 + 17)
    cached = cache_states(target, drafter, rows, tmp_path, dtype=dtype, progress=False)
    tensors = {
        name: getattr(cached.batch([0]), name).dtype for name in ("final", "best", "logsumexp")
    }
    assert tensors == {"final": dtype, "best": torch.int64, "logsumexp": torch.float32}
    # One shard; its header is a few kilobytes.
    assert told < cached.nbytes < told + 8000
    assert sum(path.stat().st_size for path in tmp_path.glob("states-*")) == cached.nbytes


def test_an_mtp_head_reads_the_heads_input_which_is_kept_once(
    target: Any, rows: Rows, tmp_path: Path
) -> None:
    head = MTPHead(MTPConfig.for_target(target.config))
    online = OnlineStates(target, head, rows).batch([1, 3])
    assert torch.equal(online.hiddens[0], online.final)
    assert cache_bytes(target, head, rows) == rows.ids.numel() * (32 * 4 + 17)
    cached = cache_states(target, head, rows, tmp_path, progress=False)
    for (name, got), (_, expected) in zip(parts(cached.batch([1, 3])), parts(online), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4, msg=name)
    raw = MTPHead(MTPConfig.for_target(target.config, target_state="raw"))
    with pytest.raises(ValueError, match="target_state is 'normed' there and 'raw' here"):
        CachedStates(tmp_path, drafter=raw)


def test_progress_tells_the_size(
    target: Any, drafter: Eagle3Drafter, rows: Rows, tmp_path: Path, capsys: Any
) -> None:
    cache_states(target, drafter, rows.take([0, 1]), tmp_path)
    said = capsys.readouterr().err
    assert f"states of 2 rows: 16.9 kB in 1 file(s) in {tmp_path}" in said
    assert "states       100%" in said


def test_goes_on_after_a_kill(
    target: Any,
    drafter: Eagle3Drafter,
    rows: Rows,
    finished: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save = _files.put_tensors

    def killed(path: Path, tensors: Any, metadata: Any) -> None:
        if "00002" in path.name:
            raise KeyboardInterrupt
        save(path, tensors, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(_files, "put_tensors", killed)
        with pytest.raises(KeyboardInterrupt):
            cache_states(target, drafter, rows, tmp_path, shard_bytes=SHARD, progress=False)
    assert sorted(path.name for path in tmp_path.glob("*")) == [
        ".lock",
        "states-00000.safetensors",
        "states-00001.safetensors",
    ]
    with pytest.raises(
        FileNotFoundError, match=r"holds 2 file\(s\) of a cache that is not finished: cache the"
    ):
        CachedStates(tmp_path)
    # What a SIGKILL leaves of a file, and a file that lost its end.
    leftover = tmp_path / ".states-00002.safetensors.123.abc"
    leftover.write_bytes(b"half")
    damaged = shards.shard_path(tmp_path, 1)
    os.truncate(damaged, damaged.stat().st_size - 100)

    asked: list[int] = []
    batch = OnlineStates.batch

    def counting(self: OnlineStates, indices: Any) -> Batch:
        asked.extend(indices)
        return batch(self, indices)

    monkeypatch.setattr(OnlineStates, "batch", counting)
    # Another size of the files is not adopted midway.
    cached = cache_states(
        target, drafter, rows, tmp_path, shard_bytes=2 * SHARD, batch_rows=2, progress=False
    )
    assert asked == list(range(2, len(rows)))
    assert not leftover.exists()
    whole = CachedStates(finished)
    for (name, got), (_, expected) in zip(
        parts(cached.batch(range(len(rows)))), parts(whole.batch(range(len(rows)))), strict=True
    ):
        torch.testing.assert_close(got, expected, msg=name)
    # A finished one is only read.
    asked.clear()
    cache_states(target, drafter, rows, tmp_path, progress=False)
    assert not asked


def test_foreign_states_are_refused(
    target: Any, drafter: Eagle3Drafter, rows: Rows, finished: Path
) -> None:
    tuned = make_target("llama")
    tuned.model.layers[3].mlp.up_proj.weight.mul_(1.01)
    for read in (
        lambda: cache_states(tuned, drafter, rows, finished, progress=False),
        lambda: CachedStates(finished, target=tuned),
    ):
        with pytest.raises(ValueError, match=r"something else: target.weights is '\w+' there and"):
            read()
    with pytest.raises(ValueError, match=r"rms_norm_eps is 1e-06 there and 0.1 here"):
        CachedStates(finished, target=make_target("llama", rms_norm_eps=0.1))
    others = Eagle3Drafter(DrafterConfig.for_target(target.config, aux_layer_ids=(0, 2, 4)))
    with pytest.raises(
        ValueError, match=r"aux_layer_ids is \[1, 3, 5\] there and \[0, 2, 4\] here"
    ):
        CachedStates(finished, drafter=others)
    after = Eagle3Drafter(
        DrafterConfig.for_target(
            target.config, aux_layer_ids=(1, 3, 5), aux_layer_convention="output"
        )
    )
    with pytest.raises(ValueError, match="aux_layer_convention is 'input' there"):
        cache_states(target, after, rows, finished, progress=False)
    with pytest.raises(ValueError, match=r"rows.hash is '\w+' there and '\w+' here"):
        cache_states(target, drafter, rows.take(range(len(rows))[::-1]), finished, progress=False)
    with pytest.raises(ValueError, match="dtype is 'float32' there and 'float16' here"):
        cache_states(target, drafter, rows, finished, dtype=torch.float16, progress=False)
    # Only what both configs have is compared, so that another transformers may read it.
    CachedStates(finished, target=target, drafter=drafter, rows=rows)


def test_foreign_shards_are_refused(
    target: Any, drafter: Eagle3Drafter, rows: Rows, finished: Path, tmp_path: Path
) -> None:
    shutil.copy(shards.shard_path(finished, 0), tmp_path)
    with pytest.raises(ValueError, match=r"something else: rows.hash is .* Give another folder"):
        cache_states(target, drafter, rows.take(range(len(rows))[::-1]), tmp_path, progress=False)


def test_damage_is_found(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="it holds no cached states"):
        CachedStates(tmp_path)
    folder = tmp_path / "copy"
    shutil.copytree(finished, folder)
    path = shards.shard_path(folder, 1)
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(ValueError, match=rf"00001.* got {size - 1} bytes, expected {size}"):
        CachedStates(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"00001.* is missing"):
        CachedStates(folder)
    manifest = folder / shards.MANIFEST
    for text, said in (
        ("{", "no manifest"),
        ("{}", "no manifest"),
        ('{"format": 2}', "its format is 2, expected 1"),
    ):
        manifest.write_text(text)
        with pytest.raises(ValueError, match=said):
            CachedStates(folder)


def test_too_little_room_is_told_before_anything_is_written(
    target: Any,
    drafter: Eagle3Drafter,
    rows: Rows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(shards, "free_bytes", lambda folder: 5000)
    with pytest.raises(
        DiskFullError, match=r"of which .* are still .* and 5 kB are free"
    ) as caught:
        cache_states(target, drafter, rows, tmp_path, progress=False)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_disk_fills_up(
    number: int,
    target: Any,
    drafter: Eagle3Drafter,
    rows: Rows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    save = _files.put_tensors

    def full(path: Path, tensors: Any, metadata: Any) -> None:
        if "00001" in path.name:
            path.write_bytes(b"as much as there was room for")
            raise OSError(number, os.strerror(number))
        save(path, tensors, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(_files, "put_tensors", full)
        with pytest.raises(DiskFullError, match=r"1 of \d file"):
            cache_states(target, drafter, rows, tmp_path, shard_bytes=SHARD, progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "states-00000.safetensors"}
    cached = cache_states(target, drafter, rows, tmp_path, shard_bytes=SHARD, progress=False)
    assert torch.isfinite(cached.batch(range(len(rows))).final).all()


def test_no_room_for_the_manifest(
    target: Any,
    drafter: Eagle3Drafter,
    rows: Rows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(path: Path, value: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shards, "write_json", full)
    with pytest.raises(DiskFullError, match=r"of which 0 bytes are still .* 1 of 1 file"):
        cache_states(target, drafter, rows, tmp_path, progress=False)


def test_other_failures_are_not_renamed(
    target: Any,
    drafter: Eagle3Drafter,
    rows: Rows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(path: Path, tensors: Any, metadata: Any) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(_files, "put_tensors", broken)
    with pytest.raises(OSError, match="input/output error") as caught:
        cache_states(target, drafter, rows, tmp_path, progress=False)
    assert not isinstance(caught.value, DiskFullError)


def test_the_system_says_that_the_disk_is_full() -> None:
    full = Path("/dev/full")
    if not full.is_char_device():
        pytest.skip("needs /dev/full")
    with pytest.raises(OSError, match="No space left") as caught:
        _files.put_tensors(full, {"a": torch.zeros(9)})
    assert shards.disk_is_full(caught.value)


# The folder has room for two of the files, and says that it has more.
ON_A_FULL_DISK = """
import os, sys
from pathlib import Path
import torch
from leeboard.draft.training import shards
folder = Path(sys.argv[1])
tensors = {"a": torch.zeros(100_000, dtype=torch.uint8)}
for number in range(3):
    try:
        shards.write_shard(shards.shard_path(folder, number), tensors, {"number": str(number)})
    except OSError as error:
        print(number, shards.disk_is_full(error), sorted(os.listdir(folder)))
assert shards.shard_metadata(shards.shard_path(folder, 1)) == {"number": 1}
"""


@pytest.mark.slow
def test_a_disk_that_is_really_full(tmp_path: Path) -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare")
    script = tmp_path / "fill.py"
    script.write_text(ON_A_FULL_DISK)
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = f"mount -t tmpfs -o size=256k tmpfs '{folder}'"
    tried = subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("may not mount a tmpfs")
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"{mount} && '{sys.executable}' '{script}' '{folder}'"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 True ['states-00000.safetensors', 'states-00001.safetensors']\n"


def test_float16_overflow(
    target: Any,
    drafter: Eagle3Drafter,
    rows: Rows,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = OnlineStates._run

    def huge(self: OnlineStates, ids: Any, positions: Any) -> Any:
        hiddens, inputs = run(self, ids, positions)
        # Not where it looks for leaks, or how wide the states are.
        if ids.shape == (2, 16):
            hiddens[1][1, 2, 3] = 70000.0
        return hiddens, inputs

    monkeypatch.setattr(OnlineStates, "_run", huge)
    with pytest.raises(
        ValueError, match=r"up to 65504, but hiddens.1 of row 1 reaches 70000: use bfloat16"
    ):
        cache_states(
            target, drafter, rows, tmp_path / "a", dtype=torch.float16, progress=False, batch_rows=2
        )
    cached = cache_states(
        target, drafter, rows, tmp_path / "b", dtype=torch.bfloat16, progress=False, batch_rows=2
    )
    assert float(cached.batch([1]).hiddens[1][0, 2, 3]) == 70144.0
    monkeypatch.undo()
    nan = OnlineStates(target, drafter, rows)
    states = nan.batch([4])
    states.final[0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="target: final of row 4 is not finite"):
        writer.StateWriter(nan, torch.bfloat16)._stored(states, [4])


def test_arguments(target: Any, drafter: Eagle3Drafter, rows: Rows, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"dtype: got torch.float64, expected one of float32"):
        cache_states(target, drafter, rows, tmp_path, dtype=torch.float64)
    with pytest.raises(ValueError, match="batch_rows: got 0"):
        cache_states(target, drafter, rows, tmp_path, batch_rows=0)
    with shards.only_writer(tmp_path), pytest.raises(RuntimeError, match="another process"):
        cache_states(target, drafter, rows, tmp_path, progress=False)


# From Python 3.12 on a process with threads warns when it forks.
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_workers_read(finished: Path, rows: Rows) -> None:
    cached = CachedStates(finished)
    truth = cached.batch(range(len(rows)))
    # The open maps stay behind.
    again = pickle.loads(pickle.dumps(cached))
    assert torch.equal(again.batch([2]).final[0], truth.final[2])
    loader = DataLoader(
        range(len(rows)),  # type: ignore[arg-type]
        batch_size=2,
        num_workers=2,
        collate_fn=cached.batch,
    )
    found = list(loader)
    assert torch.equal(torch.cat([batch.final for batch in found]), truth.final)
    assert torch.equal(torch.cat([batch.ids for batch in found]), rows.ids)


def test_a_batch_reads_its_own_rows(tmp_path: Path) -> None:
    """Of 64 MB on disk a batch of one row may take a hundredth of memory of the process' own."""
    if not Path("/proc/self/status").exists():
        pytest.skip("needs /proc")
    length, width, count = 64, 512, 256
    state = torch.ones(count, length, width, dtype=torch.float16)
    tensors = {
        "ids": torch.zeros(count, length, dtype=torch.int32),
        "loss_mask": torch.zeros(count, length, dtype=torch.bool),
        "positions": torch.zeros(count, length, dtype=torch.int32),
        "best": torch.zeros(count, length, dtype=torch.int32),
        "logsumexp": torch.zeros(count, length),
        "final": state,
        "hiddens.0": 2 * state,
    }
    path = shards.shard_path(tmp_path, 0)
    shards.write_shard(path, tensors, {})
    shards.write_manifest(
        tmp_path,
        {
            "identity": {"rows": {"count": count}},
            "states": 1,
            "doubles": [],
            "rows_per_shard": count,
            "sizes": [path.stat().st_size],
        },
    )
    del tensors, state
    cached = CachedStates(tmp_path)
    cached.batch([0])

    def own_kilobytes() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.split("RssAnon:")[1].split()[0])

    before = own_kilobytes()
    batches = [cached.batch([i]) for i in (17, 200)]
    assert all(float(batch.hiddens[0].mean()) == 2.0 for batch in batches)
    assert own_kilobytes() - before < 2000


def test_only_so_many_maps_are_open(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from leeboard.draft.training import cached as module

    monkeypatch.setattr(module, "_OPEN", 2)
    states = CachedStates(finished)
    everything = states.batch(range(len(states)))
    assert len(states._open) == 2
    back = states.batch(range(len(states))[::-1])
    assert torch.equal(back.final.flip(0), everything.final)
    assert json.loads((finished / shards.MANIFEST).read_text())["rows_per_shard"] == 2
