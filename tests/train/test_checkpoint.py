"""Checkpoints: what is saved comes back, and nothing that is damaged or foreign does."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from storyflower.interim import checkpoint_folders
from storyflower.model.device import choose
from storyflower.train import checkpoint
from storyflower.train import fit as fit_module
from storyflower.train import optimizer as optimizer_module
from storyflower.train.checkpoint import Checkpoints
from storyflower.train.state import State
from tests.support import ROOT, params_of, run
from tests.train.test_fit import Bag, random_table

MINE, OTHER = "a" * 64, "b" * 64
TABLE = random_table(40)  # five steps of eight


def fit(network: Bag, checkpoints: Checkpoints | None = None, **values: object) -> list:
    rate = {"learning_rate": 0.05, "optimizer": "adamw", "mask_rate": 0.0}
    return fit_module.fit(
        network,
        train=TABLE,
        test=random_table(9, seed=1),
        params=params_of(**{**rate, "num_epochs": 3, "batch_size": 8, **values}),
        placement=choose("cpu", "fp32"),
        on_epoch=lambda _: None,
        checkpoints=checkpoints,
    ).history


class Dropping(Bag):
    """With dropout, so that a wrong random state shows."""

    def forward(self, batch: object) -> torch.Tensor:
        return torch.nn.functional.dropout(super().forward(batch), 0.5, self.training)


class Killed(BaseException):
    pass


class Dying(Checkpoints):
    """Saves after every step, and dies after as many."""

    def __init__(self, root: Path, fingerprint: str, steps: int):
        super().__init__(root, fingerprint, minutes=1e-9)
        self.left = steps

    def after_step(self, state: State) -> None:
        super().after_step(state)
        self.left -= 1
        if self.left == 0:
            raise Killed


def new_network() -> Dropping:
    torch.manual_seed(3)
    return Dropping()


def same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def without_seconds(history: list) -> list:
    return [(row.epoch, row.loss, row.train_accuracy, row.test_loss, row.tokens) for row in history]


def die(root: Path, steps: int, **values: object) -> None:
    with pytest.raises(Killed), Dying(root, MINE, steps) as checkpoints:
        fit(new_network(), checkpoints, **values)


def files(root: Path) -> list[Path]:
    """A run's checkpoints, oldest first."""
    return sorted(root.glob(f"{MINE[:16]}/*.safetensors"))


@pytest.mark.parametrize("optimizer_name", ["adamw", "notebook"])
@pytest.mark.parametrize("steps", [1, 5, 7, 15])  # in an epoch, at its end, at the end of all
def test_a_resumed_training_ends_as_one_that_never_died(
    tmp_path: Path, steps: int, optimizer_name: str
) -> None:
    whole, resumed = new_network(), new_network()
    history = fit(whole, optimizer=optimizer_name)
    die(tmp_path, steps, optimizer=optimizer_name)
    torch.rand(5)  # another random state than that of the process that died
    with Checkpoints(tmp_path, MINE, 5) as checkpoints:
        again = fit(resumed, checkpoints, optimizer=optimizer_name)
    assert same(whole, resumed)
    assert without_seconds(again) == without_seconds(history)
    # Finished, and asked once more: nothing is trained, and the same comes out.
    third = new_network()
    with Checkpoints(tmp_path, MINE, 5) as checkpoints:
        assert fit(third, checkpoints, optimizer=optimizer_name) == again
    assert same(whole, third)


def test_seconds_go_on(tmp_path: Path) -> None:
    die(tmp_path, 4)
    with Checkpoints(tmp_path, MINE, 5) as checkpoints:
        checkpoints._numbers["seconds"] = 1000.0
        first, second, _ = fit(new_network(), checkpoints)
    assert 1000 < first.seconds < 1100
    assert second.seconds < 100


def test_the_scaler_of_fp16_goes_on() -> None:
    def state(scaler: torch.amp.GradScaler) -> State:
        network = Bag()
        optimizer = optimizer_module.make_optimizer(network, 0.1, 0.0, torch.device("cpu"))
        return State(
            network, optimizer, scaler, torch.zeros(()), torch.zeros((), dtype=torch.int64)
        )

    used = torch.amp.GradScaler("cpu", init_scale=2.0**7, growth_interval=3)
    before, after = state(used), state(torch.amp.GradScaler("cpu"))
    used.scale(torch.ones(()))
    after.restore(before.tensors(), before.numbers())
    assert after.scaler.state_dict() == used.state_dict()
    assert after.scaler.get_scale() == 2.0**7


def test_what_more_was_given_comes_back(tmp_path: Path) -> None:
    with Checkpoints(tmp_path, MINE, 5) as checkpoints:
        assert checkpoints.saved_extra is None
        checkpoints.extra = lambda: {"key": "상처", "metrics": [["loss", 0.1, 5, 1]]}
        fit(new_network(), checkpoints, num_epochs=1)
    with Checkpoints(tmp_path, MINE, 5) as checkpoints:
        assert checkpoints.saved_extra == {"key": "상처", "metrics": [["loss", 0.1, 5, 1]]}


def test_time_decides_and_each_epoch_ends_with_one(tmp_path: Path, monkeypatch) -> None:
    saved: list[tuple[int, int]] = []

    class Watched(Checkpoints):
        def after_epoch(self, state: State) -> None:
            super().after_epoch(state)
            saved.append((state.epoch, state.step))

        def after_step(self, state: State) -> None:
            clock[0] += 25.0
            super().after_step(state)

    clock = [0.0]
    monkeypatch.setattr(checkpoint.time, "monotonic", lambda: clock[0])
    with Watched(tmp_path, MINE, minutes=1) as checkpoints:  # 25 seconds a step
        fit(new_network(), checkpoints, num_epochs=2)
    assert saved == [(0, 3), (1, 0), (1, 3), (2, 0)]
    assert [path.name[:12] for path in files(tmp_path)] == ["000010000003", "000020000000"]


@pytest.mark.parametrize("harm", ["cut", "flip", "empty", "other name", "foreign", "not ours"])
def test_a_damaged_newest_is_reported_and_the_one_before_it_used(
    tmp_path: Path, harm: str, capsys
) -> None:
    whole, resumed = new_network(), new_network()
    fit(whole)
    die(tmp_path, 9)
    before, newest = files(tmp_path)
    content = bytearray(newest.read_bytes())
    if harm == "cut":
        newest.write_bytes(content[:-100])
    elif harm == "flip":
        content[len(content) // 2] ^= 1
        newest.write_bytes(content)
    elif harm == "empty":
        newest.write_bytes(b"")
    elif harm == "other name":
        newest.rename(newest.with_name(f"{newest.name[:12]}-{'0' * 32}.safetensors"))
    else:  # the right name for its content
        foreign = save({"a": torch.zeros(3)}) if harm == "not ours" else b"\x80\x04\x95"
        name = f"{newest.name[:12]}-{hashlib.sha256(foreign).hexdigest()[:32]}.safetensors"
        newest.unlink()
        newest.with_name(name).write_bytes(foreign)
    with Checkpoints(tmp_path, MINE, 5) as checkpoints:
        fit(resumed, checkpoints)
    out, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert line.startswith("warning: checkpoint ") and "damaged" in line
    assert newest.name[:12] in line
    assert "going on from the checkpoint after step 3 of epoch 2" in out
    assert same(whole, resumed)
    assert before.name[:12] == "000010000003"


def test_all_damaged_is_a_start_from_the_beginning(tmp_path: Path, capsys) -> None:
    whole, again = new_network(), new_network()
    fit(whole)
    die(tmp_path, 9)
    for path in files(tmp_path):
        path.write_bytes(b"x")
    with Checkpoints(tmp_path, MINE, 5) as checkpoints:
        assert checkpoints.saved_extra is None
        fit(again, checkpoints)
    assert len(capsys.readouterr().err.splitlines()) == 2
    assert same(whole, again)


def test_another_fingerprint_finds_nothing(tmp_path: Path) -> None:
    die(tmp_path, 3)
    for name in (OTHER, MINE[:16] + OTHER[16:]):  # of another folder; of the same one
        with Checkpoints(tmp_path, name, 5) as checkpoints:
            assert checkpoints.saved_extra is None


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for steps, kept in ((1, 1), (2, 2), (6, 2)):
        root = tmp_path / str(steps)
        die(root, steps)
        assert len(files(root)) == kept
    assert [path.name[:12] for path in files(tmp_path / "6")] == ["000010000000", "000010000001"]


WRITER = """
import sys
from pathlib import Path
import torch
from storyflower.train.checkpoint import Checkpoints
from storyflower.train.state import State
big = torch.nn.Linear(2000, 2000)
optimizer = torch.optim.AdamW(big.parameters())
state = State(big, optimizer, torch.amp.GradScaler("cpu", enabled=False), torch.zeros(()),
              torch.zeros((), dtype=torch.int64))
with Checkpoints(Path({folder!r}), {name!r}, 5) as checkpoints:
    print("ready", flush=True)
    while True:
        state.step += 1
        checkpoints.after_epoch(state)
"""


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_files_under_whole_names(tmp_path: Path, capsys) -> None:
    hit = 0
    for number in range(2):
        code = WRITER.format(folder=str(tmp_path), name=MINE)
        writer = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
        assert writer.stdout.readline() == b"ready\n"
        folder = tmp_path / MINE[:16]
        deadline = time.monotonic() + 60
        while len(files(tmp_path)) < 2 or not leftovers(folder):
            assert time.monotonic() < deadline and writer.poll() is None
        time.sleep(0.003 * number)
        writer.kill()
        writer.wait()
        hit += bool(leftovers(folder))
        with Checkpoints(tmp_path, MINE, 5) as checkpoints:
            assert checkpoints.saved_extra == {}
        assert leftovers(folder) == []
        assert capsys.readouterr().err == ""
    assert hit


def leftovers(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix != ".safetensors"]


def test_a_folder_that_cannot_be_written_costs_one_line(tmp_path: Path, capsys) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    whole, trained = new_network(), new_network()
    fit(whole)
    with Checkpoints(blocked, MINE, 1e-9) as checkpoints:
        fit(trained, checkpoints)
    assert same(whole, trained)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: no checkpoint can be saved in {blocked}")


FULL = """
import resource, sys
from pathlib import Path
from tests.train import test_checkpoint as own
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
network = own.new_network()
with own.Checkpoints(Path({folder!r}), own.MINE, 1e-9) as checkpoints:
    own.fit(network, checkpoints)
print(sum(p.double().sum().item() for p in network.parameters()))
"""


@pytest.mark.slow
def test_a_full_disk_costs_one_line_and_keeps_the_old_ones(tmp_path: Path) -> None:
    """No file may grow beyond 1,000 bytes, so that each write ends as on a full disk."""
    whole = new_network()
    fit(whole)
    die(tmp_path, 4)
    old = {path: path.read_bytes() for path in files(tmp_path)}
    code = FULL.format(folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("warning: no checkpoint can be saved in ") and "File too large" in line
    assert "going on from the checkpoint after step 4 of epoch 1" in done.stdout
    total = sum(p.double().sum().item() for p in whole.parameters())
    assert float(done.stdout.splitlines()[-1]) == total
    assert {path: path.read_bytes() for path in files(tmp_path)} == old
    assert leftovers(tmp_path / MINE[:16]) == []


HOLDER = """
import sys, time
from pathlib import Path
from storyflower.common.locks import acquire
with acquire(Path({lock!r}), "holds it"):
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.slow
def test_a_lock_is_waited_for_and_freed_by_death(tmp_path: Path) -> None:
    lock = tmp_path / "new" / "x.lock"
    code = HOLDER.format(lock=str(lock))
    start = [sys.executable, "-c", code]
    holder = subprocess.Popen(start, cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout.readline() == b"ready\n"
    waiter = subprocess.Popen(start, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    line = waiter.stderr.readline().decode()
    assert line.startswith(f"waiting: process {holder.pid} holds it") and "kill" in line
    with pytest.raises(subprocess.TimeoutExpired):
        waiter.wait(0.7)
    holder.kill()
    assert waiter.stdout.readline() == b"ready\n"
    waiter.kill()
    waiter.wait(), holder.wait()


def test_discard_and_prune_spare_what_is_in_use(tmp_path: Path) -> None:
    die(tmp_path, 3)
    with Checkpoints(tmp_path, MINE, 5):
        checkpoint_folders.discard(tmp_path, MINE[:16])
        assert len(files(tmp_path)) == 2
        long_ago = time.time() - 15 * 24 * 3600
        for path in [*files(tmp_path), tmp_path / MINE[:16]]:
            os.utime(path, (long_ago, long_ago))
        with Checkpoints(tmp_path, OTHER, 5):  # which looks for old ones
            assert len(files(tmp_path)) == 2
    (tmp_path / "mine.txt").write_text("a stranger's", encoding="utf-8")
    with Checkpoints(tmp_path, OTHER, 5):
        assert not (tmp_path / MINE[:16]).exists()
        assert (tmp_path / OTHER[:16]).exists()
    checkpoint_folders.discard(tmp_path, OTHER[:16])
    for name in ("", "..", "../..", "mine.txt", "no such folder"):
        checkpoint_folders.discard(tmp_path, name)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_young_ones_of_other_runs_stay(tmp_path: Path) -> None:
    die(tmp_path, 3)
    with Checkpoints(tmp_path, OTHER, 5):
        assert len(files(tmp_path)) == 2


def test_where_checkpoints_lie(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert checkpoint_folders.root_of("auto", tmp_path) == tmp_path / ".storyflower/checkpoints"
    assert checkpoint_folders.root_of("kept here", tmp_path) == tmp_path / "kept here"
    assert checkpoint_folders.root_of("/drive/x", tmp_path) == Path("/drive/x")
    assert checkpoint_folders.root_of("~/x", tmp_path) == Path("/home/someone/x")


def test_a_fingerprint_sees_every_change(tmp_path: Path) -> None:
    folder = tmp_path / "one" / "tokens"
    folder.mkdir(parents=True)
    (folder / "a").write_bytes(b"12")
    (folder / "b").write_bytes(b"")
    facts = {"seed": 1, "encoder": "뜻"}

    def of(**changes: object) -> str:
        return checkpoint.fingerprint({**facts, **changes}, [folder])

    first = of()
    assert len(first) == 64 and first == of()
    moved = tmp_path / "two" / "tokens"
    moved.parent.mkdir()

    shutil.copytree(folder, moved)
    assert checkpoint.fingerprint(facts, [moved]) == first  # wherever it lies
    assert of(seed=2) != first
    seen = {first}
    for name, content in (("a", b"13"), ("a", b"1"), ("b", b"2"), ("c", b"")):
        (folder / name).write_bytes(content)
        seen.add(of())
    (folder / "c").rename(folder / "d")
    seen.add(of())
    assert len(seen) == 6


# One process imports what a training needs and forks: each case ends a process of its own.
SIGNALLED = """
import json, os, signal, sys
from pathlib import Path
from tests.train import test_checkpoint as own
from storyflower.common.errors import exit_with_line

class Signalled(own.Checkpoints):
    def after_step(self, state):
        if (state.epoch, state.step) == (1, 2):
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)  # as `timeout` does
        super().after_step(state)

def main():
    with Signalled(folder, own.MINE, 5) as checkpoints:
        with checkpoints.stop:
            own.fit(own.new_network(), checkpoints)

for number, environment in json.loads(sys.argv[2]):
    folder = Path(sys.argv[1], str(number))
    if os.fork():
        print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
        continue
    os.dup2(os.open(f"{folder}.err", os.O_WRONLY | os.O_CREAT), 2)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # pytest may run in the background
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # or under nohup
    exit_with_line(main)
    sys.exit(0)
"""


@pytest.mark.slow
def test_a_signal_saves_after_the_step_and_says_how_to_go_on(tmp_path: Path) -> None:
    cases = {
        signal.SIGTERM: ({}, "dvc repro"),
        signal.SIGHUP: ({}, "dvc repro"),  # the terminal was closed
        signal.SIGINT: ({"DVC_EXP_NAME": "gusty-tray"}, "the same 'dvc exp run' command"),
    }
    words = json.dumps([(number, environment) for number, (environment, _) in cases.items()])
    done = run(ROOT, sys.executable, "-c", SIGNALLED, str(tmp_path), words)
    assert done.returncode == 0 and done.stderr == ""
    codes = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    assert codes == [128 + number for number in cases]
    for number, (_, how) in cases.items():
        assert (tmp_path / f"{int(number)}.err").read_text(encoding="utf-8") == (
            f"stopping, after this step\n"
            f"stopped after step 2 of epoch 2; saved; go on with: {how}\n"
        )
        assert files(tmp_path / str(int(number)))[-1].name.startswith("000010000002")
