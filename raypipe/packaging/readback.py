"""Check that what is exported can be read again, before it is written."""

from __future__ import annotations

from raypipe.core.errors import UserError, first_line
from raypipe.core.record import Record
from raypipe.packaging.bundle_files import RECORD, TENSORS
from raypipe.packaging.bundle_info import BundleInfo
from raypipe.packaging.store_modules import layout_of_stores
from raypipe.packaging.weights import Layout, check_tensors, max_file_bytes, weights_layout
from raypipe.storage.out_of_fold import unpack_tensors


def layout_of(info: BundleInfo) -> Layout:
    """Return shape and type of the weights of a bundle; raises as `weights_layout`."""
    return layout_of_stores(info) if info.recipes else weights_layout(info.networks())


def require_small(record: Record, where: str) -> None:
    """Check that a record is not larger than what is read; else raise a UserError, which names the run `where`."""
    if excess := record.excess(record.to_json()):
        raise UserError(
            f"{where}: cannot be exported: its record has {excess}; combine fewer trials (raypipe ensemble --top 3, or "
            "--method best)"
        )


def require_readable(info: BundleInfo, tensors: bytes, where: str) -> None:
    """Check that a bundle of this record and these weights can be read.

    Parameters
    ----------
    where
        The run, for messages.

    Raises
    ------
    UserError
        It cannot.
    """
    require_small(info, where)
    try:
        layout = layout_of(BundleInfo.parse(info.to_json(), RECORD))
        if len(tensors) > max_file_bytes(layout):
            raise ValueError(f"{TENSORS}: {len(tensors):,} bytes; at most {max_file_bytes(layout):,} are read")
        check_tensors(layout, unpack_tensors(tensors))
    except (UserError, ValueError) as error:
        raise UserError(f"{where}: cannot be exported: {first_line(error)}") from None
