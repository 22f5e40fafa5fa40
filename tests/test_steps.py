import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retrieval.commands.steps import Steps

AG = Path(__file__).parents[1] / "AG"


def python(code: str) -> str:
    return f"-c {shlex.quote(code)}"


def test_a_step_that_is_done_is_not_done_again(tmp_path):
    note = f"open({str(tmp_path / 'note')!r}, 'a').write('x')"
    for _ in range(2):
        steps = Steps(tmp_path / "seconds.json")
        steps.take("twice", python(note), python(note))
        steps.take("once", python(note))
    assert (tmp_path / "note").read_text() == "xxx"
    assert steps.seconds.keys() == {"twice", "once"}


def test_a_failure_ends_the_work_and_is_tried_again(tmp_path):
    steps = Steps(tmp_path / "seconds.json")
    with pytest.raises(SystemExit) as stop:
        steps.take("fails", python("raise SystemExit(7)"))
    assert stop.value.code == 7
    steps = Steps(tmp_path / "seconds.json")
    steps.take("fails", python("pass"))
    assert "fails" in steps.seconds


def test_commands_find_the_packages_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Steps(tmp_path / "seconds.json").take("import", python("import retrieval.errors"))


def test_ctrl_c_lets_the_command_save_its_work(tmp_path):
    command = (
        "import time, pathlib\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "(folder / 'started').touch()\n"
        "try:\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n"
        "    time.sleep(1)\n    (folder / 'saved').touch()\n    raise SystemExit(130)\n"
    )
    work = (
        "from pathlib import Path\nfrom retrieval.commands.steps import Steps\n"
        f"Steps(Path({str(tmp_path / 'seconds.json')!r})).take('long', {python(command)!r})"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", work],
        env={**os.environ, "PYTHONPATH": str(AG)},
        start_new_session=True,
        # A shell's background job, and so what it starts, ignores Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(timeout=60) == 130
    assert (tmp_path / "saved").exists()
    assert not (tmp_path / "seconds.json").exists()
