"""PyTorch's two containers: written by PyTorch, or put together by hand as no PyTorch would."""

import functools
import pickle
import struct
import zipfile

from mindrepvgg.weights.torchfile import read_torch_file
from support import readers

FORMS = ("zip", "legacy")


def write_zip(path, pickled, storages=(), compression=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", pickled)
        for name, data in members.items():
            archive.writestr(f"archive/{name}", data)
        for key, data in dict(storages).items():
            archive.writestr(f"archive/data/{key}", data)
    return path


LEGACY_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2)
SYS_INFO = pickle.dumps({"protocol_version": 1001, "little_endian": True}, 2)


def write_legacy(path, pickled, storages=(), itemsize=4, sys_info=SYS_INFO, keys=None):
    storages = dict(storages)
    raw = b"".join(struct.pack("<q", len(data) // itemsize) + data for data in storages.values())
    keys = pickle.dumps(list(storages), 2) if keys is None else keys
    path.write_bytes(LEGACY_HEAD + sys_info + pickled + keys + raw)
    return path


WRITE = {"zip": write_zip, "legacy": write_legacy}


def torch_save(torch, value, path, form="zip", protocol=2):
    torch.save(value, path, _use_new_zipfile_serialization=form == "zip", pickle_protocol=protocol)
    return path


refusal = functools.partial(readers.refusal, read_torch_file)
