"""Logs of models that are no more do not fill the disk."""

import os

from erllama_host.config import Paths
from erllama_host.controller import specs
from erllama_host.controller.old_logs import remove_old_logs


def test_the_latest_logs_and_those_of_present_models_stay(tmp_path):
    paths = Paths(tmp_path / "home", tmp_path / "run", tmp_path / "erllama.toml")
    paths.prepare()
    ids = ["present", "a", "a.log", "b", "c.log.1", "d"]
    for age, model_id in enumerate(ids):
        for suffix in ("", ".1", ".2"):
            file = specs.log_file(paths, model_id)
            file = file.with_name(file.name + suffix)
            file.write_text("x")
            os.utime(file, (1000 + age, 1000 + age))
    (paths.logs / "controller.log").write_text("x")
    os.utime(paths.logs / "model-a.log", (5000, 5000))
    remove_old_logs(paths.logs, {"present"}, max_kept=3)
    left = {path.name.removesuffix(".1").removesuffix(".2") for path in paths.logs.iterdir()}
    assert left == {"controller.log", "model-present.log", "model-a.log", "model-c.log.1.log", "model-d.log"}
    assert len(list(paths.logs.iterdir())) == 1 + 4 * 3
    remove_old_logs(paths.logs, {"present"}, max_kept=3)
    assert len(list(paths.logs.iterdir())) == 1 + 4 * 3
