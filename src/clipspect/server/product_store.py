"""Products of the service: one profile each, under a name that requests use."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TypedDict

from clipspect.errors import UsageError
from clipspect.postprocess.verdict import threshold_of
from clipspect.profile import SUFFIX, Profile, read_profile
from clipspect.results.files import open_beside
from clipspect.server.errors import ServiceError

NAME_PATTERN = r"^[a-z0-9][a-z0-9._-]{0,62}$"
MOST = 1000


class ProductInfo(TypedDict):
    """What a client is told of a product."""

    name: str
    profile: str
    """Name and version, as results carry them."""
    object: str
    method: str
    model: str
    threshold: float | None
    """None with fewer than three known-good images."""
    good_images: int
    """Number of known-good images that the threshold is from."""


class ProductStore:
    """Folder of profiles. On a cluster all nodes must share it."""

    def __init__(self, folder: Path) -> None:
        """Open a folder; it is created with the first product."""
        self.folder = folder

    def names(self) -> list[str]:
        """The products' names."""
        found = (path.name.removesuffix(SUFFIX) for path in self.folder.glob(f"*{SUFFIX}"))
        return sorted(name for name in found if re.fullmatch(NAME_PATTERN, name))

    def find(self, name: str) -> Profile:
        """Read a product's profile.

        Raises:
            ServiceError: 404, no such product.
            ProfileError: its file is damaged.
        """
        path = self._path(name)
        if not path.is_file():
            raise ServiceError(404, "unknown_product", "unknown product; see GET /v1/products")
        return read_profile(path)

    def read(self, name: str, data: bytes) -> Profile:
        """Read a profile that is to be stored under a name.

        Raises:
            ServiceError: 409, there are too many products.
            ProfileError: no profile, or one of another version.
            UsageError: it has several methods.
        """
        path = self._path(name)
        if not path.exists() and len(self.names()) >= MOST:
            raise ServiceError(409, "too_many_products", f"there are {MOST} products; delete one first")
        profile = read_profile(data, name)
        if len(profile.methods) != 1:
            raise UsageError("a product of the service has one method; create a profile for each")
        return profile

    def put(self, profile: Profile) -> None:
        """Store a profile under its name, in place of an earlier one. Raises ResultsError."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open_beside(self._path(profile.name)) as file:
            file.write(profile.to_bytes())

    def delete(self, name: str) -> None:
        """Delete a product. Raises ServiceError (404)."""
        try:
            self._path(name).unlink()
        except FileNotFoundError:
            raise ServiceError(404, "unknown_product", "unknown product; see GET /v1/products") from None

    def _path(self, name: str) -> Path:
        """The file of a name. Raises ServiceError for one that is no plain name."""
        if not re.fullmatch(NAME_PATTERN, name):
            raise ServiceError(
                422,
                "invalid",
                "a product's name has up to 63 of a-z, 0-9, '.', '_' and '-', and begins with a letter or digit",
            )
        return self.folder / f"{name}{SUFFIX}"


def product_info(profile: Profile) -> ProductInfo:
    """What a client is told of a product."""
    ((method, calibration),) = profile.used_calibrations.items()
    return ProductInfo(
        name=profile.name,
        profile=profile.label,
        object=profile.object,
        method=method,
        model=profile.backbone.model,
        threshold=threshold_of(calibration),
        good_images=calibration.images,
    )
