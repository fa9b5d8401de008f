"""Image formats: supported ones, ones that need an extra, and their detection by first bytes and suffix."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import PurePath

from clipspect.errors import ImageError


@dataclass(frozen=True)
class ExtraFormat:
    """Format that is supported if its extra is installed."""

    title: str
    suffixes: tuple[str, ...]
    module: str
    """Package that the extra installs."""
    extra: str
    pillow: str | None = None
    """Pillow's name of the format; None if Pillow does not support it."""

    @property
    def installed(self) -> bool:
        """Return whether files of this format can be read here."""
        return _can_read(self)


HEIC = ExtraFormat("HEIC", (".heic", ".heif", ".hif"), "pillow_heif", "heif", "HEIF")
AVIF = ExtraFormat("AVIF", (".avif",), "pillow_heif", "heif", "AVIF")
JPEG_XL = ExtraFormat("JPEG XL", (".jxl",), "pillow_jxl", "jxl", "JXL")
DICOM = ExtraFormat("DICOM", (".dcm", ".dicom"), "pydicom", "dicom")
EXTRA_FORMATS = (HEIC, AVIF, JPEG_XL, DICOM)

PLAIN_SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".tif",
        ".tiff",
        ".bmp",
        ".dib",
        ".webp",
        ".gif",
    }
)
"""Suffixes of the formats that are always supported."""
_NOT_READ = {
    ".jp2": "JPEG 2000", ".j2k": "JPEG 2000", ".jpx": "JPEG 2000", ".psd": "PSD", ".svg": "SVG", ".tga": "TGA",
    ".pnm": "PNM", ".pbm": "PNM", ".pgm": "PNM", ".ppm": "PNM", ".exr": "EXR", ".hdr": "HDR", ".ico": "ICO",
    ".dng": "raw", ".nef": "raw", ".cr2": "raw", ".cr3": "raw", ".arw": "raw", ".orf": "raw", ".rw2": "raw",
    ".raf": "raw", ".raw": "raw", ".pdf": "PDF", ".npy": "NumPy", ".npz": "NumPy", ".nii": "NIfTI",
    ".mp4": "video", ".mov": "video", ".avi": "video", ".mkv": "video", ".webm": "video", ".m4v": "video",
}  # fmt: skip
"""Suffixes of unsupported images and videos → display name."""
_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_JXL_STARTS = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")


def is_image_name(path: PurePath) -> bool:
    """Return whether a file's suffix, in any case, is that of a format that can be read here."""
    suffix = path.suffix.lower()
    return suffix in PLAIN_SUFFIXES or any(suffix in one.suffixes and one.installed for one in EXTRA_FORMATS)


def unsupported_kind(path: PurePath) -> str:
    """Return the display name of an unsupported file: "HEIC (needs clipspect[heif])", "GIF", "other files"."""
    suffix = path.suffix.lower()
    for one in EXTRA_FORMATS:
        if suffix in one.suffixes:
            return f"{one.title} (needs clipspect[{one.extra}])"
    return _NOT_READ.get(suffix, "")


def sniff_extra(data: bytes) -> ExtraFormat | None:
    """Return the format of an extra that the bytes start like; None for anything else."""
    if data[4:8] == b"ftyp":
        brands = (data[8:12], *(data[at : at + 4] for at in range(16, min(len(data), 64), 4)))
        if data[8:12] in _AVIF_BRANDS or (data[8:12] not in _HEIC_BRANDS and set(_AVIF_BRANDS) & set(brands)):
            return AVIF
        return HEIC if set(_HEIC_BRANDS) & set(brands) else None
    if data.startswith(_JXL_STARTS):
        return JPEG_XL
    return DICOM if data[128:132] == b"DICM" else None


def need(wanted: ExtraFormat, name: str) -> None:
    """Register a format with Pillow. Raises ImageError if its extra is not installed."""
    if not wanted.installed:
        raise ImageError(
            name, f"is a {wanted.title} image, which needs an extra: pip install 'clipspect[{wanted.extra}]'"
        )
    _register(wanted)


@cache
def _can_read(wanted: ExtraFormat) -> bool:
    if wanted is AVIF:
        from PIL import features

        if features.check("avif"):
            return True
    return find_spec(wanted.module) is not None


@cache
def _register(wanted: ExtraFormat) -> None:
    if wanted is HEIC:
        import pillow_heif

        pillow_heif.register_heif_opener()
    elif wanted is JPEG_XL:
        import pillow_jxl  # noqa: F401  # importing it registers it
    elif wanted is AVIF:
        from PIL import features

        if not features.check("avif"):
            import pillow_heif

            pillow_heif.register_avif_opener()  # type: ignore[attr-defined]  # versions before 1.0
