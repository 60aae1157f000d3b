"""Build the bundled Fashion-MNIST mosaics from the four original idx files.

    python scripts/build_fashion.py [FOLDER]

FOLDER holds the idx files (`hidistill data fashion-mnist` fetches them). The pictures are the first ones of each
class in file order, so a second run gives the same pixels; the hashes to keep in data/fashion.py are printed.
"""

import hashlib
import sys
from pathlib import Path

from PIL import Image

from hidistill.data.fashion import (
    ASSETS,
    CLASSES,
    SIZE,
    TEST_PER_CLASS,
    TRAIN_PER_CLASS,
    default_folder,
    read_idx,
    stratified,
)


def main() -> None:
    """Write both mosaics."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else default_folder()
    for name, source, per_class in (("train", "train", TRAIN_PER_CLASS), ("test", "t10k", TEST_PER_CLASS)):
        images, labels = read_idx(source, folder)
        pixels = images[stratified(labels, per_class)].numpy()
        mosaic = pixels.reshape(per_class, len(CLASSES), SIZE, SIZE).swapaxes(1, 2)
        mosaic = mosaic.reshape(per_class * SIZE, len(CLASSES) * SIZE)
        path = ASSETS / f"fashion-mnist-{name}.png"
        Image.fromarray(mosaic).save(path, optimize=True)
        digest = hashlib.sha256(pixels.tobytes()).hexdigest()
        sys.stdout.write(f"{path}: {path.stat().st_size:,} bytes, pixels {digest}\n")


if __name__ == "__main__":
    main()
