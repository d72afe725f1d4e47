"""Where the figures of memory come from: the right cgroup, and devices that do not answer."""

import sys
from types import ModuleType, SimpleNamespace

import pytest

from erllama_host.config import ModelConfig
from erllama_host.controller import memory
from erllama_host.controller.footprints import Footprints


def make_cgroup(path, limit, used, oom_kills=0):
    path.mkdir(parents=True, exist_ok=True)
    (path / "memory.max").write_text(f"{limit}\n")
    (path / "memory.current").write_text(f"{used}\n")
    (path / "memory.stat").write_text("anon 1\ninactive_file 0\n")
    (path / "memory.events").write_text(f"low 0\noom_kill {oom_kills}\n")


@pytest.fixture
def tree(tmp_path):
    """A unit in a slice, as systemd arranges them: the root has no files about memory at all."""
    root, listing = tmp_path / "cgroup", tmp_path / "listing"
    make_cgroup(root / "a.slice", "5000", 4900)
    make_cgroup(root / "a.slice" / "erllama.service", "4000", 1000, oom_kills=2)
    listing.write_text("0::/a.slice/erllama.service\n")
    return SimpleNamespace(root=root, listing=listing)


def test_the_limit_of_a_unit_or_of_its_slice_counts(tree):
    assert memory.machine(tree.listing, tree.root) == memory.Memory(5000, 4900)
    (tree.root / "a.slice" / "memory.max").write_text("max\n")
    assert memory.machine(tree.listing, tree.root) == memory.Memory(4000, 1000)


def test_kills_of_our_own_cgroup_are_counted(tree):
    assert memory.num_oom_kills(memory.own_cgroup(tree.listing, tree.root)) == 2


@pytest.mark.parametrize("text", ["0::/\n", "0::/another/containers/path\n", "4:memory:/x\n", "", None])
def test_in_a_container_the_root_is_ours(tree, text):
    tree.listing.unlink()
    if text is not None:
        tree.listing.write_text(text)
    make_cgroup(tree.root, "3000", 10)
    assert memory.own_cgroup(tree.listing, tree.root) == tree.root
    assert memory.machine(tree.listing, tree.root) == memory.Memory(3000, 10)


def test_a_device_that_does_not_answer_is_left_out(monkeypatch):
    """One that has fallen off the bus, or that shares the machine's memory and refuses the question."""

    class NVMLError(Exception):
        pass

    def info(handle):
        if handle == 0:
            raise NVMLError("Not Supported")
        return SimpleNamespace(total=100, used=40)

    nvml = ModuleType("pynvml")
    nvml.NVMLError, nvml.nvmlInit, nvml.nvmlDeviceGetCount = NVMLError, lambda: None, lambda: 2
    nvml.nvmlDeviceGetHandleByIndex, nvml.nvmlDeviceGetMemoryInfo = lambda index: index, info
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert memory.memory_source(None)()[1:] == [memory.Memory(100, 40, "gpu1")]


def test_files_that_are_not_text_are_forgotten(tmp_path):
    file = tmp_path / "file.json"
    file.write_bytes(b'{"a\xff": 1}')
    assert Footprints(file).needed_bytes(ModelConfig(path=str(file))) == file.stat().st_size
    file.write_bytes(b'[{"name": "\xff"}]')
    assert memory.from_file(file) == []
