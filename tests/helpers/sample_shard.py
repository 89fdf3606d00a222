"""The shard that the demo filters: `python tests/helpers/sample_shard.py FOLDER` makes it.

What `blip-fast scenes make FOLDER --pairs 48 --noise 0.5 --split seen --seed 2022` writes, and
three pictures more: one broken, one without a text, one with an empty text.
"""

from __future__ import annotations

import io
import sys
import tarfile
import tempfile
from pathlib import Path

from PIL import Image

from blip_fast.scenes.pairs import World, png
from blip_fast.scenes.render import render
from blip_fast.scenes.shards import make_shards

PAIRS = 48
WORLD = World(2022, split="seen", noise=0.5)


def make_sample_shard(folder: Path) -> Path:
    """Write FOLDER/00000.tar."""
    with tempfile.TemporaryDirectory() as scratch:
        make_shards(Path(scratch), WORLD, PAIRS)
        shard = folder / "00000.tar"
        shard.write_bytes((Path(scratch) / "00000.tar").read_bytes())
    buffer = io.BytesIO()
    Image.fromarray(render(WORLD.scene(PAIRS), WORLD.size)).save(buffer, "JPEG", quality=90)
    with tarfile.open(shard, "a", format=tarfile.USTAR_FORMAT) as tar:
        for name, data in (
            ("broken.jpg", buffer.getvalue()[: buffer.tell() // 3]),
            ("broken.txt", b"a broken picture"),
            ("without-text.png", png(WORLD.scene(PAIRS + 1), WORLD.size)),
            ("empty-text.png", png(WORLD.scene(PAIRS + 2), WORLD.size)),
            ("empty-text.txt", b""),
        ):
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 0
            tar.addfile(member, io.BytesIO(data))
    return shard


if __name__ == "__main__":
    print(make_sample_shard(Path(sys.argv[1])))
