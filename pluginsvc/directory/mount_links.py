"""Links at the paths that plugins tell engines, to where on this host that is (REF 3.10).

A legacy plugin's path of a volume is the host's to every engine; a managed plugin tells one in its propagated mount as
it sees that itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from pluginsvc.directory.links import Claim, Trouble, keep
from pluginsvc.directory.published import Link


def mount_links(directories: Iterable[Path], plugins: Path, links: Iterable[Link]) -> Iterator[Trouble]:
    """Keep a link for each volume plugin whose propagated mount is directly in one of some directories. Blocks.

    Args:
        directories: absolute, not ``/``, and there: none is made. A link in one that leads to a propagated mount of
            ours is ours, and nothing else is touched.
        plugins: ROOT/plugins, absolute.
        links: what is published.

    Yields:
        What could not be done.
    """
    ours = re.compile(rf"{re.escape(str(plugins))}/[0-9a-f]{{64}}/propagated-mount")
    advice = "with one propagatedMount, only one can have its volumes used by engines"
    volumes = [link for link in links if link.volumes]
    for directory in directories:
        claims = [
            Claim(name, f"{plugins}/{link.plugin_id}/propagated-mount", link.alias)
            for link in volumes
            if (name := _name_in(directory, link.mount))
        ]
        try:
            folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for name, why in keep(folder, claims, ours=ours, advice=advice):
                    yield Trouble(f"{directory}/{name}", why)
            finally:
                os.close(folder)
        except OSError as exc:
            why = f"no volumes are found there: {exc.strerror}; mend that, or take it out of publish-mounts"
            yield Trouble(str(directory), why)


def _name_in(directory: Path, path: str) -> str:
    """Return what a path is called directly in a directory; nothing where it is elsewhere."""
    # by components, after as many slashes as it may begin with
    parts = Path(path).parts[1:]
    found = path.startswith("/") and parts[:-1] == directory.parts[1:] and ".." not in parts
    return parts[-1] if found else ""
