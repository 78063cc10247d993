"""SimGrid's time-independent traces: what becomes of each action, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from leeboard.sim.simgrid import load_simgrid
from leeboard.sim.trace import Trace, TraceError

# Written by SimGrid 3.32 (smpirun -trace-ti) for an MPI program of ours on four ranks, shortened.
RANK_0 = """\
0 init
0 compute 3613.4
0 send 1 7 1000 0
0 irecv 3 3 500 1
0 isend 1 3 500 1
0 test 3 0 3
0 waitall 2
0 irecv 3 4 500 2
0 isend 1 4 500 2
0 wait 3 0 4
0 wait 0 1 4
0 recv -333 1 1000 5
0 sendRecv 10 1 10 3 1 1
0 barrier
0 bcast 100 1 0
0 reduce 100 12 2 0
0 allreduce 200 0 5
0 alltoall 30 30 1 1
0 gather 40 40 1 1 1
0 scatter 50 50 1 1 1
0 allgather 60 60 1 1
0 gatherv 10 10 11 12 13 0 1 1
0 scatterv 10 11 12 13 10 0 1 1
0 allgatherv 10 10 11 12 13 1 1
0 reducescatter 10 11 12 13 7 1
0 alltoallv 40 10 10 10 10 46 10 11 12 13 1 1
0 finalize
"""
COLLECTIVES = """\
{r} barrier
{r} bcast 100 1 0
{r} reduce 100 12 2 0
{r} allreduce 200 0 5
{r} alltoall 30 30 1 1
{r} gather 40 40 1 1 1
{r} scatter 50 50 1 1 1
{r} allgather 60 60 1 1
{r} gatherv {n} 0 0 0 0 0 1 1
{r} scatterv 0 0 0 0 {n} 0 1 1
{r} allgatherv {n} 10 11 12 13 1 1
{r} reducescatter 10 11 12 13 7 1
{r} alltoallv 40 {n} {n} {n} {n} 46 10 11 12 13 1 1
{r} finalize
"""
DUMP_0 = """\
rank 0:
  compute 3613 FLOP, 0 B of memory traffic
  send 8 kB to rank 1 (tag 7)
  receive at most 2 kB from rank 3 (tag 3), as #0
  send 2 kB to rank 1 (tag 3), as #2
  wait for everything under way
  receive at most 500 B from rank 3 (tag 4), as #0
  send 500 B to rank 1 (tag 4), as #2
  wait for #0
  wait for #2
  receive at most 4 kB from any rank (tag 1)
  send 40 B to rank 1 (tag 0), as #0
  receive at most 40 B from rank 3 (tag 0)
  wait for #0
  barrier
  broadcast 800 B, root 1
  reduce 800 B, root 2
  compute 12 FLOP, 0 B of memory traffic
  all_reduce 800 B
  all_to_all 480 B
  gather 160 B, root 1
  scatter 800 B, root 1
  all_gather 240 B
  all_to_all, sizes of table 0
  all_to_all, sizes of table 1
  all_to_all, sizes of table 2
  reduce_scatter 184 B
  compute 7 FLOP, 0 B of memory traffic
  all_to_all, sizes of table 2"""


def write(folder: Path, *texts: str, name: str = "trace") -> Path:
    """Per-rank files and the list of them."""
    for rank, text in enumerate(texts):
        (folder / f"{name}_{rank}.txt").write_text(text)
    (folder / name).write_text("".join(f"{name}_{rank}.txt\n" for rank in range(len(texts))))
    return folder / name


def one(folder: Path, text: str) -> Path:
    path = folder / "actions.txt"
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Trace:
    others = [f"{r} init\n" + COLLECTIVES.format(r=r, n=10 + r) for r in range(1, 4)]
    return load_simgrid(write(tmp_path_factory.mktemp("simgrid"), RANK_0, *others))


def test_every_action_becomes_its_op(loaded: Trace) -> None:
    assert loaded.ranks == 4
    assert loaded.dump(0) == DUMP_0
    assert "barrier" in loaded.dump(3).splitlines()[1]


def test_uneven_collectives_know_all_ranks_sizes(loaded: Trace) -> None:
    gather, scatter, everyone = (
        loaded.sizes[int(at) : int(at) + 16].reshape(4, 4).tolist() for at in loaded.size_offsets
    )
    assert gather == [[40, 0, 0, 0], [44, 0, 0, 0], [48, 0, 0, 0], [52, 0, 0, 0]]
    assert scatter == [[40, 44, 48, 52], [0] * 4, [0] * 4, [0] * 4]
    assert everyone == [[40] * 4, [44] * 4, [48] * 4, [52] * 4]


def test_one_file_of_all_ranks(tmp_path: Path) -> None:
    path = one(tmp_path, "# two ranks\n0 init\n1 init\n\n0 send 1 0 1e6\n1 Recv 0 0 1e6\n")
    trace = load_simgrid(path)
    assert trace.dump(0).splitlines()[1:] == ["  send 1 MB to rank 1 (tag 0)"]
    assert trace.dump(1).splitlines()[1:] == ["  receive at most 1 MB from rank 0 (tag 0)"]
    (tmp_path / "list").write_text("actions.txt\n")
    assert load_simgrid(tmp_path / "list") == trace


def test_init_chooses_the_default_datatype(tmp_path: Path) -> None:
    trace = load_simgrid(one(tmp_path, "0 init 1\n0 send 0 0 3\n0 send 0 0 3 6\n"))
    assert [int(op["a"]) for op in trace.ops] == [24, 3]


def test_a_request_that_only_a_test_ended_is_waited_for_there(tmp_path: Path) -> None:
    text = "0 init\n0 irecv 0 5 8\n0 test 0 0 5\n0 compute 1\n0 test 0 0 5\n0 compute 2\n"
    lines = load_simgrid(one(tmp_path, text)).dump(0).splitlines()[1:]
    assert [line.split()[0] for line in lines] == ["receive", "compute", "wait", "compute"]


def test_what_nobody_waits_for_ends_with_the_rank(tmp_path: Path) -> None:
    text = "0 init\n0 isend 0 5 8\n0 irecv -333 -444 -1\n0 wait 0 0 9\n0 finalize\n"
    lines = load_simgrid(one(tmp_path, text)).dump(0).splitlines()[1:]
    assert lines[1:] == [
        "  receive from any rank (any tag), as #2",
        "  wait for #2",
        "  wait for everything under way",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"trace: an empty file"),
        ("0 init\n0 fly 3\n", r"trace:2: unknown action 'fly'"),
        ("0 init\n0\n", r"trace:2: a rank without an action"),
        ("0 init\nx send 1 2 3\n", r"trace:2: got 'x', expected a rank"),
        ("nothing.txt\n", r"trace:1: got 'nothing.txt', expected an action or the name of a file"),
        ("0 init\n2 init\n", r"trace: rank 1 does nothing"),
        ("0 init\n0 send 1 3\n", r"trace:2: got 2 arguments, expected 'send RANK TAG SIZE"),
        ("0 init\n0 send 9 0 3\n", r"trace:2: program\[0\]\.send: to: got 9"),
        ("0 init\n0 send 0 0 x\n", r"trace:2: got 'x', expected a number"),
        ("0 init\n0 send 0 0 nan\n", r"trace:2: got 'nan', expected a number"),
        ("0 init\n0 send 0 0 -3\n", r"trace:2: got '-3', expected a number"),
        ("0 init\n0 send 0 0 1e30\n", r"trace:2: got '1e30' elements, more than 2\^62 bytes"),
        ("0 init\n0 send 0 1.5 3\n", r"trace:2: got '1.5', expected an integer"),
        ("0 init\n0 send 0 0 3 99\n", r"trace:2: got datatype 99, expected 0 to 50"),
        ("0 init\n0 compute -1\n", r"trace:2: got '-1', expected a number"),
        ("0 init\n0 bcast 3 4\n", r"trace:2: bcast: got root \[4\]"),
        ("0 barrier\n1 init\n", r"trace:1: rank 0 calls barrier, after rank 1's last of 0"),
        ("0 barrier\n1 bcast 3\n", r"trace:2: rank 1 calls bcast where rank 0 calls barrier"),
        ("0 allreduce 3 0\n1 allreduce 4 0\n", r"trace:2: allreduce of 4 bytes, where rank 0"),
        ("0 alltoallv 1 2\n", r"trace:1: got 2 arguments, expected 'alltoallv SEND COUNTS"),
        ("0 scan 10 0 1\n", r"trace:1: unknown action 'scan'"),
    ],
)
def test_mistakes_are_named_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "trace").write_text(text)
    with pytest.raises(TraceError, match=message):
        load_simgrid(tmp_path / "trace")


def test_a_rank_in_another_ranks_file(tmp_path: Path) -> None:
    path = write(tmp_path, "0 init\n", "1 init\n0 compute 3\n")
    with pytest.raises(TraceError, match=r"trace_1\.txt:2: an action of rank 0 in the file of ran"):
        load_simgrid(path)


def test_only_trace_errors_come_out_of_damaged_files(tmp_path: Path) -> None:
    draw, path = random.Random(4), tmp_path / "trace"
    one_rank = RANK_0.replace(" 1 ", " 0 ").replace(" 3 ", " 0 ").replace(" 2 0", " 0 0")
    whole = [line for line in one_rank.splitlines() if not line.split()[1].endswith("v")]
    words = (
        "",
        "-1",
        "1e9",
        "nan",
        "init",
        "0",
        "7",
        "99999999999999999999",
        "\x00",
        "²",
        "waitall",
    )
    read = 0
    for _ in range(400):
        lines = list(whole)
        for _ in range(draw.choice((1, 1, 3))):
            at = draw.randrange(len(lines))
            parts = lines[at].split(" ")
            parts[draw.randrange(len(parts))] = draw.choice(words)
            lines[at] = " ".join(parts)
        path.write_text("\n".join(lines[: draw.randint(1, 2 * len(lines))]))
        try:
            load_simgrid(path).dump(0)
            read += 1
        except TraceError:
            pass
    assert 0 < read < 400
