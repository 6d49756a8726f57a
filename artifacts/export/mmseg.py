"""A configuration for mmsegmentation 1.x, beside a VOC tree: its ``BaseSegDataset`` reads the tree as it is.

Names and meanings of the fields are those that mmsegmentation documents for ``BaseSegDataset``: ``data_prefix`` with
``img_path`` and ``seg_map_path``, ``img_suffix``, ``seg_map_suffix``, ``ann_file``, ``metainfo``,
``reduce_zero_label``, ``ignore_index``. ``{{ fileDirname }}`` is mmengine's name of the configuration's own folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from artifacts.cache.atomic import write_text_atomic
from artifacts.datasets.voc_writer import voc_palette
from artifacts.records import UNDECIDED

CONFIG = "mmseg.py"


def write_mmseg_config(
    folder: Path, tree: Path, splits: Sequence[str], classes: Sequence[str], suffixes: Counter[str]
) -> None:
    """``mmseg.py`` in ``folder``: ``train_dataset``, ``val_dataset``, to be taken with ``_base_``.

    Args:
        folder: of the export.
        tree: the VOC tree, relative to it.
        splits: names of the lists of training and of evaluation.
        classes: number 1 first; background is added as number 0, since the masks hold it.
        suffixes: endings of the pictures; mmsegmentation takes one for all, so the most frequent.
    """
    train, val = splits
    suffix, same = suffixes.most_common(1)[0] if suffixes else (".jpg", 0)
    names = ["background", *classes]
    colours = voc_palette()[: len(names)].tolist()
    lines = ["# For mmsegmentation 1.x: _base_ = 'PATH/mmseg.py', then train_dataloader = dict(dataset=train_dataset)."]
    if others := sum(suffixes.values()) - same:
        lines.append(f"# {others} of the pictures do not end in {suffix}: mmsegmentation will not find them.")
    lines += [
        f"metainfo = dict(classes={_text(names)}, palette={colours!r})",
        "_shared = dict(",
        "    type='BaseSegDataset',",
        f"    data_root='{{{{ fileDirname }}}}/{tree.as_posix()}',",
        "    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),",
        f"    img_suffix={_text(suffix)},",
        "    seg_map_suffix='.png',",
        "    metainfo=metainfo,",
        "    reduce_zero_label=False,  # 0 is background, a class of its own",
        f"    ignore_index={UNDECIDED},",
        ")",
        f"train_dataset = dict(ann_file={_text(f'ImageSets/Segmentation/{train}.txt')}, **_shared)",
        f"val_dataset = dict(ann_file={_text(f'ImageSets/Segmentation/{val}.txt')}, **_shared)",
        "del _shared",
    ]
    write_text_atomic(folder / CONFIG, "\n".join([*lines, ""]))


def _text(value: str | list[str]) -> str:
    """Python source of names that come from a data set: nothing in them is code, or a variable of mmengine."""
    return ascii(value).replace("{", "\\x7b").replace("}", "\\x7d")
