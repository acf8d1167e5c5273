"""Where `energy_flow_mlx.tensors` used to be; its names are still found here."""

from ..tensors import (  # noqa: F401
    WARN_BYTES,
    Header,
    as_dtype,
    check_finite,
    check_memory,
    listing,
    read_header,
    read_metadata,
    read_tensors,
)
