import json
import subprocess
import sys
from pathlib import Path

import backports.zstd
import isal

PROBE = """
import json, sys
sys.path[:0] = sys.argv[1:]
import pluginsvc.rootfs.worker
modules = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(json.dumps([sorted(modules), sorted(name for name in sys.modules if name.startswith("pluginsvc"))]))
"""


def test_imports_little() -> None:
    """The child holds the standard library, isal, zstd, errors and its own parts of the room: it starts fast."""
    folders = [Path(__file__).parents[3], Path(isal.__file__).parents[1], Path(backports.zstd.__file__).parents[2]]
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", PROBE, *folders], check=True, capture_output=True, text=True
    )
    tops, ours = json.loads(done.stdout)
    assert set(tops) - {"__main__"} == {"backports", "isal", "pluginsvc"}
    rooms = {name for name in ours if name.count(".") == 1}
    assert rooms == {"pluginsvc.errors", "pluginsvc.rootfs"}
    assert not {"pluginsvc.rootfs.child", "pluginsvc.rootfs.confinement", "pluginsvc.rootfs.ingest"} & set(ours)
