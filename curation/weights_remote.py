"""Published weights that are downloaded once: files at a URL, and repositories of the Hugging Face hub.

They sit beside `curation.weights.PackagedWeights` in the model registry and answer the same two questions: where is it,
and how is it had. Nothing here downloads unless `pull` is called.
"""

import hashlib
import json
import os
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from curation.weights import WeightsUnavailable, file_sha256

Progress = Callable[[int, int | None], None]
"""Called with bytes so far and bytes in all (None if the server does not say)."""


def weights_dir() -> Path:
    """Where downloaded files are kept: $CLIPMILL_WEIGHTS, or ~/.cache/clipmill/weights."""
    return Path(os.environ.get("CLIPMILL_WEIGHTS") or Path.home() / ".cache" / "clipmill" / "weights")


@dataclass(frozen=True)
class UrlWeights:
    """One published file.

    Attributes:
        url: where it is published.
        file: its name here.
        sha256: of the file, whole or, as torchvision publishes it, its first hexadecimal digits; empty where the
            publisher gives none (the checksum found is then part of the model's name).
        about_bytes: size, from the publisher or from the number of parameters.
        licence: SPDX identifier of the weights.
    """

    url: str
    file: str
    sha256: str
    about_bytes: int | None
    licence: str

    def locate(self) -> Path:
        """Path of the downloaded file. Raises WeightsUnavailable."""
        path = weights_dir() / self.file
        if not path.is_file():
            raise WeightsUnavailable(f"{path} is not there (published at {self.url})")
        return path

    def path(self) -> Path:
        """Path after comparing the checksum. Raises WeightsUnavailable."""
        return checked(self.locate(), self.sha256)

    def version(self, path: Path) -> str:
        """Which file it is: the beginning of its SHA-256."""
        return file_sha256(path)[:8]

    def pull(self, progress: Progress | None = None) -> Path:
        """Download; the file appears under its name only when it is whole and has the right checksum.

        Raises:
            WeightsUnavailable: the download failed or gave another file.
        """
        target = weights_dir() / self.file
        partial = target.with_name(f"{target.name}.{os.getpid()}.part")
        digest = hashlib.sha256()
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with urllib.request.urlopen(self.url, timeout=60) as answer, open(partial, "wb") as out:
                length = answer.headers.get("Content-Length")
                total, done = (int(length) if length else None), 0
                while block := answer.read(1 << 20):
                    out.write(block)
                    digest.update(block)
                    done += len(block)
                    if progress is not None:
                        progress(done, total)
            if total is not None and done != total:
                raise WeightsUnavailable(f"{self.url}: the connection ended after {done} of {total} bytes; try again")
            if not digest.hexdigest().startswith(self.sha256):
                raise WeightsUnavailable(f"{self.url} has SHA-256 {digest.hexdigest()}, expected {self.sha256}")
            os.replace(partial, target)
        except OSError as error:
            raise WeightsUnavailable(f"cannot download {self.url}: {error}; put the file at {target}") from error
        finally:
            partial.unlink(missing_ok=True)
        return target


@dataclass(frozen=True)
class HubWeights:
    """A repository of the Hugging Face hub.

    Attributes:
        repo: `owner/name`.
        files: names or patterns of the files that are needed; one with a plain name leads to the copy that is there.
        revision: branch, tag or commit; the commit that was found is part of the model's name.
    """

    repo: str
    files: tuple[str, ...]
    about_bytes: int | None
    licence: str
    revision: str = "main"

    def locate(self) -> Path:
        """The snapshot folder in the hub's cache (`HF_HOME`). Raises WeightsUnavailable."""
        from huggingface_hub import try_to_load_from_cache

        names = [name for name in self.files if "*" not in name]
        for name in names:
            found = try_to_load_from_cache(self.repo, name, revision=self.revision)
            if isinstance(found, str):
                return _complete(Path(found).parent)
        raise WeightsUnavailable(f"{self.repo}@{self.revision} ({' or '.join(names)}) is not in the hub's cache here")

    path = locate  # the hub's cache is addressed by content already

    def version(self, path: Path) -> str:
        """The commit: the hub's cache names a snapshot's folder after it."""
        return path.name[:12]

    def pull(self, progress: Progress | None = None) -> Path:
        """Download the snapshot; the hub's own progress bars are shown. Raises WeightsUnavailable."""
        from huggingface_hub import HfApi, snapshot_download

        try:
            # Many repositories hold the same weights twice.
            published = HfApi().list_repo_files(self.repo, revision=self.revision)
            safe = any(name.endswith(".safetensors") for name in published)
            wanted = [name for name in self.files if not (safe and name.endswith(".bin"))]
            return Path(snapshot_download(self.repo, revision=self.revision, allow_patterns=wanted))
        except Exception as error:  # the hub's own, the disk's, and those of whichever HTTP library it uses
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise WeightsUnavailable(
                f"cannot download {self.repo} from the hub: {reason}; or copy the repository to a folder and name it"
            ) from error


@dataclass(frozen=True)
class LocalWeights:
    """Weights at a path that the user names: a file, or a folder that holds the named files."""

    at: str
    files: tuple[str, ...] = ()
    licence: str = "the user's"

    @property
    def about_bytes(self) -> int | None:
        """Size of what is there, or None."""
        path = Path(self.at)
        if path.is_file():
            return path.stat().st_size
        return sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) if path.is_dir() else None

    def locate(self) -> Path:
        """The path. Raises WeightsUnavailable naming what is missing."""
        path = Path(self.at).expanduser()
        if not path.exists():
            raise WeightsUnavailable(f"{path} does not exist")
        if path.is_dir():
            for name in self.files:
                if not any(path.glob(name)):
                    raise WeightsUnavailable(f"{path} holds no {name}")
            _complete(path)
        return path

    path = locate

    def version(self, path: Path) -> str:
        """`local-` and the beginning of a SHA-256: of the file, or of the names and hashes of a folder's files."""
        if path.is_file():
            return f"local-{file_sha256(path)[:8]}"
        files = sorted(each for each in path.iterdir() if each.is_file())
        listed = "".join(f"{each.name} {file_sha256(each)}\n" for each in files)
        return f"local-{hashlib.sha256(listed.encode()).hexdigest()[:8]}"


_WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".gguf")


def _complete(folder: Path) -> Path:
    """`folder`, if it holds weights, all of them where an index lists them. Raises WeightsUnavailable."""
    names = {each.name for each in folder.iterdir()}
    for name in sorted(name for name in names if name.endswith(".index.json")):
        kind = name.removesuffix(".index.json").rpartition(".")[2]
        if not any(other.endswith(f".{kind}") for other in names) and any(
            other.endswith(_WEIGHT_SUFFIXES) for other in names
        ):
            continue  # the index of a format that was left out, because the other one is here
        listed = set(json.loads((folder / name).read_text(encoding="utf-8"))["weight_map"].values())
        if missing := sorted(listed - names):
            raise WeightsUnavailable(f"{folder} lacks {missing[0]} ({len(missing)} of {len(listed)} files of weights)")
    if not any(name.endswith(_WEIGHT_SUFFIXES) for name in names):
        raise WeightsUnavailable(
            f"{folder} holds no weights (no file {' or '.join('*' + s for s in _WEIGHT_SUFFIXES)})"
        )
    return folder


def checked(path: Path, sha256: str) -> Path:
    """`path`, if its SHA-256 starts with `sha256`. Raises WeightsUnavailable."""
    found = file_sha256(path)
    if not found.startswith(sha256):
        raise WeightsUnavailable(f"{path} has SHA-256 {found}, expected {sha256}; delete it and pull it again")
    return path
