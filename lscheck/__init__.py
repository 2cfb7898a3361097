"""Checks of the reader's own answers to the book's exercises: each says why an answer is right, or what goes wrong."""

from .curves import check_lifetime, check_majority, check_units
from .differences import check_kernel, check_layers, check_longest_step, check_transport
from .gradients import check_adjoint, check_border_test, check_shares
from .learned import check_near, check_projection, check_rounding
from .liver import check_least_time, check_patients, check_report, check_slices, check_steps

__all__ = [
    "check_adjoint",
    "check_border_test",
    "check_kernel",
    "check_layers",
    "check_least_time",
    "check_lifetime",
    "check_longest_step",
    "check_majority",
    "check_near",
    "check_patients",
    "check_projection",
    "check_report",
    "check_rounding",
    "check_shares",
    "check_slices",
    "check_steps",
    "check_transport",
    "check_units",
]
