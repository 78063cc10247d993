"""Every strategy on simulated ranks writes what the undivided model writes."""

from __future__ import annotations

import json

import pytest

from leeboard.sim import Platform
from leeboard.sim.strategies.deployment import parser
from leeboard.sim.strategies.pipeline import micro_batches, stage_layers
from leeboard.sim.strategies.sequence_parallel import positions_of
from strategy_runs import alone, figures, simulate

# With --check rank 0 compares all rows and the logits too, and fails if they differ.
RUNS = [
    ("tensor_parallel", 2, "--by hand --batch 2"),
    ("tensor_parallel", 4, "--by hand"),
    ("tensor_parallel", 2, "--by dtensor"),
    ("pipeline_parallel", 2, "--batch 4 --split 3,1 --schedule gpipe"),
    ("pipeline_parallel", 3, "--batch 3 --schedule 1f1b"),
    ("pipeline_parallel", 2, "--batch 4 --schedule none --micro-batches 4"),
    ("pipeline_parallel", 4, "--schedule none"),
    ("tensor_pipeline", 4, "--pp 2 --tp 2 --batch 2"),
    ("tensor_pipeline", 4, "--dp 2 --tp 2 --by dtensor"),
    ("sequence_parallel", 2, "--gather kv --batch 2"),
    ("sequence_parallel", 3, "--gather kv --shares 1,3,2"),
    ("sequence_parallel", 3, "--gather kv --send needed"),
    ("sequence_parallel", 2, "--gather hidden --batch 2"),
    ("sequence_parallel", 3, "--gather hidden --shares 2,1,1 --send needed"),
    ("speculative", 2, "--drafter edge"),
    ("speculative", 2, "--drafter edge --draft-layers 4 --overlap --depth 3"),
    ("speculative", 2, "--drafter edge --draft-layers 3 --overlap --depth 2"),
    ("speculative", 2, "--drafter edge --acceptance 0.8,0.6 --depth 3"),
    ("speculative", 2, "--drafter server --acceptance 0.8,0.6"),
    ("speculative", 2, "--drafter none"),
]


@pytest.mark.parametrize(("name", "ranks", "words"), RUNS)
def test_output_is_the_undivided_models(name: str, ranks: int, words: str) -> None:
    found = figures(simulate(name, ranks, f"--check --tokens 6 {words}"))
    assert found["output"] == alone(6)
    assert found["tokens_equal"]
    assert found["logits_error"] < 1e-5
    assert found["ranks"] == ranks


def test_rank_0_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(simulate("tensor_parallel", 2, "--tokens 3"))
    lines = capsys.readouterr().out.splitlines()
    assert json.loads(lines[-1]) == found
    assert len(lines) == 1
    per_token = found["time_per_output_token"]
    assert found["total"] == pytest.approx(found["time_to_first_token"] + 2 * per_token)
    assert found["tokens_per_second"] == pytest.approx(3 / found["total"])


def test_requests_that_arrive_are_answered() -> None:
    words = "--check --pp 2 --tp 2 --rate 100 --requests 9 --spread 0.5 --slots 2 --tokens 5"
    launched = simulate("tensor_pipeline", 4, words)
    found = figures(launched)
    assert found["tokens_equal"]
    assert found["requests"] == 9
    for name in ("time_to_first_token", "time_per_output_token", "end_to_end"):
        spread = found[name]
        assert 0 < spread["p50"] <= spread["p90"] <= spread["p99"]
    assert found["time_to_first_token"]["p50"] < found["end_to_end"]["p50"]
    assert found["requests_per_second"] == pytest.approx(9 / found["total"])
    # Served one after another as they come: the last one does not arrive before its time.
    idle = figures(simulate("tensor_pipeline", 2, "--pp 2 --rate 0.5 --requests 4 --tokens 2"))
    busy = figures(simulate("tensor_pipeline", 2, "--pp 2 --rate 5000 --requests 4 --tokens 2"))
    assert idle["total"] > 1000 * busy["total"]
    assert idle["end_to_end"]["p99"] < busy["end_to_end"]["p99"]


def test_replicas_share_the_requests() -> None:
    words = "--check --rate 1000 --requests 6 --tokens 4"
    one = figures(simulate("tensor_pipeline", 1, words))
    two = figures(simulate("tensor_pipeline", 2, f"{words} --dp 2"))
    assert one["requests"] == two["requests"] == 6
    assert two["mesh"] == [2, 1, 1]


def ideal_line(latency: float) -> Platform:
    """Two devices, and nothing but bandwidth and latency between them: 8 Mbit/s."""
    line = Platform.full(2, bandwidth="8 Mbit/s", latency=latency)
    return line.with_protocol("ideal")


@pytest.mark.parametrize("latency", [0.001, 0.1])
def test_a_round_of_speculation_takes_a_round_trip(latency: float) -> None:
    """Everything is kept: each round is 8 bytes a proposal up, 16 bytes down, at 1 MB/s."""
    words = "--tokens 13 --depth 3 --acceptance 1 --prompt 5"
    found = figures(simulate("speculative", 2, words, ideal_line(latency)))
    first = 2 * latency + (8 * 5 + 8) * 1e-6
    assert found["rounds"] == 3
    assert found["kept_per_round"] == 3
    assert found["time_to_first_token"] == pytest.approx(first, rel=1e-6)
    rounds = 3 * (2 * latency + (8 * 3 + 16) * 1e-6)
    assert found["total"] == pytest.approx(first + rounds, rel=1e-6)


def test_streaming_pays_the_delay_once() -> None:
    words = "--tokens 9 --prompt 5 --drafter none"
    found = figures(simulate("speculative", 2, words, ideal_line(0.1)))
    first = 0.2 + (8 * 5 + 8) * 1e-6
    assert found["time_to_first_token"] == pytest.approx(first, rel=1e-6)
    # Sixteen bytes a token: its number of kept proposals and itself.
    assert found["total"] == pytest.approx(first + 8 * 16e-6, rel=1e-6)


def test_rounds_are_the_same_when_nobody_looks() -> None:
    words = "--tokens 40 --depth 3 --acceptance 0.9,0.8,0.7 --overlap"
    seen = figures(simulate("speculative", 2, f"{words} --check"))
    blind = figures(simulate("speculative", 2, f"{words} --no-sampling"))
    for name in ("rounds", "kept_per_round", "acceptance_by_depth", "drafted_ahead", "total"):
        assert blind[name] == seen[name]
    assert seen["drafted_ahead"] > 0
    assert "output" not in blind


def test_bytes_of_splitting_by_position() -> None:
    """Keys and values of a device's positions go to each other one, or to the later ones."""
    # Four layers, eight positions a device, 64 numbers each of keys and values, 4 bytes.
    part = 4 * 8 * 2 * 64 * 4
    words = "--prompt 24 --tokens 1 --no-sampling"

    def sent(options: str) -> int:
        launched = simulate("sequence_parallel", 3, f"{words} {options}")
        return int(launched.result.ranks["sent"].sum())

    # One token tells rank 0 of its end: 8 bytes.
    assert sent("--send needed") == 3 * part + 8
    assert sent("--send all --shares 1,1,1") == 6 * part + 8


def test_shares_of_the_work() -> None:
    assert [list(stage_layers(7, 3, i)) for i in range(3)] == [[0, 1, 2], [3, 4], [5, 6]]
    assert [len(stage_layers(4, 2, i, [1, 3])) for i in range(2)] == [1, 3]
    assert micro_batches(6, 4, None) == 3
    assert micro_batches(6, 4, 6) == 6
    assert positions_of(10, 3, [2, 1, 1]) == [range(5), range(5, 7), range(7, 10)]


WRONG = [
    ("tensor_parallel", "--check --no-sampling", "--check compares tokens"),
    ("tensor_parallel", "--tokens 0", "--tokens: got 0; expected at least 1"),
    ("tensor_parallel", "--layers 0", "--layers: got 0"),
    ("tensor_pipeline", "--rate 5 --no-sampling", "drop --no-sampling"),
    ("tensor_pipeline", "--rate -1", "--rate: got -1.0"),
    ("speculative", "--batch 2", "--batch: got 2; expected 1"),
    ("speculative", "--drafter none --overlap", "nobody waits"),
    ("speculative", "--no-sampling", "give --acceptance"),
    ("speculative", "--acceptance 0.8,1.2", "expected probabilities"),
    ("speculative", "--draft-model small", "small has 4096 tokens, --model tiny 512"),
    ("speculative", "--draft-model huge", "--draft-model: got 'huge'"),
]


@pytest.mark.parametrize(("name", "words", "message"), WRONG)
def test_options_that_do_not_fit(name: str, words: str, message: str) -> None:
    import importlib

    main = importlib.import_module(f"leeboard.sim.strategies.{name}").main
    with pytest.raises(SystemExit, match=message):
        main(words.split())


RANKS_WRONG = [
    ("tensor_pipeline", "--pp 2 --tp 2", "--dp 1 x --pp 2 x --tp 2 are 4 ranks; there are 3"),
    ("pipeline_parallel", "--split 3,1", "4 layers in 2 stages; expected 4 layers in 3 stages"),
    ("pipeline_parallel", "--micro-batches 2", "expected a divisor of --batch 1"),
    ("sequence_parallel", "--shares 1,2", "expected 3 numbers"),
    ("sequence_parallel", "--prompt 2", "would get no position"),
    ("tensor_parallel", "", "heads = 8 does not divide over 3 devices"),
    ("speculative", "", "got 3 ranks; expected 2"),
]


@pytest.mark.parametrize(("name", "words", "message"), RANKS_WRONG)
def test_options_that_do_not_fit_the_ranks(name: str, words: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        simulate(name, 3, words)


def test_without_a_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    from leeboard.sim.strategies.tensor_parallel import main

    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(SystemExit, match="Start the program with 'torchrun"):
        main([])


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    from leeboard.sim.strategies.speculative import main

    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for word in ("torchrun", "leeboard sim run", "--acceptance", "round trip"):
        assert word in text
    assert parser("x", "What.").parse_args([]).model == "tiny"
