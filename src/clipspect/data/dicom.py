"""Decoding of DICOM images to 8-bit RGB (extra ``dicom``): rescale, window and MONOCHROME1 by the standard."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipspect.data.convert import check_size
from clipspect.data.ranges import ValueRange, scale_to_bytes
from clipspect.errors import ImageError


def decode_dicom(
    data: bytes, name: str, *, max_pixels: int, value_range: ValueRange, page: int, notes: list[str]
) -> NDArray[np.uint8]:
    """Decode one frame.

    A window of the run replaces the file's window, and is in rescaled values (Hounsfield units in CT). Without either,
    the whole range of the stored bits is shown.

    Returns:
        (H, W, 3) uint8 RGB.

    Raises:
        ImageError: no pixels, or a transfer syntax that cannot be decoded here. Errors of pydicom pass through.
    """
    import pydicom
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
    from pydicom.pixels.utils import pixel_array

    dataset = pydicom.dcmread(io.BytesIO(data))
    if "PixelData" not in dataset:
        raise ImageError(name, "is a DICOM file without an image; take it out of the folder")
    check_size(int(dataset.Columns), int(dataset.Rows), name, max_pixels)
    frames = count_frames(dataset)
    if page >= frames:
        raise ImageError(name, f"has {frames} frames, and frame {page + 1} was asked for")
    values = pixel_array(dataset, index=page)
    photometric = str(dataset.PhotometricInterpretation)
    bits = int(dataset.BitsStored)
    if photometric == "PALETTE COLOR":
        values = apply_color_lut(values, dataset)
        bits = 8 * values.dtype.itemsize
    if values.ndim == 3:
        return np.ascontiguousarray(scale_to_bytes(values, name, bits=bits))
    rescaled = apply_modality_lut(values, dataset)
    if value_range.window is not None:
        grey = _window(rescaled, *value_range.window, name)
    elif "VOILUTSequence" in dataset or _has_window(dataset):
        grey = _own_window(rescaled, dataset, name)
    else:
        stored = bits if value_range.bit_depth is None else value_range.bit_depth
        low = -(2 ** (stored - 1)) if int(dataset.PixelRepresentation) else 0
        notes.append(f"The DICOM file has no window; the whole range of its {stored} bits is shown.")
        high = low + 2**stored - 1
        if "ModalityLUTSequence" not in dataset:
            values, ends = rescaled, apply_modality_lut(np.array([low, high], np.int64), dataset)
            low, high = sorted(map(float, ends))  # a negative slope swaps them
        grey = _window(values, low, high, name)
    if photometric == "MONOCHROME1":
        grey = 255 - grey
    return np.ascontiguousarray(np.broadcast_to(grey[:, :, None], (*grey.shape, 3)))


def count_dicom_frames(data: bytes) -> int:
    """Return the number of frames of a DICOM file. Errors of pydicom pass through."""
    import pydicom

    return count_frames(pydicom.dcmread(io.BytesIO(data), stop_before_pixels=True))


def count_frames(dataset: Any) -> int:
    """Return the number of frames of a DICOM data set."""
    return int(dataset.get("NumberOfFrames") or 1)


def _has_window(dataset: Any) -> bool:
    """Return whether the elements of a window are there and not empty, as some devices write them."""
    return all(dataset.get(name) not in (None, "", []) for name in ("WindowCenter", "WindowWidth"))


def _own_window(values: NDArray[Any], dataset: Any, name: str) -> NDArray[np.uint8]:
    """Apply the file's first window or lookup table (DICOM PS3.3 C.11.2.1)."""
    if "VOILUTSequence" in dataset and not _has_window(dataset):
        from pydicom.pixels.processing import apply_voi

        shown = apply_voi(values.astype(np.int64), dataset)
        table_bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        return scale_to_bytes(shown, name, bits=table_bits)
    centre, width = _first(dataset.WindowCenter), _first(dataset.WindowWidth)
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function == "SIGMOID":
        share = 1 / (1 + np.exp(-4 * (values.astype(np.float64) - centre) / width))
        return scale_to_bytes(share, name)
    if function == "LINEAR_EXACT":
        return _window(values, centre - width / 2, centre + width / 2, name)
    if width <= 1:
        return np.where(values > centre - 0.5, 255, 0).astype(np.uint8)
    return _window(values, centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2, name)


def _window(values: NDArray[Any], low: float, high: float, name: str) -> NDArray[np.uint8]:
    return scale_to_bytes(values.astype(np.float64), name, ValueRange(window=(low, high)))


def _first(value: Any) -> float:
    """Return the first value of a multi-valued element."""
    return float(value[0] if hasattr(value, "__len__") and not isinstance(value, str) else value)
