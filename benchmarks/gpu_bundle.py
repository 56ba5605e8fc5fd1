"""Images for a GPU machine without a network, and what travels there in bytes: the last step of `make gpu-bundle`.

Images become lossless WebP, pixel for pixel the same in 70 % of the bytes; masks are copied.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
CATEGORIES = ("bottle", "transistor")
MOST = 64e6  # bytes


def copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if "ground_truth" in file.parts:
        shutil.copyfile(file, target)
    else:
        Image.open(file).save(target.with_suffix(".webp"), lossless=True, method=4)


def size(files: list[Path]) -> int:
    return sum(file.stat().st_size for file in files)


def main() -> None:
    parser = argparse.ArgumentParser(description="images for a GPU machine, and the size of all that travels")
    parser.add_argument("data", type=Path, help="folder of MVTec AD's categories")
    parser.add_argument("out", type=Path, help="folder that holds the wheels; images go to its folder data")
    chosen = parser.parse_args()
    for category in CATEGORIES:
        for file in sorted((chosen.data / category).rglob("*.png")):
            copy(file, chosen.out / "data" / file.relative_to(chosen.data))
    tree = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    parts = {
        "tree": size([ROOT / name for name in tree.split("\0") if name]),
        "wheels": size(list(chosen.out.glob("*.whl"))),
        "images": size([file for file in (chosen.out / "data").rglob("*") if file.is_file()]),
    }
    print(
        ", ".join(f"{name} {part / 1e6:.1f} MB" for name, part in parts.items()),
        f"= {sum(parts.values()) / 1e6:.1f} MB",
    )
    if sum(parts.values()) > MOST:
        raise SystemExit(f"more than the {MOST / 1e6:.0f} MB that one sends in a call")


if __name__ == "__main__":
    main()
