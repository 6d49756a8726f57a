"""Export as one HDF5 file that plain h5py reads: ``file["masks/" + name][()]``.

``name`` is the image id with ``%`` written ``%25`` and ``/`` written ``%2F`` (``urllib.parse.unquote`` gives the id
back): ``a`` and ``a/b`` are two images, where HDF5 would need a dataset and a group of one name.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from artifacts.export.items import Source


def dataset_name(image_id: str) -> str:
    """The name of an image's dataset: its id without ``/``, which HDF5 takes for a group."""
    return image_id.replace("%", "%25").replace("/", "%2F")


def write_hdf5_export(folder: Path, source: Source) -> dict[str, int]:
    """``masks.h5``: a gzipped ``(H, W) uint8`` dataset per image under ``masks/``, the class table an attribute.

    The evaluation split lies beside it, in a file ``masks-<split>.h5`` of the same layout.

    The dataset's attribute ``image`` is the image's file name, ``image_id`` its id. Objects lie under
    ``objects/<name>`` as four arrays: ``ids`` (``Box.id``), ``classes``, ``windows_xyxy`` and ``masks_flat``, the masks
    in their windows, one after the other.
    """
    images = objects = 0
    path = folder / "masks.h5"
    if path.exists():  # the run's masks come first, then the pictures that a network is scored on
        path = folder / f"masks-{dataset_name(source.split)}.h5"
    with h5py.File(path, "w", libver="latest") as file:
        file.attrs["classes"] = ["background", *source.classes]
        file.attrs["split"] = source.split
        for image in source:
            # No time stamps in the object headers: equal masks give equal bytes.
            name = dataset_name(image.image_id)
            data = file.create_dataset(
                f"masks/{name}", data=image.mask_hw, compression="gzip", shuffle=False, track_times=False
            )
            data.attrs["image"] = image.image.name
            data.attrs["image_id"] = image.image_id
            images += 1
            if image.objects:
                group = file.create_group(f"objects/{name}")
                windows = np.array([item.window_xyxy for item, _ in image.objects], np.int32)
                flat = np.concatenate([np.asarray(item.values_hw).ravel() for item, _ in image.objects])
                for part, array in {
                    "ids": np.array([item.id for item, _ in image.objects], np.int64),
                    "classes": np.array([class_id for _, class_id in image.objects], np.uint8),
                    "windows_xyxy": windows,
                    "masks_flat": flat,
                }.items():
                    group.create_dataset(part, data=array, compression="gzip", track_times=False)
                objects += len(image.objects)
    return {"images": images, "objects": objects}
