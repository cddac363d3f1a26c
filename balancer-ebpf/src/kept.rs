//! Maps in which a controller leaves data for its successor. The kernel program does not use these maps; this module
//! declares them because the object file creates all maps.

use aya_ebpf::{bindings::BPF_F_MMAPABLE, macros::map, maps::Array};
use balancer_common::kept::{BackendHistory, FEWEST_SERVICE_HISTORIES, NotesRow, ServiceHistory};

#[map]
static NOTES: Array<NotesRow> = Array::with_max_entries(1, 0);

/// The controller sets the real number of rows of this map when it loads the program.
#[map]
static BACKEND_HISTORY: Array<BackendHistory> = Array::with_max_entries(1, BPF_F_MMAPABLE);

#[map]
static SERVICE_HISTORY: Array<ServiceHistory> = Array::with_max_entries(FEWEST_SERVICE_HISTORIES, BPF_F_MMAPABLE);
