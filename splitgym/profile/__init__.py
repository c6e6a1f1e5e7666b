"""Profiles: what a model costs on a machine type."""

from splitgym.profile.load import (
    SUFFIXES,
    find,
    from_content,
    load,
    load_file,
    machine_names,
    model_names,
    names,
)
from splitgym.profile.profile import Curve, Profile, stack_tables
from splitgym.profile.roofline import Efficiency, roofline
from splitgym.profile.specs import MachineSpec, ModelSpec, machines, models
from splitgym.profile.tables import ProfileTables

__all__ = [
    "SUFFIXES",
    "Curve",
    "Efficiency",
    "MachineSpec",
    "ModelSpec",
    "Profile",
    "ProfileTables",
    "find",
    "from_content",
    "load",
    "load_file",
    "machine_names",
    "machines",
    "model_names",
    "models",
    "names",
    "roofline",
    "stack_tables",
]
