"""What importing costs and does: little, and nothing that anybody could see."""

import subprocess
import sys

SCRIPT = """
import sys, time
import hidistill, hidistill.cli
from importlib import import_module
from pkgutil import walk_packages

for command in hidistill.cli.COMMANDS:
    import_module(f"hidistill.cli.commands.{command}")
assert "torch" not in sys.modules, "the command line's help would wait for torch"

begin = time.process_time()
import torch
loaded = time.process_time()
for module in walk_packages(hidistill.__path__, "hidistill."):
    if not module.name.endswith("__main__"):
        import_module(module.name)
print((time.process_time() - loaded) / (loaded - begin))
assert not torch.cuda.is_initialized()
"""


def test_importing_everything_is_cheap_and_silent(tmp_path):
    done = subprocess.run(
        [sys.executable, "-B", "-W", "error", "-c", SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert len(done.stdout.split()) == 1
    assert float(done.stdout) < 2.5, "of the processor time that torch itself takes"
    assert list(tmp_path.iterdir()) == []
