"""The rig itself: refusals, and a tiny run where namespaces may be made."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from leeboard.cli import main
from leeboard.sim.validate import agent, namespaces, traffic_control
from leeboard.sim.validate.namespaces import NoNamespacesError
from leeboard.sim.validate.rig import Links, Outcome, Rig, RigError

LINKS = Links.of("20 Mbit/s", "10 ms")

# A rank without torch: it says what it was given, and sends a message around by TCP.
PROGRAM = """
import json, os, socket, time
rank = int(os.environ["RANK"])
address = (os.environ["MASTER_ADDR"], 5000)
if rank == 0:
    listener = socket.create_server(address)
    peer, _ = listener.accept()
    begun = time.perf_counter()
    peer.sendall(b"x")
    peer.recv(1)
    print(json.dumps({"scenario": "round trip", "seconds": time.perf_counter() - begun}))
else:
    while True:
        try:
            peer = socket.create_connection(address)
            break
        except OSError:
            time.sleep(0.05)
    peer.sendall(peer.recv(1))
print(os.environ["WORLD_SIZE"], sorted(os.listdir("/sys/class/net")), file=__import__("sys").stderr)
"""


@pytest.fixture(scope="module")
def rig() -> Rig:
    made = Rig(2, LINKS, "relay")
    try:
        made.check()
    except NoNamespacesError as error:
        pytest.skip(f"no rig here: {error}")
    return made


def test_a_message_takes_the_links_delay(rig: Rig) -> None:
    outcome = rig.run([sys.executable, "-c", PROGRAM], seconds=30)
    (line,) = outcome.lines()
    # Never sooner; how much later is the host's business.
    assert line["seconds"] >= 2 * LINKS.delay
    assert outcome.rig["means"] == "relay"
    assert sum(port["dropped_up"] + port["dropped_down"] for port in outcome.relay["ports"]) == 0
    assert all(port["packets_up"] >= 3 for port in outcome.relay["ports"])
    assert all(text.startswith("2 ") for text in outcome.err)


def test_a_rank_that_fails_ends_the_others(rig: Rig) -> None:
    text = "import os, sys, time; time.sleep(60) if os.environ['RANK'] == '0' else sys.exit('gone')"
    begun = time.monotonic()
    with pytest.raises(RigError, match=r"(?s)a rank failed.*rank 1 \(status 1\): gone"):
        rig.run([sys.executable, "-c", text], seconds=50)
    assert time.monotonic() - begun < 45


def started(*texts: str) -> list[subprocess.Popen[bytes]]:
    return [
        subprocess.Popen(
            [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for text in texts
    ]


def test_ranks_that_take_too_long_are_stopped() -> None:
    processes = started("print('a')", "import time; print('b', flush=True); time.sleep(60)")
    until = time.monotonic() + 0.5
    why, statuses, _, _ = agent.gather(processes, until, lambda: True)
    assert why == "late"
    assert statuses[1] == -9


def test_ranks_are_stopped_when_nobody_waits_for_them() -> None:
    processes = started("import time; time.sleep(60)")
    why, statuses, _, _ = agent.gather(processes, time.monotonic() + 50, lambda: False)
    assert (why, statuses) == ("left", [-9])


def test_all_that_ranks_write_is_kept() -> None:
    processes = started("print('x' * 300000)", "import sys; sys.stderr.write('y' * 300000)")
    why, statuses, out, err = agent.gather(processes, time.monotonic() + 50, lambda: True)
    assert (why, statuses) == ("done", [0, 0])
    assert (out[0], err[1]) == ("x" * 300000 + "\n", "y" * 300000)


def test_ranks_get_torchruns_environment() -> None:
    spec = {"ranks": 3, "port": 1234, "device": "tun7", "environment": {"MINE": "x"}}
    found = agent.environment(spec, 2)
    assert found["RANK"] == "2"
    assert found["WORLD_SIZE"] == "3"
    assert found["MASTER_ADDR"] == "10.231.0.1"
    assert found["MASTER_PORT"] == "1234"
    assert found["GLOO_SOCKET_IFNAME"] == "tun7"
    assert found["OMP_NUM_THREADS"] == "1"
    assert found["MINE"] == "x"


def test_the_rig_ends_with_whoever_started_it(rig: Rig, tmp_path: Path) -> None:
    """A killed caller leaves no rank behind."""
    file = tmp_path / "pid"
    rank = f"import os, time; open({str(file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    text = (
        "import sys; from leeboard.sim.validate.rig import Links, Rig; "
        f"Rig(1, Links(1e6, 0.0), 'relay').run([sys.executable, '-c', {rank!r}])"
    )
    caller = subprocess.Popen([sys.executable, "-c", text])
    until = time.monotonic() + 60
    while not (file.is_file() and file.read_text()) and time.monotonic() < until:
        time.sleep(0.05)
    caller.kill()
    caller.wait()
    while time.monotonic() < until:
        try:
            os.kill(int(file.read_text()), 0)
        except ProcessLookupError:
            break
        time.sleep(0.05)
    else:
        pytest.fail("the rank lives on")


def test_traffic_control_shapes_a_devices_way_out() -> None:
    commands = traffic_control.shaping("eth7", 100e6, 0.0005, 1 << 20)
    assert [command[:2] for command in commands] == [
        ["tc", "qdisc"],
        ["tc", "class"],
        ["tc", "qdisc"],
    ]
    assert " ".join(commands[1]).endswith("htb rate 100000000bit burst 1600 cburst 1600")
    assert " ".join(commands[2]).endswith("netem delay 500us limit 100000")
    without = traffic_control.shaping("eth7", 100e6, 0.0, 1 << 20)
    assert " ".join(without[2]).endswith("bfifo limit 1048576")


def test_traffic_control_says_what_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic_control.shutil, "which", lambda tool: None)
    assert traffic_control.available() == "there is no ip (package iproute2, or util-linux)"


def test_without_rights_it_says_what_would_help(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, *arguments: int) -> None:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(namespaces, "_call", refused)
    monkeypatch.setattr(namespaces, "_may_make_networks", lambda: False)
    monkeypatch.setattr(namespaces.sys, "platform", "linux")
    with pytest.raises(NoNamespacesError, match=r"run as root, or allow them \(sysctl user"):
        namespaces.become_free()
    monkeypatch.setattr(namespaces.sys, "platform", "darwin")
    with pytest.raises(NoNamespacesError, match="need Linux, and this is darwin"):
        namespaces.become_free()


def test_lines_that_are_no_objects_are_passed_over() -> None:
    text = 'hello\n{"scenario": "a", "seconds": 1}\n[1]\n{broken\n'
    assert Outcome([text], [""]).lines() == [{"scenario": "a", "seconds": 1}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ranks", "3"], "--ranks: only with a script"),
        (["--", "a"], "words after --: only with a script"),
        (["gone.py"], "gone.py: no such file"),
        (["--quick", "gone.py"], "--quick, --publish: only without a script"),
        (["--json", "/no/such/a.json"], "there is no folder /no/such"),
        (["--publish", "/no/such"], "expected a folder with a folder images in it"),
    ],
)
def test_options_that_make_no_sense_are_refused(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sim", "validate", *words]) == 2
    assert message in capsys.readouterr().err


def test_ranks_are_counted() -> None:
    for ranks in (0, 201):
        with pytest.raises(ValueError, match="ranks: got"):
            Rig(ranks, LINKS)


def test_the_ports_of_the_relay_have_the_links_figures() -> None:
    (port, _) = LINKS.ports(2)
    assert port == (20e6, 20e6, 5_000_000, 5_000_000, LINKS.queue)
    assert json.dumps(LINKS.tcp())
