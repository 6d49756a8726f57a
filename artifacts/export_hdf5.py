"""Export as one HDF5 file that plain h5py reads: ``file["masks/<image id>"][()]``."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np

from artifacts.exported import Source


def write_hdf5_export(folder: Path, source: Source) -> dict[str, int]:
    """``masks.h5``: a gzipped ``(H, W) uint8`` dataset per image under ``masks/``, the class table an attribute.

    The dataset's attribute ``image`` is the image's file name. Objects lie under ``objects/<image id>`` as three
    arrays: class numbers, windows and the masks in their windows, one after the other.
    """
    images = objects = 0
    with h5py.File(folder / "masks.h5", "w", libver="latest") as file:
        file.attrs["classes"] = ["background", *source.classes]
        file.attrs["split"] = source.split
        for image in source:
            # No time stamps in the object headers: equal masks give equal bytes.
            data = file.create_dataset(
                f"masks/{image.image_id}", data=image.mask_hw, compression="gzip", shuffle=False, track_times=False
            )
            data.attrs["image"] = image.image.name
            images += 1
            if image.objects:
                group = file.create_group(f"objects/{image.image_id}")
                windows = np.array([item.window_xyxy for item, _ in image.objects], np.int32)
                flat = np.concatenate([np.asarray(item.values_hw).ravel() for item, _ in image.objects])
                for name, array in {
                    "classes": np.array([class_id for _, class_id in image.objects], np.uint8),
                    "windows_xyxy": windows,
                    "masks_flat": flat,
                }.items():
                    group.create_dataset(name, data=array, compression="gzip", track_times=False)
                objects += len(image.objects)
    return {"images": images, "objects": objects}
