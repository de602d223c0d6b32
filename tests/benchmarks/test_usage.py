import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.serving import usage

STAT = "{pid} (a) b (c) S {parent} 1 1 0 -1 4194304 100 200 0 0 {user} {system} {child_user} {child_system} 20 0 1"


def fake_proc(folder: Path) -> Path:
    def process(pid: int, parent: int, pss_kb: int) -> None:
        (folder / str(pid)).mkdir()
        ticks = {"user": pid, "system": 2, "child_user": 3, "child_system": 4}
        (folder / str(pid) / "stat").write_text(STAT.format(pid=pid, parent=parent, **ticks))
        rollup = f"1000-2000 ---p 00000000 00:00 0 [rollup]\nRss: {2 * pss_kb} kB\nPss: {pss_kb} kB\nPss_Dirty: 7 kB\n"
        (folder / str(pid) / "smaps_rollup").write_text(rollup)

    process(10, 1, 100)
    process(11, 10, 20)
    process(12, 11, 3)
    process(20, 1, 1000)
    (folder / "meminfo").write_text("")
    return folder


def test_a_tree_is_the_process_and_all_below(tmp_path: Path) -> None:
    proc = fake_proc(tmp_path)
    assert usage.tree(10, proc) == {10, 11, 12}
    assert usage.memory(10, proc) == usage.Memory(pss_bytes=123 * 1024, rss_bytes=246 * 1024)
    ticks = os.sysconf("SC_CLK_TCK")
    assert usage.cpu_seconds(10, proc) == pytest.approx((10 + 11 + 12 + 3 * 9) / ticks)
    assert usage.tree(99, proc) == set()


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="needs Linux' /proc")
def test_a_real_child_is_found_and_its_time_counted() -> None:
    burn = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen([sys.executable, "-c", burn], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        assert child.pid in usage.tree(os.getpid())
        assert usage.cpu_seconds(child.pid) >= 0.18  # ticks are 10 ms
        assert usage.memory(child.pid).pss_bytes > 1_000_000
        child.communicate(b"\n")
