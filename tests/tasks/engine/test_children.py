"""Children: their output arrives, they end on request, they hold no descriptor of ours and never outlive us."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from tasks.engine.children import TAIL_LINES, Child, Stopped, Supervisor
from tasks.engine.process_tree import family

ROOT = Path(__file__).parents[3]
STUBBORN = """
    import os, signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if len(sys.argv) > 1:
        subprocess.Popen([sys.executable, __file__], start_new_session=sys.argv[1] == "away")
    print(os.getpid(), flush=True)
    time.sleep(3600)
"""


@pytest.fixture
def supervisor() -> Iterator[Supervisor]:
    before = set(psutil.Process().children(recursive=True))  # servers and zygotes that the suite shares
    with Supervisor() as supervisor:
        yield supervisor
    now = [c for c in psutil.Process().children(recursive=True) if c.status() != psutil.STATUS_ZOMBIE]
    assert [child for child in now if child not in before] == []


def python(code: str) -> list[str]:
    return [sys.executable, "-c", textwrap.dedent(code)]


def until(condition: Callable[[], object], within_s: float) -> float:
    """Seconds until ``condition`` held."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < within_s, f"not within {within_s} s"
        time.sleep(0.01)
    return time.monotonic() - started


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def stubborn(tmp_path: Path) -> Path:
    """A program that ignores SIGTERM; ``away`` or ``near`` starts a second one, in a session of its own or not."""
    path = tmp_path / "stubborn.py"
    path.write_text(textwrap.dedent(STUBBORN))
    return path


# -- output ----------------------------------------------------------------------------------------------------------


def test_lines_arrive_in_order_and_all_of_them(supervisor: Supervisor) -> None:
    lines: list[str] = []
    code = "import sys\nfor i in range(20000): print('line', i)\nsys.stdout.write('no newline')"
    assert supervisor.start_lines(python(code), on_line=lines.append).wait() == 0
    assert lines == [f"line {i}" for i in range(20000)] + ["no newline"]


def test_a_line_arrives_when_it_is_written_not_at_the_end(supervisor: Supervisor) -> None:
    lines: list[str] = []
    child = supervisor.start_lines(
        python("import time; print('now', flush=True); time.sleep(60)"), on_line=lines.append
    )
    until(lambda: lines == ["now"], 5)
    assert child.returncode is None


def test_bytes_that_are_no_text_are_replaced(supervisor: Supervisor) -> None:
    lines: list[str] = []
    supervisor.start_lines(python(r"import os; os.write(1, b'a\xff\nb\r\n')"), on_line=lines.append).wait()
    assert lines == ["a\ufffd", "b"]


def test_the_end_of_stderr_is_kept_and_all_of_it_logged(supervisor: Supervisor, tmp_path: Path) -> None:
    log = tmp_path / "fit.log"
    log.write_text("before\n")
    code = "import sys\nfor i in range(100): print('bad', i, file=sys.stderr)\nsys.exit(7)"
    child = supervisor.start_lines(python(code), on_line=print, log_file=log)
    assert child.wait() == 7
    assert child.error_tail.splitlines() == [f"bad {i}" for i in range(100 - TAIL_LINES, 100)]
    assert log.read_text().splitlines() == ["before"] + [f"bad {i}" for i in range(100)]


def test_of_a_progress_bar_only_the_last_state_is_kept(supervisor: Supervisor) -> None:
    code = r"import sys; sys.stderr.write('10 %\r20 %\r30 %\nkilled\n')"
    child = supervisor.start_lines(python(code), on_line=print)
    child.wait()
    assert child.error_tail == "30 %\nkilled"


def test_environment_and_folder(supervisor: Supervisor, tmp_path: Path) -> None:
    lines: list[str] = []
    code = "import os; print(os.environ['EXTRA'], 'PATH' in os.environ, os.getcwd())"
    supervisor.start_lines(python(code), env={"EXTRA": "x"}, cwd=tmp_path, on_line=lines.append).wait()
    assert lines == [f"x True {tmp_path}"]


def test_a_command_that_does_not_exist_ends_with_127(supervisor: Supervisor) -> None:
    child = supervisor.start_lines(["no-such-command-here"], on_line=print)
    assert child.wait() == 127
    assert child.error_tail == "cannot start no-such-command-here: No such file or directory"


def test_a_callback_that_raises_ends_the_child_and_is_raised(supervisor: Supervisor) -> None:
    def refuse(line: str) -> None:
        raise ValueError(f"cannot read {line}")

    code = "import time\nfor i in range(100000): print('x' * 100)\ntime.sleep(60)"
    started = time.monotonic()
    with pytest.raises(ValueError, match="cannot read xxx"):
        supervisor.start_lines(python(code), on_line=refuse).wait()
    assert time.monotonic() - started < 5


def test_waiting_can_be_limited(supervisor: Supervisor) -> None:
    child = supervisor.start_lines(["sleep", "60"], on_line=print)
    with pytest.raises(TimeoutError, match=r"sleep \(pid \d+\) still runs after 0.1 s"):
        child.wait(timeout_s=0.1)


# -- ending ----------------------------------------------------------------------------------------------------------


def test_a_child_that_heeds_sigterm_ends_in_its_own_way(supervisor: Supervisor) -> None:
    lines: list[str] = []
    code = """
        import signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: (print('saved', flush=True), sys.exit(5)))
        print('ready', flush=True)
        time.sleep(60)
    """
    child = supervisor.start_lines(python(code), on_line=lines.append)
    until(lambda: lines, 5)
    child.terminate()
    assert child.wait() == 5
    assert lines == ["ready", "saved"]


@pytest.mark.kills
def test_stubborn_children_and_their_own_children_are_killed(supervisor: Supervisor, stubborn: Path) -> None:
    """Each starts another, in the same session and (as torchrun does) in one of its own; all ignore SIGTERM."""
    lines: list[str] = []
    children = [
        supervisor.start_lines([sys.executable, str(stubborn), where], on_line=lines.append)
        for where in ("near", "away")
    ]
    until(lambda: len(lines) == 4, 5)
    started = time.monotonic()
    supervisor.stop_all()
    assert 1.4 < time.monotonic() - started < 2.5
    assert [child.wait() for child in children] == [-signal.SIGKILL] * 2
    assert not any(alive(int(line)) for line in lines)


@pytest.mark.kills
def test_a_stubborn_one_left_behind_by_a_child_that_heeds_is_killed_too(supervisor: Supervisor, stubborn: Path) -> None:
    lines: list[str] = []
    code = f"""
        import subprocess, sys, time
        subprocess.Popen([sys.executable, {str(stubborn)!r}], start_new_session=True)
        time.sleep(60)
    """
    child = supervisor.start_lines(python(code), on_line=lines.append)
    until(lambda: lines, 5)
    started = time.monotonic()
    child.terminate()
    assert child.wait() == -signal.SIGTERM
    assert time.monotonic() - started < 1.0  # nothing to wait for: it is an orphan
    until(lambda: not alive(int(lines[0])), 1)


def test_what_a_child_leaves_behind_is_ended_with_it(supervisor: Supervisor) -> None:
    lines: list[str] = []
    child = supervisor.start_lines(["sh", "-c", "sleep 60 & echo $!"], on_line=lines.append)
    started = time.monotonic()
    assert child.wait() == 0
    assert time.monotonic() - started < 1.5  # though the orphan held the pipe open
    assert not alive(int(lines[0]))


@pytest.mark.kills
def test_stop_alone_ends_children_for_which_nobody_waits(stubborn: Path) -> None:
    stop = threading.Event()
    lines: list[str] = []
    with Supervisor(stop) as supervisor:
        children = [supervisor.start_lines([sys.executable, str(stubborn)], on_line=lines.append) for _ in range(3)]
        children.append(supervisor.start_lines(["sleep", "60"], on_line=lines.append))
        until(lambda: len(lines) == 3, 5)
        started = time.monotonic()
        stop.set()
        assert until(lambda: all(child.exited.is_set() for child in children), 5) < 2.5
        assert time.monotonic() - started > 1.4  # SIGTERM came first
        with pytest.raises(Stopped):
            supervisor.start_lines(["true"], on_line=print)


def test_waiting_ends_with_stop(supervisor: Supervisor) -> None:
    child = supervisor.start_lines(["sleep", "60"], on_line=print)
    threading.Timer(0.2, supervisor.stop.set).start()
    started = time.monotonic()
    assert child.wait(supervisor.stop) == -signal.SIGTERM
    assert time.monotonic() - started < 1.5


def test_nothing_starts_after_the_end() -> None:
    with Supervisor() as supervisor:
        assert supervisor.start_lines(["true"], on_line=print).wait() == 0
    with pytest.raises(Stopped):
        supervisor.start_lines(["true"], on_line=print)
    supervisor.stop_all()  # a second time: nothing to do


def test_ending_twice_from_two_threads_is_one_end(supervisor: Supervisor) -> None:
    child = supervisor.start_lines(["sleep", "60"], on_line=print)
    threads = [threading.Thread(target=child.terminate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(5)
    assert child.wait() == -signal.SIGTERM
    child.terminate()  # its number may be another's by now: nothing is sent
    assert child.wait() == -signal.SIGTERM


# -- parents ---------------------------------------------------------------------------------------------------------


def test_a_child_outlives_the_thread_that_asked_for_it(supervisor: Supervisor) -> None:
    """The parent-death signal fires when the starting thread ends: that must not be the asking one."""
    children: list[Child] = []
    lines: list[str] = []

    def ask() -> None:
        children.append(supervisor.start_lines(["sh", "-c", "echo up; sleep 60"], on_line=lines.append))
        until(lambda: lines, 5)  # only now has it requested the signal

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join(5)
    time.sleep(0.3)
    assert alive(children[0].pid)


@pytest.mark.kills
def test_any_command_dies_with_a_killed_parent(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import os, signal, time
        from tasks.engine.children import Supervisor

        lines = []
        command = "trap '' TERM HUP; echo up; sleep 60; sleep 60"
        child = Supervisor().start_lines(["sh", "-c", command], on_line=lines.append)
        while not lines:
            time.sleep(0.01)
        print(child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, str(script)], env=environment, stdout=subprocess.PIPE, timeout=30)
    assert done.returncode == -signal.SIGKILL
    assert until(lambda: not alive(int(done.stdout)), 5) < 2.0


def test_a_child_whose_parent_is_gone_already_dies_at_once() -> None:
    guard = ROOT / "tasks" / "engine" / "process_tree.py"
    done = subprocess.run([sys.executable, str(guard), "1", "echo", "alive"], stdout=subprocess.PIPE, timeout=30)
    assert (done.returncode, done.stdout) == (-signal.SIGKILL, b"")


def test_a_child_holds_no_lock_of_ours(supervisor: Supervisor, tmp_path: Path) -> None:
    path = tmp_path / "gpu.lock"
    with open(path, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.set_inheritable(lock.fileno(), True)
        child = supervisor.start_lines(["sleep", "60"], on_line=print)
    with open(path, "w") as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises if the child had kept it
    assert alive(child.pid)


def test_pipes_break_as_usual_in_children(supervisor: Supervisor) -> None:
    """Python ignores SIGPIPE; a shell started from it must not."""
    child = supervisor.start_lines(["sh", "-c", "yes | head -n 1"], on_line=print)
    assert child.wait(timeout_s=5) == 0
    assert child.error_tail == ""


def test_a_family_is_group_session_and_descent_and_not_its_leader(supervisor: Supervisor) -> None:
    lines: list[str] = []
    code = "sleep 60 & echo $!; setsid sleep 61 & echo $!; wait"
    child = supervisor.start_lines(["sh", "-c", code], on_line=lines.append)
    until(lambda: len(lines) == 2, 5)
    assert set(family(child.pid)) == {int(line) for line in lines}
    assert os.getpid() not in family(os.getppid())


@pytest.mark.parametrize("times", [20])
def test_no_thread_and_no_descriptor_is_left(times: int) -> None:
    with Supervisor() as supervisor:
        supervisor.start_lines(["true"], on_line=print).wait()
        threads, descriptors = threading.active_count(), len(os.listdir("/proc/self/fd"))
        for _ in range(times):
            supervisor.start_lines(["true"], on_line=print).wait()
        until(lambda: threading.active_count() <= threads, 2)
        assert len(os.listdir("/proc/self/fd")) <= descriptors
