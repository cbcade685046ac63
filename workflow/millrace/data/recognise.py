"""What a file is by its first bytes, whatever its name says."""

from pathlib import Path

from millrace.input_files import check_file

_SIGNATURES = (
    (b"CDF", "netcdf", ""),
    (b"\x89HDF", "netcdf", ""),
    (b"PK\x03\x04", "zip", "it is a ZIP archive: unpack it and give the files that it holds"),
    (b"PK\x05\x06", "zip", "it is an empty ZIP archive: download it again"),
    (
        b"GRIB",
        "grib",
        "it is GRIB: convert it to NetCDF, for instance by `cdo -f nc4 copy` or by `grib_to_netcdf`",
    ),
    (b"\x1f\x8b", "gzip", "it is packed by gzip: unpack it"),
    (b"BZh", "bzip2", "it is packed by bzip2: unpack it"),
    (b"\xfd7zXZ", "xz", "it is packed by xz: unpack it"),
    (b"\x28\xb5\x2f\xfd", "zstd", "it is packed by Zstandard: unpack it"),
    (b"\x37\x7a\xbc\xaf", "7z", "it is a 7-Zip archive: unpack it"),
    (b"BUFR", "bufr", "it is BUFR, which holds observations and not fields"),
    (
        b"<",
        "html",
        "it is a page of HTML or XML, perhaps an error of the server: download it again",
    ),
    (b"{", "json", "it is JSON, perhaps an error of the server: download it again"),
)


def kind_of(path: Path) -> tuple[str, str]:
    """Kind of a file, and for what is not read a clause that says what it is and what to do.

    Both are empty if the first bytes say nothing. Raises `DataError` for what is no file, and OSError if
    it cannot be read.
    """
    check_file(path)
    with path.open("rb") as file:
        start = file.read(512).lstrip(b"\xef\xbb\xbf \r\n\t")
    if not start:
        return "", "it is empty: copy it again" if path.stat().st_size == 0 else ""
    return next(
        ((kind, what) for bytes_, kind, what in _SIGNATURES if start.startswith(bytes_)), ("", "")
    )
